"""The discrete diffusion of DDPM (Ho et al., 2020, arXiv 2006.11239) and its ancestral sampler.

In the variables of every denoiser here: x / sqrt(alpha_bar), noise level sigma = sqrt((1 - alpha_bar) / alpha_bar).
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cmbench.diffusion.preconditioning import Denoise, expand
from cmbench.errors import UsageError
from cmbench.sampling.seeds import SampleRng

Variance = Literal["large", "small"]


def linear_sigmas(steps: int = 1000) -> Tensor:
    """Rising noise levels of DDPM's linear schedule, beta from 1e-4 to 0.02 (its section 4): float64 [steps]."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    return torch.sqrt((1 - kept) / kept)


def respaced(sigmas: Tensor, n: int) -> Tensor:
    """``n`` of the rising levels, falling, evenly spaced by index with both ends (one alone is the highest).

    Raises UsageError where there are not so many.
    """
    if not 1 <= n <= len(sigmas):
        raise UsageError(f"there are {len(sigmas)} noise levels, not {n}")
    top = len(sigmas) - 1
    return sigmas[torch.linspace(top, 0, n, dtype=torch.float64).round().long()]


def ancestral_step(
    x: Tensor, clean: Tensor, sigma: Tensor, sigma_next: Tensor, z: Tensor, variance: Variance
) -> Tensor:
    """Draw x at ``sigma_next`` [B] given x at ``sigma`` [B] and the estimate ``clean`` (DDPM, equations 6 and 7).

    ``z`` is unit-normal noise. The variance is the upper or the lower bound of DDPM's section 3.2: ``large`` is beta,
    ``small`` the posterior's.
    """
    high, low = expand(sigma**2, x), expand(sigma_next**2, x)
    mean = clean + low / high * (x - clean)
    scale = (1 + low) / (1 + high) if variance == "large" else low / high
    return mean + torch.sqrt(scale * (high - low)) * z


def ancestral(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    rng: SampleRng,
    variance: Variance,
) -> Tensor:
    """Sample over the falling levels ``sigmas``, one evaluation each; the last gives the clean image, without noise.

    Estimates are clipped to [-1, 1], as DDPM does. Runs in float64; returns float32.
    """
    sigmas = sigmas.to(noise.device)
    x = noise.double() * torch.sqrt(1 + sigmas[0] ** 2)  # unit variance in DDPM's own variables
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for sigma, sigma_next in pairwise(sigmas):
        clean = denoise(x, sigma * ones, labels).clamp(-1, 1)
        z = rng.normal(tuple(x.shape[1:]))
        x = ancestral_step(x, clean, sigma * ones, sigma_next * ones, z, variance)
    return denoise(x, sigmas[-1] * ones, labels).clamp(-1, 1).float()
