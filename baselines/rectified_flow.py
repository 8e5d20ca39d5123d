"""Rectified flows 1, 2 and 3, each with and without distillation (Liu et al., 2022, arXiv 2209.03003).

The first flow learns the velocity x - z of straight lines between noise z and images x (their equation 1). Each next
one ("reflow") learns from pairs (z, image that the flow before makes of z), which straightens the paths (their
Algorithm 1). "+distill" is a student of one step, ``z + v(z, 0)``, regressed on the pairs of its flow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from cmbench_baselines.kd import only_one
from torch import Tensor, nn

from cmbench.consistency.distance import Distance, distance
from cmbench.consistency.methods import DistanceName
from cmbench.diffusion.flow import VelocityField, euler, flow, heun, interpolate
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.pairs import Map, Pairs
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class FlowRecipe:
    """The first flow, learnt from data.

    Attributes:
        fit: optimisation.
        dropout: of the network, in training.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    dropout: float = 0.0
    seed: int | None = 0


@dataclass(frozen=True)
class FlowPairs:
    """How a flow makes pairs.

    Attributes:
        count: number of pairs.
        steps: equal Heun steps, two evaluations each.
        seed: of noise and labels.
    """

    count: int = 20_000
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"pairs.steps {self.steps}: at least one step is needed")

    def pairs(self, of: Parent) -> Pairs:
        """The pairs that this flow makes."""
        return Pairs(
            of, self.solve, {"kind": "flow", "solver": "heun", "steps": self.steps}, self.count, self.seed
        )

    def solve(self, model: Model) -> Map:
        """The map from noise [B, C, H, W] to the flow's image [B, 1, C, H, W]."""
        velocity = VelocityField(model.network, model.noise)
        return lambda noise, labels: flow(velocity, noise, self.steps, heun, labels)[:, None]


@dataclass(frozen=True)
class ReflowRecipe:
    """A later flow, learnt from pairs of the one before.

    Attributes:
        fit: optimisation.
        pairs: how the flow before makes the pairs.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    pairs: FlowPairs = field(default_factory=FlowPairs)
    dropout: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class FlowDistillRecipe:
    """The student of one step.

    Attributes:
        fit: optimisation.
        pairs: how its flow makes the pairs; with the settings of the next flow's, both use one set.
        metric: distance of the loss (l2 is squared); the original's on CIFAR-10 is lpips.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    pairs: FlowPairs = field(default_factory=FlowPairs)
    metric: DistanceName = "l2"
    dropout: float = 0.0
    seed: int | None = None


class FlowObjective:
    """``|v(x_t, t) - (x - z)|^2`` with x_t = t x + (1 - t) z and t uniform in [0, 1] (equation 1).

    The noise z is drawn anew for images [B, C, H, W], and comes with them in pairs [B, 2, C, H, W].
    """

    def __init__(self, noise: NoiseRange) -> None:
        self.noise = noise
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        t = torch.rand(len(x), device=x.device, generator=rng)
        if x.ndim == 5:
            z, image = x.unbind(1)
        else:
            z, image = torch.randn(x.shape, device=x.device, generator=rng), x
        velocity = VelocityField(network, self.noise)
        error: Tensor = velocity(interpolate(image, z, t), t, labels) - (image - z)
        return error.square().flatten(1).mean(1)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


class FlowDistillObjective:
    """``d(z + v(z, 0), x)`` for pairs of noise z and the flow's image x."""

    def __init__(self, noise: NoiseRange, distance: Distance) -> None:
        self.noise, self.distance = noise, distance
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, _rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B] for pairs ``x`` [B, 2, C, H, W]."""
        z, image = x.unbind(1)
        velocity = VelocityField(network, self.noise)
        return self.distance(z + velocity(z, torch.zeros(len(z), device=z.device), labels), image)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train the first flow on data, from random weights."""
    recipe: FlowRecipe = job.recipe
    return job.fit(job.new_network(), FlowObjective(job.noise), recipe.fit)


def reflow(job: TrainJob) -> nn.Module:
    """Train a later flow on pairs, from the weights of the one before."""
    recipe: ReflowRecipe = job.recipe
    return job.fit_pairs(job.student(), FlowObjective(job.noise), recipe.fit)


def distill(job: TrainJob) -> nn.Module:
    """Train the student of one step on pairs, from the weights of its flow."""
    recipe: FlowDistillRecipe = job.recipe
    objective = FlowDistillObjective(
        job.noise, distance(recipe.metric, job.device, job.images.name, job.download)
    )
    return job.fit_pairs(job.student(), objective, recipe.fit)


def sampler(model: Model, _recipe: object, nfe: int) -> "Sampler":
    """Euler's method in ``nfe`` equal steps."""
    velocity = VelocityField(model.network, model.noise)
    return lambda noise, labels, _rng: flow(velocity, noise, nfe, euler, labels)


def _notes(recipe: FlowDistillRecipe) -> tuple[str, ...]:
    if recipe.metric == "lpips":
        return ("trained with LPIPS, whose ImageNet features favour it in Inception FID",)
    return ()


REFERENCE = "Liu et al., 2022"
PAPER = "arXiv:2209.03003"
SAMPLED = (
    "samples by Euler steps only (the paper also by RK45); time is mapped linearly onto the range of noise conditions "
    "that our networks are made for"
)
PAIRED = "pairs come from Heun steps of equal length (the paper's: RK45 with tolerance 1e-5)"


def _flow(k: int) -> Method:
    made = partial(
        Method,
        name=f"rf{k}",
        label=f"{k}-Rectified Flow",
        reference=REFERENCE,
        sampler=sampler,
        nfes=(1, 2, 4),
        paper=PAPER,
    )
    if k == 1:
        return made(
            group=DIRECT,
            summary="flow along straight lines between noise and data, by Euler steps",
            recipe=FlowRecipe,
            train=train,
            differs=SAMPLED,
        )
    before = Parent(f"rf{k - 1}")
    return made(
        group=DISTILLATION,
        summary=f"flow learnt anew from the pairs of flow {k - 1}, which straightens it",
        recipe=ReflowRecipe,
        train=reflow,
        parent=lambda _variant, _recipe: before,
        pairs=lambda _variant, recipe: recipe.pairs.pairs(before),
        differs=f"{SAMPLED}; {PAIRED}",
    )


def _distilled(k: int) -> Method:
    of = Parent(f"rf{k}")
    return Method(
        name=f"rf{k}-distill",
        label=f"{k}-Rectified Flow (+distill)",
        group=DISTILLATION,
        reference=REFERENCE,
        summary=f"one step, regressed on stored pairs of flow {k}",
        recipe=FlowDistillRecipe,
        sampler=sampler,
        train=distill,
        parent=lambda _variant, _recipe: of,
        pairs=lambda _variant, recipe: recipe.pairs.pairs(of),
        refuses=only_one,
        nfes=(1,),
        notes=_notes,
        paper=PAPER,
        differs=PAIRED,
    )


RF1, RF2, RF3 = (_flow(k) for k in (1, 2, 3))
RF1_DISTILL, RF2_DISTILL, RF3_DISTILL = (_distilled(k) for k in (1, 2, 3))
