"""Consistency distillation (Algorithm 2) and consistency training (Algorithm 3) as training objectives."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cmbench.consistency.distance import Distance
from cmbench.consistency.function import ConsistencyFunction
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise, expand
from cmbench.diffusion.solvers import Step
from cmbench.training.batches import on_device
from cmbench.training.loop import move_towards

Count = Callable[[int], int]
Decay = Callable[[int], float]
Weighting = Callable[[Tensor, float], Tensor]


def uniform_weight(sigma: Tensor, _sigma_data: float) -> Tensor:
    """lambda = 1, the paper's choice: float [B]."""
    return torch.ones_like(sigma)


def karras_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda = (sigma^2 + sd^2) / (sigma sd)^2, EDM's: the raw network's error counts the same at every level.

    With lambda = 1 the low levels, which anchor all others, hardly count: c_out^2 vanishes towards sigma_min.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def karras_root_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """The root of EDM's weight: what it does for a squared distance, this does for one of degree one, such as l1."""
    return karras_weight(sigma, sigma_data).sqrt()


WEIGHTINGS: dict[str, Weighting] = {
    "uniform": uniform_weight,
    "karras": karras_weight,
    "karras-sqrt": karras_root_weight,
}


class ConsistencyObjective:
    """``lambda d(f(x_{n+1}, t_{n+1}), stopgrad f_target(x_n, t_n))`` with n uniform over the grid's intervals.

    With a ``teacher`` and a solver ``step``, x_n is one solver step from x_{n+1} (distillation); without, both
    are the same image plus the same noise at two levels (training).

    Args:
        noise: the noise range.
        distance: d.
        points: number of grid points N at a training step.
        target_ema: mu at a training step, the decay of the target network; 0 is the stop-gradient of the
            current parameters.
        target: a copy of the initial network that becomes the target, or None where mu is always 0.
        teacher: the denoiser to follow, or None.
        step: the ODE step, needed with a teacher.
        weighting: lambda(t_{n+1}).
    """

    def __init__(
        self,
        noise: NoiseRange,
        distance: Distance,
        points: Count,
        target_ema: Decay,
        target: nn.Module | None = None,
        teacher: Denoise | None = None,
        step: Step | None = None,
        weighting: Weighting = uniform_weight,
    ) -> None:
        self.noise, self.distance, self.points, self.target_ema = noise, distance, points, target_ema
        self.target, self.teacher, self.step, self.weighting = target, teacher, step, weighting
        self.modules: Mapping[str, nn.Module] = {} if target is None else {"target": target}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]; all draws (interval, noise) come from ``rng``."""
        n = self.points(step)
        ascending = on_device(karras_sigmas(self.noise, n).flip(0).to(x.dtype), x.device)
        index = torch.randint(n - 1, (len(x),), device=x.device, generator=rng)
        low, high = ascending[index], ascending[index + 1]
        z = torch.randn(x.shape, device=x.device, generator=rng)
        at_high = x + expand(high, x) * z
        with torch.no_grad():
            if self.teacher is not None and self.step is not None:
                at_low = self.step(self.teacher, at_high, high, low, labels)
            else:
                at_low = x + expand(low, x) * z
            target = self.target if self.target is not None else network
            goal = ConsistencyFunction(target, self.noise)(at_low, low, labels)
        made = ConsistencyFunction(network, self.noise)(at_high, high, labels)
        return self.weighting(high, self.noise.sigma_data) * self.distance(made, goal)

    def after_step(self, network: nn.Module, step: int) -> None:
        """Move the target network towards the current one."""
        if self.target is not None:
            move_towards(self.target, network, self.target_ema(step))


def adaptive_points(s0: int, s1: int, steps: int) -> Count:
    """N(k) of consistency training (appendix C): from s0 to s1 + 1 grid points over ``steps``."""

    def points(k: int) -> int:
        return math.ceil(math.sqrt(k / steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1

    return points


def adaptive_decay(mu0: float, s0: int, points: Count) -> Decay:
    """mu(k) = exp(s0 ln(mu0) / N(k)) of consistency training (appendix C)."""
    return lambda k: math.exp(s0 * math.log(mu0) / points(k))
