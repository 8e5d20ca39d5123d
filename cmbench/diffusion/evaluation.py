"""What the solvers' modules share: evaluations at one noise level of the whole batch, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from cmbench.diffusion.preconditioning import Denoise

Clean = Callable[[Tensor, float], Tensor]
"""``(y [B, C, H, W], sigma) -> estimate of the clean image``; one evaluation of the network."""


def bound(denoise: Denoise, labels: Tensor | None) -> Clean:
    """The denoiser with its labels, called with one noise level for all samples."""

    def clean(y: Tensor, sigma: float) -> Tensor:
        return denoise(y, torch.full((len(y),), sigma, dtype=torch.float64, device=y.device), labels)

    return clean


def start(noise: Tensor, sigmas: Tensor) -> tuple[Tensor, list[float]]:
    """The first y (unit normal ``noise`` times the highest level, float64), and the grid as floats."""
    levels: list[float] = sigmas.tolist()
    return noise.double() * levels[0], levels
