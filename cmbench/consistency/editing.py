"""Zero-shot editing with a consistency function (Song et al., 2023, Algorithm 4)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cmbench.consistency.function import ConsistencyModel, NoiseSource
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.operators import Operator
from cmbench.diffusion.preconditioning import expand
from cmbench.errors import UsageError


def editing_levels(model: ConsistencyModel, nfe: int, high: float | None = None) -> tuple[float, ...]:
    """The falling noise levels of ``nfe`` evaluations, from ``high`` (sigma_max where None).

    Evenly spaced points of the grid that the function was trained on, at and below ``high``. Where the grid has too
    few, or every level was trained, those of a Karras grid of nfe + 1 points.

    Raises UsageError where ``high`` is outside the noise range.
    """
    levels = model.levels
    top = levels.sigma_max if high is None else high
    if not levels.sigma_min < top <= levels.sigma_max:
        raise UsageError(
            f"sigma {top}: the network knows noise levels from {levels.sigma_min} to {levels.sigma_max}"
        )
    if model.points is not None:
        below = [s for s in karras_sigmas(levels, model.points).tolist() if levels.sigma_min < s < top]
        if nfe <= len(below) + 1:
            known = [top, *below]
            return tuple(known[k * len(known) // nfe] for k in range(nfe))
    return tuple(karras_sigmas(replace(levels, sigma_max=top), nfe + 1).tolist()[:-1])


@torch.no_grad()
def edit(
    model: ConsistencyModel,
    given: Operator,
    y: Tensor,
    sigmas: Sequence[float],
    rng: NoiseSource,
    labels: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Algorithm 4: images that have the given part of ``y`` and are otherwise the consistency model's.

    Args:
        model: the consistency function.
        given: A and Omega.
        y: [B, C, H, W] in [-1, 1]; only its given part is read.
        sigmas: falling noise levels, one evaluation each.
        rng: one stream of noise per sample.
        labels: [B] or None.
        start: the images that the first noise is added to; by default ``y`` with zeros as its missing part. For
            stroke-guided editing, the stroke painting.

    Returns:
        float64 [B, C, H, W] in [-1, 1], whose given part is that of ``y``. Each estimate is clipped before the given
        part is imposed, as the released code does; after the last one the nearest image that also stays in range is
        taken (:meth:`Operator.finish`), where the paper imposes the given part and lets the file clip it.
    """
    y = y.double()
    known = given.forward(y)
    x = given.impose(known, torch.zeros_like(y)) if start is None else start.double()
    for place, sigma in enumerate(sigmas):
        spread = model.renoising(sigma) if place else sigma
        noisy = x + spread * rng.normal(tuple(x.shape[1:])).to(x)
        estimate = _evaluate(model, noisy, sigma, labels)
        x = given.impose(known, estimate)
    return given.finish(known, x)


@torch.no_grad()
def denoise(
    model: ConsistencyModel,
    noisy: Tensor,
    sigmas: Sequence[float],
    rng: NoiseSource,
    labels: Tensor | None = None,
) -> Tensor:
    """``f(noisy, sigma)``, and for each further level re-noising and another evaluation (Algorithm 1 from there on).

    ``noisy`` is a clean image in [-1, 1] plus noise of standard deviation ``sigmas[0]``. Returns float64 [B, C, H, W].
    """
    x = _evaluate(model, noisy.double(), sigmas[0], labels)
    for sigma in sigmas[1:]:
        renoised = x + model.renoising(sigma) * rng.normal(tuple(x.shape[1:])).to(x)
        x = _evaluate(model, renoised, sigma, labels)
    return x


def _evaluate(model: ConsistencyModel, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    return model.f(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), labels).clamp(-1, 1)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Spherical interpolation (Song et al., 2023, appendix D): from ``a`` at 0 to ``b`` at 1, each [C, H, W].

    Returns [S, C, H, W] for shares [S]. Vectors of one direction are interpolated in a straight line.
    """
    one, two = a.double(), b.double()
    cosine = (one * two).sum() / (one.norm() * two.norm())
    angle = float(torch.arccos(cosine.clamp(-1, 1)))
    t = expand(share.double(), one[None])
    if math.sin(angle) < 1e-6:
        return (1 - t) * one + t * two
    return (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * two) / math.sin(angle)


@torch.no_grad()
def from_latents(model: ConsistencyModel, latents: Tensor, labels: Tensor | None = None) -> Tensor:
    """``f(T z, T)`` for latents z [B, C, H, W] of unit variance: float64 in [-1, 1]."""
    high = model.levels.sigma_max
    return _evaluate(model, latents.double() * high, high, labels)
