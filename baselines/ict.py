"""iCT, improved consistency training (Song & Dhariwal, 2023, arXiv 2310.14189).

Consistency training without a target network, with the pseudo-Huber distance, log-normal noise levels, and a grid
whose intervals double as training goes on.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from cmbench.consistency.distance import pseudo_huber
from cmbench.consistency.function import ConsistencyFunction, ConsistencyModel
from cmbench.consistency.isolated import PairObjective, doubling_points, grid_pairs
from cmbench.consistency.levels import Renoising, Taus, consistency_sampler, refusal
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class ICTRecipe:
    """Improved consistency training.

    Attributes:
        fit: optimisation.
        s0, s1: intervals of the Karras grid at the start and at the end; they double in between (section 3.4).
        log_mean, log_std: the log-normal distribution that noise levels follow, discretised to the grid (section 3.5).
        dropout: of the network, in training; both evaluations of a pair have the same masks.
        network: options of the network beyond the data set's (the paper: ``{ fourier_scale = 0.02 }``).
        taus: re-noising levels by NFE ("2" -> one level); another NFE takes points of the last grid.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    s0: int = 10
    s1: int = 1280
    log_mean: float = -1.1
    log_std: float = 2.0
    dropout: float = 0.0
    network: dict[str, Any] = field(default_factory=dict)
    taus: Taus = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.s0 <= self.s1:
            raise UsageError(f"ict: need 1 <= s0 <= s1, not {self.s0} and {self.s1}")
        if self.log_std <= 0:
            raise UsageError(f"ict: log_std {self.log_std} must be positive")


def train(job: TrainJob) -> nn.Module:
    """Train from random weights."""
    recipe: ICTRecipe = job.recipe
    points = doubling_points(recipe.s0, recipe.s1, recipe.fit.steps)
    objective = PairObjective(
        lambda network: ConsistencyFunction(network, job.noise),
        pseudo_huber,
        grid_pairs(job.noise, points, recipe.log_mean, recipe.log_std),
    )
    return job.fit(job.new_network(), objective, recipe.fit)


def consistency(model: Model, recipe: ICTRecipe) -> ConsistencyModel:
    """The consistency function, on the last training grid."""
    return ConsistencyModel(ConsistencyFunction(model.network, model.noise), model.noise, recipe.s1 + 1)


def sampler(model: Model, recipe: ICTRecipe, nfe: int) -> "Sampler":
    """Multistep consistency sampling."""
    return consistency_sampler(consistency(model, recipe), recipe.taus, nfe)


ICT = Method(
    name="ict",
    label="iCT",
    group=DIRECT,
    reference="Song & Dhariwal, 2023",
    summary="improved consistency training: pseudo-Huber, log-normal levels, doubling grid, no target average",
    recipe=ICTRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train,
    refuses=lambda nfe, recipe: refusal(recipe.taus, nfe, recipe.s1 + 1),
    network=lambda recipe: recipe.network,
    paper="arXiv:2310.14189",
    differs="iCT on the data set's network, not the twice as deep one of iCT-deep",
    deterministic=False,
    renoising=Renoising(points=lambda recipe: recipe.s1 + 1),
)
