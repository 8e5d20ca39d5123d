"""Grids of noise levels."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.schedule import SCHEDULES, Name, Schedule
from cmbench.errors import UsageError

Spacing = Literal["karras", "time", "time-quadratic", "log-snr"]


def karras_sigmas(noise: NoiseRange, n: int) -> Tensor:
    """The Karras grid of ``n`` noise levels, falling from sigma_max to sigma_min (EDM, equation 5).

    Returns float64 [n]; for n = 1 the single level is sigma_max. Raises UsageError for n < 1.
    """
    return spaced_sigmas(noise, n, "karras")


def spaced_sigmas(noise: NoiseRange, n: int, spacing: Spacing, schedule: Schedule | None = None) -> Tensor:
    """``n`` noise levels falling from sigma_max to sigma_min, evenly spaced in some function of sigma.

    - ``karras``: in sigma^(1 / rho) (EDM, equation 5)
    - ``time``: in the time t of ``schedule``
    - ``time-quadratic``: in sqrt(t) (DDIM, appendix D.2; DEIS)
    - ``log-snr``: in lambda = -log(sigma) (DPM-solver)

    ``schedule`` is read where the spacing is in time, and only there.

    Returns float64 [n]; for n = 1 the single level is sigma_max. Raises UsageError for n < 1.
    """
    if n < 1:
        raise UsageError(f"a grid needs at least one point, not {n}")
    if n == 1:
        return torch.tensor([noise.sigma_max], dtype=torch.float64)
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    low, high = noise.sigma_min, noise.sigma_max
    if spacing == "karras":
        sigmas = _between(high ** (1 / noise.rho), low ** (1 / noise.rho), ramp) ** noise.rho
    elif spacing == "log-snr":
        sigmas = torch.exp(_between(math.log(high), math.log(low), ramp))
    else:
        if schedule is None:
            raise ValueError(f"spacing '{spacing}' needs a schedule")
        power = 2 if spacing == "time-quadratic" else 1
        last, first = schedule.time(low) ** (1 / power), schedule.time(high) ** (1 / power)
        times = _between(first, last, ramp) ** power
        sigmas = torch.tensor([schedule.sigma(t) for t in times.tolist()], dtype=torch.float64)
    # The ends exactly: a root and a power do not cancel in the last bits, and f(x, sigma_min) = x needs them to.
    sigmas[0], sigmas[-1] = high, low
    return sigmas


def _between(first: float, last: float, ramp: Tensor) -> Tensor:
    return first + ramp * (last - first)


@dataclass(frozen=True)
class GridRecipe:
    """The grid of a sampler, as part of its recipe; a sampler's own class sets the defaults of its paper.

    Attributes:
        schedule: whose time the spacing is in, and the solver where it works in time.
        spacing: see :func:`spaced_sigmas`.
        sigma_min: where the grid ends; None is the end of the network's noise range.
        to_zero: whether the last step goes on from the grid's end to no noise at all.
    """

    schedule: Name = "edm"
    spacing: Spacing = "karras"
    sigma_min: float | None = None
    to_zero: bool = False

    def levels(self, noise: NoiseRange, steps: int) -> Tensor:
        """Noise levels of ``steps`` steps: float64 [steps + 1], falling from sigma_max."""
        if self.sigma_min is not None:
            noise = replace(noise, sigma_min=self.sigma_min)
        points = steps if self.to_zero else steps + 1
        sigmas = spaced_sigmas(noise, points, self.spacing, SCHEDULES[self.schedule])
        return torch.cat([sigmas, sigmas.new_zeros(1)]) if self.to_zero else sigmas
