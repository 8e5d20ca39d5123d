"""Shortcut models (Frans et al., 2024, arXiv 2410.12557): a flow whose network is told how far the next step goes.

On the straight path x_t = (1 - t) e + t x from noise (t = 0) to data (t = 1), ``x_{t+d} = x_t + d s(x_t, t, d)``. The
smallest step learns the flow's velocity; a step of 2d learns where two steps of d lead.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.preconditioning import expand
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit
from cmbench.training.loop import move_towards

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class ShortcutRecipe:
    """Shortcut model training.

    Attributes:
        fit: optimisation.
        finest: number of smallest steps from noise to data, a power of two; the largest NFE.
        consistency: share of the batch that learns from two half-steps; the rest learns the velocity.
        target_ema: decay of the weights that make the half-steps.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    finest: int = 128
    consistency: float = 0.25
    target_ema: float = 0.999
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise UsageError(f"shortcut.finest {self.finest} is not a power of two from 2 up")
        if not 0 <= self.consistency <= 1 or not 0 <= self.target_ema < 1:
            raise UsageError("shortcut: need 0 <= consistency <= 1 and 0 <= target_ema < 1")


def direction(
    network: nn.Module, x: Tensor, t: Tensor, d: Tensor, finest: int, labels: Tensor | None
) -> Tensor:
    """s(x, t, d) for ``x`` [B, C, H, W], times and step sizes [B], in the type of ``x``.

    The network is told t and log2(1/d) / log2(finest): 0 for the whole way, 1 for the smallest step.
    """
    size = -torch.log2(d) / math.log2(finest)
    out: Tensor = network(x.float(), torch.stack([t, size.to(t.dtype)], dim=1).float(), labels)
    return out.to(x.dtype)


class ShortcutObjective:
    """``|s(x_t, t, d0) - (x - e)|^2`` on part of the batch, ``|s(x_t, t, 2d) - target|^2`` on the other (Algorithm 1).

    The target is the mean of two directions of the averaged network ``target``: that at x_t, and that where its step
    of d leads. d is uniform over the powers of two, t over the multiples of 2d.
    """

    def __init__(self, recipe: ShortcutRecipe, target: nn.Module) -> None:
        self.recipe, self.target = recipe, target
        self.modules: Mapping[str, nn.Module] = {"target": target}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        finest, count, device = self.recipe.finest, len(x), x.device
        noise = torch.randn(x.shape, device=device, generator=rng)
        by_halves = round(self.recipe.consistency * count)
        levels = torch.randint(finest.bit_length() - 1, (count,), device=device, generator=rng)
        levels[by_halves:] = finest.bit_length() - 1  # the smallest step, on every multiple of itself
        places = 2**levels
        t = torch.floor(torch.rand(count, device=device, generator=rng) * places) / places
        d = 1 / places
        at_t = noise + expand(t, x) * (x - noise)

        goal = x - noise
        if by_halves:
            part = slice(by_halves)
            some = None if labels is None else labels[part]
            half = d[part] / 2
            with torch.no_grad():
                first = direction(self.target, at_t[part], t[part], half, finest, some)
                between = at_t[part] + expand(half, x) * first
                second = direction(self.target, between, t[part] + half, half, finest, some)
            goal = torch.cat([(first + second) / 2, goal[by_halves:]])
        made = direction(network, at_t, t, d, finest, labels)
        return (made - goal).square().flatten(1).mean(1)

    def after_step(self, network: nn.Module, _step: int) -> None:
        """Move the averaged network towards the current one."""
        move_towards(self.target, network, self.recipe.target_ema)


def train(job: TrainJob) -> nn.Module:
    """Train from random weights."""
    recipe: ShortcutRecipe = job.recipe
    network = job.new_network()
    target = copy.deepcopy(network).requires_grad_(False).to(job.device).eval()
    return job.fit(network, ShortcutObjective(recipe, target), recipe.fit)


def sampler(model: Model, recipe: ShortcutRecipe, nfe: int) -> "Sampler":
    """``nfe`` equal steps from noise to data (Algorithm 2); float64, returns float32."""

    def sample(noise: Tensor, labels: Tensor | None, _rng: object) -> Tensor:
        x = noise.double()
        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        for k in range(nfe):
            x = x + direction(model.network, x, k / nfe * ones, ones / nfe, recipe.finest, labels) / nfe
        return x.float()

    return sample


def refuses(nfe: int, recipe: ShortcutRecipe) -> str | None:
    """Steps are powers of two up to the smallest trained one."""
    if nfe <= recipe.finest and nfe & (nfe - 1) == 0:
        return None
    return f"a shortcut model takes powers of two up to {recipe.finest} (shortcut.finest)"


SHORTCUT = Method(
    name="shortcut",
    label="Shortcut",
    group=DIRECT,
    reference="Frans et al., 2024",
    summary="a flow conditioned on its step size, trained so that one step leads where two halves do",
    recipe=ShortcutRecipe,
    sampler=sampler,
    train=train,
    refuses=refuses,
    nfes=(1, 2, 4),
    network=lambda _recipe: {"conditions": 2},
    paper="arXiv:2410.12557",
    differs="the network is the data set's U-Net or MLP where the paper's is a DiT, in pixels and not in latents; "
    "Adam without weight decay; half-steps are not clipped; no guidance",
)
