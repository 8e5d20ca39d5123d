"""The diffusions of Score SDE (Song et al., 2021, arXiv 2011.13456) in continuous time, t from 0 to 1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmbench.errors import UsageError


@dataclass(frozen=True)
class VarianceExploding:
    """x(t) = clean + sigma(t) z with sigma rising geometrically (their section 3.4).

    The paper's levels, 0.01 to 50, are for images in [0, 1]; for [-1, 1] they double.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UsageError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max}: need 0 < min < max")

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at times ``t``."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@dataclass(frozen=True)
class VariancePreserving:
    """x(t) = scale(t) (clean + sigma(t) z): dx = -beta x / 2 dt + sqrt(beta) dw, beta linear in t (appendix B)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        """The rate at times ``t``."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, relative to the signal, at times ``t``."""
        return torch.sqrt(torch.expm1((self.beta_max - self.beta_min) / 2 * t**2 + self.beta_min * t))

    def scale(self, t: Tensor) -> Tensor:
        """The factor of the clean image at times ``t``."""
        return torch.exp(-((self.beta_max - self.beta_min) / 4 * t**2 + self.beta_min / 2 * t))


def geometric(high: float, low: float, n: int) -> Tensor:
    """``n`` levels from ``high`` to ``low`` of constant ratio; float64 [n]. One level alone is ``high``."""
    levels = torch.exp(torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64))
    levels[0] = high
    if n > 1:
        levels[-1] = low
    return levels
