"""Consistency learnt from data alone, as later work does it: no target network, the levels of a pair drawn freely.

Shared by iCT (Song & Dhariwal, 2023, arXiv 2310.14189) and ECT (Geng et al., 2024, arXiv 2406.14548).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cmbench.consistency.distance import Distance
from cmbench.consistency.function import Consistency
from cmbench.consistency.training import Count
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import expand
from cmbench.training.batches import on_device

Pairs = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""``(count, training step, rng) -> noise levels r < t``, float32 [count] each, on the device of ``rng``."""


class PairObjective:
    """``d(f(x + t z, t), stopgrad f(x + r z, r)) / (t - r)`` with the same noise z and the same dropout masks.

    Args:
        function: makes the consistency function of a network.
        distance: d.
        pairs: draws r and t. Where r is 0 the goal is the image itself.
    """

    def __init__(
        self, function: Callable[[nn.Module], Consistency], distance: Distance, pairs: Pairs
    ) -> None:
        self.function, self.distance, self.pairs = function, distance, pairs
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]; all draws (levels, noise) come from ``rng``."""
        low, high = self.pairs(len(x), step, rng)
        z = torch.randn(x.shape, device=x.device, generator=rng)
        f = self.function(network)
        # Leaving the fork puts the global generator back, so the second evaluation drops what the first one did.
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.no_grad():
            # A network's noise input has no value at 0; there f(x, 0) = x needs none.
            goal = f(x + expand(low, x) * z, torch.where(low > 0, low, high), labels)
            goal = torch.where(expand(low, x) > 0, goal, x)
        made = f(x + expand(high, x) * z, high, labels)
        return self.distance(made, goal) / (high - low)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def doubling_points(s0: int, s1: int, steps: int) -> Count:
    """N(k) of iCT (section 3.4): s0 + 1 grid points, the intervals doubled at equal distances until there are s1."""
    spell = max(1, steps // (int(math.log2(s1 // s0)) + 1))
    return lambda k: min(s0 * 2 ** (k // spell), s1) + 1


def interval_probabilities(ascending: Tensor, log_mean: float, log_std: float) -> Tensor:
    """How often iCT trains each interval of a rising grid [N] (section 3.5): float64 [N - 1], sums to 1.

    Proportional to the mass that the log-normal distribution of noise levels has in the interval.
    """
    edges = torch.erf((ascending.double().log() - log_mean) / (math.sqrt(2) * log_std))
    mass = edges.diff()
    return mass / mass.sum()


def grid_pairs(noise: NoiseRange, points: Count, log_mean: float, log_std: float) -> Pairs:
    """iCT: neighbours on the Karras grid of ``points(step)`` points, drawn with a discretised log-normal."""

    def draw(count: int, step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        ascending = karras_sigmas(noise, points(step)).flip(0)
        shares = on_device(interval_probabilities(ascending, log_mean, log_std), rng.device)
        index = torch.multinomial(shares, count, replacement=True, generator=rng)
        ascending = on_device(ascending.float(), rng.device)
        return ascending[index], ascending[index + 1]

    return draw


def earlier_level(t: Tensor, stage: int, q: float, k: float, b: float) -> Tensor:
    """ECT's r(t) in a stage (their equation 14): ``t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))``, at least 0."""
    return (t * (1 - (1 + k * torch.sigmoid(-b * t)) / q ** (stage + 1))).clamp(min=0)


def tuning_pairs(log_mean: float, log_std: float, doubling: int, q: float, k: float, b: float) -> Pairs:
    """ECT: t log-normal, r closer to t in each stage of ``doubling`` steps."""

    def draw(count: int, step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.exp(log_mean + log_std * torch.randn(count, device=rng.device, generator=rng))
        return earlier_level(t, step // doubling, q, k, b), t

    return draw
