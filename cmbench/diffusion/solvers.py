"""Steps of the probability-flow ODE in sigma, ``dx/dsigma = (x - D(x, sigma)) / sigma`` (EDM, equation 1)."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from cmbench.diffusion.preconditioning import Denoise, expand

Step = Callable[[Denoise, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""``(denoise, x [B, C, H, W], sigma [B], sigma_next [B], labels) -> x at sigma_next``."""


def euler_step(
    denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None
) -> Tensor:
    """One Euler step, one evaluation. In sigma this is also the deterministic DDIM step (EDM, section 3)."""
    clean = denoise(x, sigma, labels)
    return clean + expand(sigma_next / sigma, x) * (x - clean)


def heun_step(
    denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None
) -> Tensor:
    """One Heun step (EDM, Algorithm 1), two evaluations; ``sigma_next`` must be positive."""
    slope = (x - denoise(x, sigma, labels)) / expand(sigma, x)
    step = expand(sigma_next - sigma, x)
    predicted = x + step * slope
    slope_next = (predicted - denoise(predicted, sigma_next, labels)) / expand(sigma_next, x)
    return x + step * (slope + slope_next) / 2


STEPS: dict[str, Step] = {"euler": euler_step, "heun": heun_step}


def integrate(denoise: Denoise, noise: Tensor, sigmas: Tensor, step: Step, labels: Tensor | None) -> Tensor:
    """Follow the ODE from ``noise`` (unit normal, [B, C, H, W]) down the grid ``sigmas`` and on to zero.

    The last step, from the grid's end to zero, is an Euler step: there Heun's second slope does not exist. Over
    N grid points Euler costs N evaluations and Heun 2N - 1. Runs in float64, as EDM's sampler does; returns float32.
    """
    sigmas = sigmas.to(noise.device, torch.float64)
    x = noise.double() * sigmas[0]
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for sigma, sigma_next in pairwise(sigmas):
        x = step(denoise, x, sigma * ones, sigma_next * ones, labels)
    return denoise(x, sigmas[-1] * ones, labels).float()
