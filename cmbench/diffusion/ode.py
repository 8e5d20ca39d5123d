"""Euler and Heun in the time of any schedule, and EDM's stochastic sampler (Karras et al., 2022)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from cmbench.diffusion.evaluation import Clean, bound, start
from cmbench.diffusion.preconditioning import Denoise
from cmbench.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from cmbench.sampling.seeds import SampleRng


def slope(clean: Clean, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    """``(x, t) -> dx/dt`` of the probability-flow ODE of x = alpha y (EDM, equation 4); one evaluation."""

    def of(x: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        y = x / alpha
        return schedule.alpha_rate(t) * x + alpha * schedule.rate(t) / sigma * (y - clean(y, sigma))

    return of


def solve(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, labels: Tensor | None, schedule: Schedule, *, heun: bool
) -> Tensor:
    """EDM's Algorithm 1 in the time of ``schedule``, down ``sigmas`` [N + 1] of which the last may be 0.

    Heun costs two evaluations a step and one for a step to 0, where its second slope does not exist; Euler costs one.

    Returns y = x / alpha at the last level, float64 [B, C, H, W].
    """
    rate = slope(bound(denoise, labels), schedule)
    y, levels = start(noise, sigmas)
    times = [schedule.time(sigma) for sigma in levels]
    x = schedule.alpha(times[0]) * y
    for t, after in pairwise(times):
        here = rate(x, t)
        ahead = x + (after - t) * here
        x = x + (after - t) * (here + rate(ahead, after)) / 2 if heun and after > 0 else ahead
    return x / schedule.alpha(times[-1])


def churned(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    rng: "SampleRng",
    *,
    churn: float,
    low: float,
    high: float,
    noise_scale: float,
) -> Tensor:
    """EDM's stochastic sampler (Algorithm 2) down ``sigmas`` [N + 1] of which the last may be 0.

    Before a step at a level in [low, high] the noise rises by the factor 1 + min(churn / N, sqrt(2) - 1), with fresh
    noise of standard deviation ``noise_scale``; the step is Heun's.

    Returns y at the last level, float64 [B, C, H, W]. Two evaluations a step, one for a step to 0.
    """
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    rise = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    for s, t in pairwise(levels):
        risen = s
        if rise > 0 and low <= s <= high:
            risen = s * (1 + rise)
            fresh = rng.normal(tuple(y.shape[1:])).double()
            y = y + math.sqrt(risen**2 - s**2) * noise_scale * fresh
        here = (y - clean(y, risen)) / risen
        ahead = y + (t - risen) * here
        y = y + (t - risen) * (here + (ahead - clean(ahead, t)) / t) / 2 if t > 0 else ahead
    return y
