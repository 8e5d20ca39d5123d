"""ECT, easy consistency tuning (Geng et al., 2024, arXiv 2406.14548).

A pretrained EDM network is tuned into a consistency function on data: at first the goal is the image itself, which is
diffusion training, then the earlier level r moves towards t, stage by stage. Its preconditioning is EDM's, so
f(x, 0) = x, and the consistency function is the denoiser's formula.

Its group is Direct Generation, beside CT and iCT: the network's weights are where it starts, but its loss asks the data
alone and never the pretrained network. Every record carries a note of the start.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from cmbench.consistency.distance import Distance, pseudo_huber_with
from cmbench.consistency.function import ConsistencyModel
from cmbench.consistency.isolated import PairObjective, tuning_pairs
from cmbench.consistency.levels import Renoising, Taus, consistency_sampler, refusal
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class ECTRecipe:
    """Easy consistency tuning.

    Attributes:
        fit: optimisation.
        doubling: steps of a stage.
        q: factor by which (t - r) / t shrinks from stage to stage.
        k, b: shape of the mapping from t to r.
        c: constant of the pseudo-Huber distance; 0 is the plain norm.
        log_mean, log_std: the log-normal distribution of t.
        dropout: of the network, in training; both evaluations of a pair have the same masks.
        taus: re-noising levels by NFE ("2" -> one level); another NFE takes evenly spaced ones (in Karras's sense).
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    doubling: int = 1000
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    c: float = 0.0
    log_mean: float = -1.1
    log_std: float = 2.0
    dropout: float = 0.0
    taus: Taus = field(default_factory=lambda: {"2": (0.821,)})
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.doubling < 1 or self.q <= 1:
            raise UsageError(f"ect: need doubling >= 1, not {self.doubling}, and q > 1, not {self.q}")
        if self.k < 0 or self.c < 0 or self.log_std <= 0:
            raise UsageError("ect: need k >= 0, c >= 0 and log_std > 0")


def train(job: TrainJob) -> nn.Module:
    """Tune the pretrained network."""
    recipe: ECTRecipe = job.recipe
    distance: Distance = pseudo_huber_with(recipe.c)
    pairs = tuning_pairs(recipe.log_mean, recipe.log_std, recipe.doubling, recipe.q, recipe.k, recipe.b)
    objective = PairObjective(lambda network: Denoiser(network, job.noise.sigma_data), distance, pairs)
    return job.fit(job.student(), objective, recipe.fit)


def consistency(model: Model, _recipe: ECTRecipe) -> ConsistencyModel:
    """The formula of a denoiser, but a consistency function. It maps to level 0: re-noising adds ``tau z``."""
    return ConsistencyModel(Denoiser(model.network, model.noise.sigma_data), model.noise, end=0.0)


def sampler(model: Model, recipe: ECTRecipe, nfe: int) -> "Sampler":
    """Multistep consistency sampling."""
    return consistency_sampler(consistency(model, recipe), recipe.taus, nfe)


ECT = Method(
    name="ect",
    label="ECT",
    group=DIRECT,
    reference="Geng et al., 2024",
    summary="easy consistency tuning: a pretrained EDM network tuned on data into a consistency function",
    recipe=ECTRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=lambda nfe, recipe: refusal(recipe.taus, nfe),
    notes=lambda _recipe: ("starts from the pretrained EDM network, whose training is not counted",),
    paper="arXiv:2406.14548",
    differs=(
        "tunes the data set's EDM network (CIFAR-10: NCSN++; the paper: DDPM++); re-noising adds tau z, as the "
        "released code does; the average starts with a warm-up in the small recipes"
    ),
    deterministic=False,
    renoising=Renoising(),
)
