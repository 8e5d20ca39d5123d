"""MeanFlow (Geng et al., 2025, arXiv 2505.13447): the average velocity between two times, learnt from data alone.

On the straight path z_t = (1 - t) x + t e from data (t = 0) to noise (t = 1), the network is the mean u(z_t, r, t) of
the flow's velocity over [r, t], so that ``z_r = z_t - (t - r) u(z_t, r, t)`` is one evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.jvp import network_jvp
from cmbench.diffusion.preconditioning import expand
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class MeanFlowRecipe:
    """MeanFlow training.

    Attributes:
        fit: optimisation.
        logit_mean, logit_std: t and r are the larger and the smaller of two draws sigmoid(N(mean, std^2)).
        ratio: share of samples with r != t; the others learn the velocity itself.
        power: p of the adaptive weight 1 / (|error|^2 + c)^p; 0 is the plain squared error.
        c: see power.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    logit_mean: float = -2.0
    logit_std: float = 2.0
    ratio: float = 0.75
    power: float = 0.75
    c: float = 1e-3
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1 or self.logit_std <= 0 or self.power < 0 or self.c <= 0:
            raise UsageError("meanflow: need 0 <= ratio <= 1, logit_std > 0, power >= 0, c > 0")


def mean_velocity(network: nn.Module, z: Tensor, r: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """u(z, r, t) for ``z`` [B, C, H, W] and times [B], in the type of ``z``; the network is told t and t - r."""
    out: Tensor = network(z.float(), torch.stack([t, t - r], dim=1).float(), labels)
    return out.to(z.dtype)


class MeanFlowObjective:
    """``w |u(z_t, r, t) - stopgrad(v - (t - r) du/dt)|^2`` (equations 9 to 11 and 22).

    v = e - x is the velocity of the path, and du/dt = v du/dz + du/dt the total derivative along it: one
    Jacobian-vector product.
    """

    def __init__(self, recipe: MeanFlowRecipe) -> None:
        self.recipe = recipe
        self.modules: Mapping[str, nn.Module] = {}

    def times(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """r <= t, [count] each, in (0, 1)."""
        normal = torch.randn(2, count, device=rng.device, generator=rng)
        drawn = torch.sigmoid(self.recipe.logit_mean + self.recipe.logit_std * normal)
        t, r = drawn.amax(0), drawn.amin(0)
        same = torch.rand(count, device=rng.device, generator=rng) >= self.recipe.ratio
        return torch.where(same, t, r), t

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        r, t = self.times(len(x), rng)
        noise = torch.randn(x.shape, device=x.device, generator=rng)
        z = x + expand(t, x) * (noise - x)
        v = noise - x

        times = torch.stack([t, t - r], dim=1)
        # along the path r stands still, so both times that the network is told run at rate one
        u, slope = network_jvp(network, z, times, labels, v, torch.ones_like(times))
        goal = (v - expand(t - r, x) * slope).detach()
        square: Tensor = (u - goal).square().flatten(1).sum(1)
        return square / (square.detach() + self.recipe.c) ** self.recipe.power

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train from random weights."""
    recipe: MeanFlowRecipe = job.recipe
    return job.fit(job.new_network(), MeanFlowObjective(recipe), recipe.fit)


def sampler(model: Model, _recipe: MeanFlowRecipe, nfe: int) -> "Sampler":
    """From noise at t = 1 to t = 0 in ``nfe`` equal steps of one evaluation; float64, returns float32."""

    def sample(noise: Tensor, labels: Tensor | None, _rng: object) -> Tensor:
        z = noise.double()
        ones = torch.ones(len(z), dtype=torch.float64, device=z.device)
        for k in range(nfe, 0, -1):
            t, r = k / nfe * ones, (k - 1) / nfe * ones
            z = z - mean_velocity(model.network, z, r, t, labels) / nfe
        return z.float()

    return sample


MEANFLOW = Method(
    name="meanflow",
    label="MeanFlow",
    group=DIRECT,
    reference="Geng et al., 2025",
    summary="learns the average velocity of a flow over any interval of time, from data alone",
    recipe=MeanFlowRecipe,
    sampler=sampler,
    train=train,
    network=lambda _recipe: {"conditions": 2},
    paper="arXiv:2505.13447",
    differs="the network is the data set's, whose second time has an embedding that is added to the first's; "
    "no augmentation pipeline, no guidance",
)
