"""DEIS (Zhang & Chen, 2022, arXiv 2204.13902): multistep exponential integrators, and Adams-Bashforth among them."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from cmbench.diffusion.evaluation import bound, start
from cmbench.diffusion.preconditioning import Denoise

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def deis(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    points: int,
    clock: Callable[[float], float],
) -> Tensor:
    """Solve dy/dsigma = epsilon(y) with epsilon extrapolated as a polynomial in ``clock(sigma)`` (equations 14, 15).

    On y = x / alpha the paper's coefficients are integrals over sigma of Lagrange polynomials. ``clock`` chooses the
    scheme: the time of a schedule is their tAB, sigma their rhoAB (Adams-Bashforth in sigma; also known as LMS).

    Args:
        denoise: the denoiser.
        noise: unit normal [B, C, H, W].
        sigmas: falling noise levels [N + 1]; the last may be 0.
        labels: class labels [B] or None.
        points: evaluations that the polynomial goes through, one more than its degree; the first steps have fewer.
        clock: monotonic function of sigma.

    Returns:
        y at the last level, float64 [B, C, H, W]. N evaluations.
    """
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    slopes: list[Tensor] = []  # the latest first
    for i, s in enumerate(levels[:-1]):
        slopes = [(y - clean(y, s)) / s, *slopes[: points - 1]]
        known = [clock(levels[i - k]) for k in range(len(slopes))]
        for weight, slope in zip(coefficients(s, levels[i + 1], known, clock), slopes, strict=True):
            y = y + weight * slope
    return y


def coefficients(s: float, t: float, known: Sequence[float], clock: Callable[[float], float]) -> list[float]:
    """Integrals from ``s`` to ``t`` over sigma of the Lagrange polynomials in clock(sigma) through ``known``.

    By Gauss-Legendre quadrature with 32 points.
    """
    at = np.array([clock(s + (t - s) * (node + 1) / 2) for node in _NODES])
    values = []
    for j, own in enumerate(known):
        basis = np.ones_like(at)
        for k, other in enumerate(known):
            if k != j:
                basis *= (at - other) / (own - other)
        values.append(float((t - s) / 2 * (_WEIGHTS @ basis)))
    return values
