"""sCT and sCD: continuous-time consistency training and distillation (Lu & Song, 2024, arXiv 2410.11081).

Both start from the pretrained EDM network, which is a TrigFlow network as it stands
(:mod:`cmbench.consistency.trigflow`). sCT follows the data's own direction, sCD the pretrained network's ODE.

sCT's group is Direct Generation, beside CT and iCT, as in the paper's tables: its loss asks the data alone. Every
record carries a note of the start.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from cmbench.consistency.function import ConsistencyModel
from cmbench.consistency.levels import Renoising, Taus, consistency_sampler, refusal
from cmbench.consistency.trigflow import AdaptiveWeight, ContinuousObjective, sigma_of, time_of
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class SCMRecipe:
    """Continuous-time consistency, training and distillation alike.

    Attributes:
        fit: optimisation.
        log_mean, log_std: ln sigma = ln(sd tan t) is normal.
        warmup: steps over which the tangent's part through the network is brought in.
        c: constant of the tangent normalisation.
        adaptive: whether the weight of each noise level is learnt.
        dropout: of the network, in training.
        times: re-noising times t by NFE ("2" -> one time), falling within (0, pi/2); another NFE takes evenly spaced
            levels (in Karras's sense).
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    log_mean: float = -1.0
    log_std: float = 1.4
    warmup: int = 10_000
    c: float = 0.1
    adaptive: bool = True
    dropout: float = 0.0
    times: Taus = field(default_factory=lambda: {"2": (1.1,)})
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.c <= 0 or self.log_std <= 0:
            raise UsageError("need warmup >= 0, c > 0 and log_std > 0")
        if self.fit.compile:
            raise UsageError("fit.compile: a compiled network has no forward-mode derivative")


RENOISING = Renoising("times", level=sigma_of, value=time_of)


def _objective(job: TrainJob, teacher: nn.Module | None) -> ContinuousObjective:
    recipe: SCMRecipe = job.recipe
    weight = AdaptiveWeight().to(job.device) if recipe.adaptive else None
    return ContinuousObjective(
        job.noise, teacher, recipe.log_mean, recipe.log_std, recipe.warmup, recipe.c, weight
    )


def train_sct(job: TrainJob) -> nn.Module:
    """Train on data, from the pretrained network's weights."""
    return job.fit(job.student(), _objective(job, None), job.recipe.fit)


def train_scd(job: TrainJob) -> nn.Module:
    """Distil the pretrained network, from its weights."""
    return job.fit(job.student(), _objective(job, job.teacher), job.recipe.fit)


def consistency(model: Model, _recipe: SCMRecipe) -> ConsistencyModel:
    """The formula of a denoiser, but a consistency function."""
    return ConsistencyModel(Denoiser(model.network, model.noise.sigma_data), model.noise, end=0.0)


def sampler(model: Model, recipe: SCMRecipe, nfe: int) -> "Sampler":
    """Multistep consistency sampling from t = arctan(sigma_max / sd).

    Re-noising to t adds noise of ``sd tan(t)`` to the image: the paper's ``cos(t) x + sin(t) z`` in EDM's scale.
    """
    return consistency_sampler(consistency(model, recipe), RENOISING.taus(recipe, model.noise), nfe)


DIFFERS = (
    "in EDM's variables with the noise input ln(sigma) / 4, where the paper's network has t itself; "
    "no pixel normalisation in the network; starts from the EDM network without a TrigFlow pretraining; "
    "samples start at sigma_max, not at t = pi/2"
)

SCT = Method(
    name="sct",
    label="sCT",
    group=DIRECT,
    reference="Lu & Song, 2024",
    summary="continuous-time consistency training from a pretrained network's weights",
    recipe=SCMRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train_sct,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=lambda nfe, recipe: refusal(recipe.times, nfe),
    notes=lambda _recipe: ("starts from the pretrained EDM network, whose training is not counted",),
    paper="arXiv:2410.11081",
    differs=DIFFERS,
    deterministic=False,
    renoising=RENOISING,
)

SCD = Method(
    name="scd",
    label="sCD",
    group=DISTILLATION,
    reference="Lu & Song, 2024",
    summary="continuous-time consistency distillation",
    recipe=SCMRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train_scd,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=lambda nfe, recipe: refusal(recipe.times, nfe),
    paper="arXiv:2410.11081",
    differs=DIFFERS,
    deterministic=False,
    renoising=RENOISING,
)
