"""Grids of noise levels."""

import torch
from torch import Tensor

from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError


def karras_sigmas(noise: NoiseRange, n: int) -> Tensor:
    """The Karras grid of ``n`` noise levels, falling from sigma_max to sigma_min (EDM, equation 5).

    Returns float64 [n]; for n = 1 the single level is sigma_max. Raises UsageError for n < 1.
    """
    if n < 1:
        raise UsageError(f"a grid needs at least one point, not {n}")
    if n == 1:
        return torch.tensor([noise.sigma_max], dtype=torch.float64)
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    high, low = noise.sigma_max ** (1 / noise.rho), noise.sigma_min ** (1 / noise.rho)
    sigmas: Tensor = (high + ramp * (low - high)) ** noise.rho
    # The ends exactly: a root and a power do not cancel in the last bits, and f(x, sigma_min) = x needs them to.
    sigmas[0], sigmas[-1] = noise.sigma_max, noise.sigma_min
    return sigmas
