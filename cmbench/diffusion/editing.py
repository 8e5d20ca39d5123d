"""Editing with a diffusion model, the baseline: the given part is put back at every noise level."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmbench.diffusion.evaluation import Clean, bound
from cmbench.diffusion.operators import Operator
from cmbench.diffusion.preconditioning import Denoise

if TYPE_CHECKING:
    from cmbench.consistency.function import NoiseSource


def _noise(rng: "NoiseSource", like: Tensor) -> Tensor:
    return rng.normal(tuple(like.shape[1:])).to(like)


def _first(given: Operator, known: Tensor, y: Tensor, start: Tensor | None) -> Tensor:
    return given.impose(known, torch.zeros_like(y)) if start is None else start.double()


def _step(clean: Clean, x: Tensor, sigma: float, following: float, *, heun: bool) -> Tensor:
    """One step of the probability-flow ODE between two positive levels, in either direction."""
    slope = (x - clean(x, sigma)) / sigma
    ahead = x + (following - sigma) * slope
    if not heun:
        return ahead
    return x + (following - sigma) * (slope + (ahead - clean(ahead, following)) / following) / 2


@torch.no_grad()
def replacement(
    denoise: Denoise,
    given: Operator,
    y: Tensor,
    sigmas: Tensor,
    rng: "NoiseSource",
    labels: Tensor | None = None,
    start: Tensor | None = None,
    *,
    heun: bool = False,
) -> Tensor:
    """The probability-flow ODE, with the given part of ``y`` under fresh noise put in at every level.

    Score SDE's imputation (Song et al., 2021, appendix I.2) in EDM's variables. Euler's steps are DDIM's and cost one
    evaluation; Heun's cost two. The step to zero is Euler's: n levels cost n evaluations, or 2 n - 1.

    Args:
        denoise: the denoiser.
        given, y, rng, labels, start: as in :func:`cmbench.consistency.editing.edit`. Where nothing is given and
            ``start`` is a stroke painting this is SDEdit (Meng et al., 2022) on the ODE.
        sigmas: falling noise levels, float64 [n].
        heun: Heun's steps.

    Returns:
        float64 [B, C, H, W] in [-1, 1], whose given part is that of ``y``.
    """
    clean, levels = bound(denoise, labels), sigmas.tolist()
    y = y.double()
    known = given.forward(y)
    x = _first(given, known, y, start) + levels[0] * _noise(rng, y)
    for sigma, following in pairwise(levels):
        x = _step(clean, x, sigma, following, heun=heun)
        x = given.impose(given.forward(y + following * _noise(rng, y)), x)
    return given.finish(known, given.impose(known, clean(x, levels[-1]).clamp(-1, 1)))


@torch.no_grad()
def repaint(
    denoise: Denoise,
    given: Operator,
    y: Tensor,
    sigmas: Tensor,
    rng: "NoiseSource",
    labels: Tensor | None = None,
    start: Tensor | None = None,
    *,
    passes: int = 4,
) -> Tensor:
    """RePaint (Lugmayr et al., 2022, Algorithm 1) in EDM's variables: each ancestral step is taken ``passes`` times.

    One pass is the plain stochastic sampler with the given part put back. Between more passes the result is noised back
    to the step's first level, which lets the made part agree with the given one. n levels cost ``passes (n - 1) + 1``
    evaluations. Arguments as in :func:`replacement`.
    """
    clean, levels = bound(denoise, labels), sigmas.tolist()
    y = y.double()
    known = given.forward(y)
    x = _first(given, known, y, start) + levels[0] * _noise(rng, y)
    for sigma, following in pairwise(levels):
        ratio = following / sigma
        for number in range(passes):
            # The posterior of x at the lower level given the one above and the clean image (DDPM, equation 7).
            mean = ratio**2 * x + (1 - ratio**2) * clean(x, sigma)
            lower = mean + following * (1 - ratio**2) ** 0.5 * _noise(rng, y)
            lower = given.impose(given.forward(y + following * _noise(rng, y)), lower)
            again = number + 1 < passes
            x = lower + (sigma**2 - following**2) ** 0.5 * _noise(rng, y) if again else lower
    return given.finish(known, given.impose(known, clean(x, levels[-1]).clamp(-1, 1)))


@torch.no_grad()
def encode(denoise: Denoise, x: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """The latents of images: the probability-flow ODE followed upwards, the images taken to be at the lowest level.

    Args:
        denoise: the denoiser.
        x: [B, C, H, W] in [-1, 1].
        sigmas: rising noise levels, float64 [n]; Heun's steps, 2 (n - 1) evaluations.
        labels: [B] or None.

    Returns:
        float64 [B, C, H, W], of about unit variance: the solution at the highest level over that level.
    """
    clean, levels = bound(denoise, labels), sigmas.tolist()
    x = x.double()
    for sigma, following in pairwise(levels):
        x = _step(clean, x, sigma, following, heun=True)
    latents: Tensor = x / levels[-1]
    return latents
