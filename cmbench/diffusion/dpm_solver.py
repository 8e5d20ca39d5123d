"""DPM-solver (Lu et al., 2022, arXiv 2206.00927): single-step exponential integrators of orders 1 to 3 in lambda.

Written for y = x / alpha, whose ODE is dy/dsigma = epsilon(y), with lambda = -log(sigma). On that scale the factors
alpha drop out of the paper's formulas and sigma_t / alpha_t is sigma.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from cmbench.diffusion.evaluation import Clean, bound, start
from cmbench.diffusion.preconditioning import Denoise


def fast_orders(nfe: int) -> tuple[int, ...]:
    """The orders of DPM-solver-fast: third-order steps, the last ones lower, ``nfe`` in sum."""
    thirds, rest = divmod(nfe, 3)
    if rest:
        return (3,) * thirds + (rest,)
    return (3,) * (thirds - 1) + (2, 1)


def dpm_solver(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, labels: Tensor | None, orders: Sequence[int]
) -> Tensor:
    """Steps of ``orders`` [N] from ``noise`` (unit normal [B, C, H, W]) down ``sigmas`` [N + 1], all positive.

    Costs sum(orders) evaluations. Returns y at the last level, float64 [B, C, H, W].
    """
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    for (s, t), order in zip(pairwise(levels), orders, strict=True):
        y = STEPS[order](clean, y, s, t)
    return y


def first(clean: Clean, y: Tensor, s: float, t: float) -> Tensor:
    """DPM-solver-1, which is DDIM (equation 3.7)."""
    return y + (t - s) * _epsilon(clean, y, s)


def second(clean: Clean, y: Tensor, s: float, t: float) -> Tensor:
    """DPM-solver-2 with r1 = 1/2: the midpoint in lambda (Algorithm 1)."""
    middle = math.sqrt(s * t)
    halfway = y + (middle - s) * _epsilon(clean, y, s)
    return y + (t - s) * _epsilon(clean, halfway, middle)


def third(clean: Clean, y: Tensor, s: float, t: float) -> Tensor:
    """DPM-solver-3 with r1 = 1/3, r2 = 2/3 (Algorithm 2)."""
    r1, r2 = 1 / 3, 2 / 3
    h = math.log(s / t)
    one, two = s * math.exp(-r1 * h), s * math.exp(-r2 * h)
    here = _epsilon(clean, y, s)
    change = _epsilon(clean, y + (one - s) * here, one) - here
    further = y + (two - s) * here - two * r2 / r1 * _phi(r2 * h) * change
    change = _epsilon(clean, further, two) - here
    return y + (t - s) * here - t / r2 * _phi(h) * change


STEPS = {1: first, 2: second, 3: third}


def _epsilon(clean: Clean, y: Tensor, sigma: float) -> Tensor:
    return (y - clean(y, sigma)) / sigma


def _phi(h: float) -> float:
    """(e^h - 1) / h - 1."""
    return math.expm1(h) / h - 1
