"""The consistency function and its multistep sampling (Song et al., 2023)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import expand, run_network, scaled_input
from cmbench.errors import UsageError


class ConsistencyFunction(nn.Module):
    """``f(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` with ``f(x, sigma_min) = x`` exactly (equation 5).

    c_skip and c_out are EDM's with sigma replaced by sigma - sigma_min where the boundary needs it (appendix C).
    """

    def __init__(self, network: nn.Module, noise: NoiseRange) -> None:
        super().__init__()
        self.network = network
        self.noise = noise

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map ``x`` [B, C, H, W] at noise levels ``sigma`` [B] to the start of its trajectory [B, C, H, W]."""
        sd = self.noise.sigma_data
        sigma = sigma.to(x.dtype)
        above = sigma - self.noise.sigma_min
        c_skip = sd**2 / (above**2 + sd**2)
        c_out = sd * above / torch.sqrt(sigma**2 + sd**2)
        raw = run_network(self.network, x, sigma, labels, scaled_input(sigma, sd))
        return expand(c_skip, x) * x + expand(c_out, x) * raw


Consistency = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(x [B, C, H, W], sigma [B], labels [B] or None) -> clean image [B, C, H, W]``, as ConsistencyFunction."""


@dataclass(frozen=True)
class ConsistencyModel:
    """A consistency function, and what sampling and editing must know of it.

    Attributes:
        f: the function.
        levels: the noise range that it was trained on.
        points: size of the Karras grid that it was trained on; None where it knows every level.
        end: the level that it maps to, the noise that its images are taken to have left. sigma_min where None; 0 for
            functions whose boundary is f(x, 0) = x.
    """

    f: Consistency
    levels: NoiseRange
    points: int | None = None
    end: float | None = None

    def renoising(self, tau: float) -> float:
        """Standard deviation of the noise that takes an image made by ``f`` up to level ``tau``."""
        left = self.levels.sigma_min if self.end is None else self.end
        spread: float = (tau**2 - left**2) ** 0.5
        return spread


class NoiseSource(Protocol):
    """Anything that gives each sample its own fresh unit-normal noise."""

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """The next draw, float32 [B, *shape]."""
        ...


def multistep(
    model: ConsistencyModel,
    noise: Tensor,
    labels: Tensor | None,
    rng: NoiseSource,
    taus: Sequence[float],
) -> Tensor:
    """Multistep consistency sampling (Algorithm 1): one evaluation, then one more per element of ``taus``.

    Args:
        model: the consistency function.
        noise: unit normal, [B, C, H, W].
        labels: [B] or None.
        rng: noise for the re-noising, one stream per sample.
        taus: noise levels, strictly falling, within (sigma_min, sigma_max). Re-noising to tau adds
            ``sqrt(tau^2 - end^2) z``.

    Returns:
        float32 [B, C, H, W], clipped to [-1, 1] (as the released code clips before each re-noising).
    """
    high = model.levels.sigma_max
    ones = torch.ones(len(noise), device=noise.device)
    x = model.f(noise * high, high * ones, labels).clamp(-1, 1)
    for tau in taus:
        x = x + model.renoising(tau) * rng.normal(tuple(noise.shape[1:])).to(x.device)
        x = model.f(x, tau * ones, labels).clamp(-1, 1)
    return x


def check_taus(taus: Sequence[float], levels: NoiseRange) -> None:
    """Raise UsageError unless the re-noising levels fall strictly and lie inside the noise range."""
    inside = all(levels.sigma_min < tau < levels.sigma_max for tau in taus)
    if not inside or any(a <= b for a, b in pairwise(taus)):
        raise UsageError(
            f"taus {list(taus)} must fall strictly within ({levels.sigma_min}, {levels.sigma_max})"
        )


def default_taus(nfe: int, points: int, levels: NoiseRange) -> tuple[float, ...]:
    """Re-noising levels where a recipe names none: ``nfe - 1`` evenly spaced inner points of the training grid.

    A consistency function knows only the levels it was trained on, the Karras grid of ``points`` points; between
    them it is an interpolation. Raises UsageError where the grid has too few.
    """
    if nfe > points - 1:
        raise UsageError(f"a grid of {points} points has levels for at most {points - 1} evaluations")
    sigmas = karras_sigmas(levels, points).tolist()
    return tuple(sigmas[k * (points - 1) // nfe] for k in range(1, nfe))
