"""DFNO / DSNO (Zheng et al., 2022, arXiv 2211.13449): one pass emits the whole trajectory of the teacher's ODE.

The teacher's network gets a time axis of M points, with Fourier convolutions along it after each block
(:mod:`cmbench.networks.trajectory`), and regresses stored trajectories of the teacher. The last point is the image.

A point x_m at level sigma_m is written with the clean image y_m that a straight step from the noise x_T would need:
``x_m = y_m + (sigma_m / sigma_T) (x_T - y_m)``. The network emits y_m, with EDM's preconditioning at sigma_T.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from cmbench_baselines.kd import only_one
from torch import Tensor, nn

from cmbench.consistency.distance import Distance, distance
from cmbench.consistency.methods import DistanceName
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import noise_condition, scaled_input
from cmbench.diffusion.trajectories import Trajectories
from cmbench.errors import UsageError, WorkError
from cmbench.methods import DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.networks.trajectory import TrajectoryNetwork
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DFNORecipe:
    """Diffusion sampling with a neural operator.

    Attributes:
        fit: optimisation.
        pairs: how the teacher makes the trajectories; ``pairs.keep`` is M, the points that the network emits.
        modes: Fourier modes that a temporal convolution keeps, at most M / 2 + 1.
        metric: distance of the loss at each point.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    pairs: Trajectories = field(default_factory=lambda: Trajectories(keep=4))
    modes: int = 3
    metric: DistanceName = "l1"
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.modes <= self.pairs.keep // 2 + 1:
            raise UsageError(
                f"dfno.modes {self.modes}: {self.pairs.keep} points have 1 to {self.pairs.keep // 2 + 1} modes"
            )


def clean_points(
    network: nn.Module, noise: NoiseRange, levels: Tensor, z: Tensor, labels: Tensor | None
) -> Tensor:
    """The points y_m [B, M, C, H, W] of the trajectories through unit-normal ``z`` [B, C, H, W]: one evaluation.

    ``levels`` [M] are the points' noise levels; zero is shown to the network as sigma_min.
    """
    top, sd = torch.tensor(noise.sigma_max), noise.sigma_data
    shown = noise_condition(levels.clamp(min=noise.sigma_min)).to(z.device, torch.float32)
    x = z * noise.sigma_max
    raw = network((scaled_input(top, sd) * x).float(), shown.expand(len(z), -1), labels)
    total = top**2 + sd**2
    out: Tensor = (sd**2 / total * x)[:, None] + top * sd / torch.sqrt(total) * raw
    return out


def targets(x: Tensor, levels: Tensor, noise: NoiseRange) -> Tensor:
    """The points y_m [B, M, C, H, W] of stored trajectories ``x`` [B, 1 + M, C, H, W], the unit-normal noise first."""
    ratio = (levels / noise.sigma_max).to(x.device, torch.float64).reshape(1, -1, 1, 1, 1)
    start = x[:, :1].double() * noise.sigma_max
    return ((x[:, 1:] - ratio * start) / (1 - ratio)).float()


class TrajectoryObjective:
    """The distance between emitted and stored points, averaged over the trajectory."""

    def __init__(self, noise: NoiseRange, levels: Tensor, distance: Distance) -> None:
        self.noise, self.levels, self.distance = noise, levels, distance
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, _rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B] for trajectories ``x`` [B, 1 + M, C, H, W]."""
        made = clean_points(network, self.noise, self.levels, x[:, 0], labels)
        goal = targets(x, self.levels, self.noise)
        by_point = self.distance(made.flatten(0, 1), goal.flatten(0, 1))
        return by_point.reshape(len(x), -1).mean(1)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Regress trajectories; the network starts from the teacher's weights, its convolutions as the identity."""
    recipe: DFNORecipe = job.recipe
    student = job.new_network()
    if job.teacher is None or not isinstance(student, TrajectoryNetwork):
        raise WorkError("dfno needs a teacher and a network with a time axis")
    student.inner.load_state_dict(job.teacher.state_dict())
    levels = recipe.pairs.levels(job.noise)
    objective = TrajectoryObjective(
        job.noise, levels, distance(recipe.metric, job.device, job.images.name, job.download)
    )
    return job.fit_pairs(student, objective, recipe.fit)


def sampler(model: Model, recipe: DFNORecipe, _nfe: int) -> "Sampler":
    """One evaluation; the last point of the trajectory."""
    levels = recipe.pairs.levels(model.noise)
    return lambda noise, labels, _rng: clean_points(model.network, model.noise, levels, noise, labels)[:, -1]


def network(recipe: DFNORecipe) -> dict[str, Any]:
    """The time axis of its network."""
    return {"trajectory": {"points": recipe.pairs.keep, "modes": recipe.modes}}


DFNO = Method(
    name="dfno",
    label="DFNO",
    group=DISTILLATION,
    reference="Zheng et al., 2022",
    summary="one pass emits the teacher's whole trajectory, by Fourier convolutions over time",
    recipe=DFNORecipe,
    sampler=sampler,
    train=train,
    parent=lambda _variant, _recipe: Parent("edm"),
    pairs=lambda _variant, recipe: recipe.pairs.pairs(Parent("edm")),
    refuses=only_one,
    nfes=(1,),
    network=network,
    paper="arXiv:2211.13449",
    differs=(
        "one evaluation is a pass with M points, so it costs M times a plain one and more; the teacher is the EDM "
        "network with a deterministic sampler on the Karras grid (theirs is variance-preserving with DDIM), the points "
        "are evenly spaced on that grid (theirs: quadratic in t); the network emits the clean image that a straight "
        "step from the noise would need, so the loss weighs all points alike (theirs weighs x(t) by alpha / sigma); "
        "the temporal convolutions are linear, residual and start as the identity"
    ),
)
