"""Fréchet distance between Gaussians: FID (Heusel et al. 2017, eq. 6) and every distance of its kind."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpstrf, dsygst

from cmbench.errors import UsageError, WorkError

Float64 = npt.NDArray[np.float64]


def frechet_distance(mu1: Float64, sigma1: Float64, mu2: Float64, sigma2: Float64) -> float:
    """``|mu1 - mu2|² + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^½)`` for means [D] and covariances [D, D].

    The trace of the root is the sum of the roots of the eigenvalues of ``Lᵀ sigma2 L``, ``sigma1 = L Lᵀ``:
    a symmetric problem, so that no complex number arises and nothing is discarded. A pivoted Cholesky factor
    is cheaper than a matrix root, and cuts a covariance of n < D samples down to its n - 1 dimensions, where
    the zeros that rounding would turn into roots of 1e-8 do not exist.

    Raises:
        UsageError: unlike shapes.
        WorkError: values that are not finite, or a matrix that is no covariance.
    """
    mu1, mu2, sigma1, sigma2 = (np.asarray(a, dtype=np.float64) for a in (mu1, mu2, sigma1, sigma2))
    if mu1.ndim != 1 or mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == (mu1.size, mu1.size):
        shapes = ", ".join(str(list(a.shape)) for a in (mu1, sigma1, mu2, sigma2))
        raise UsageError(f"two means [D] and two covariances [D, D] are needed, not {shapes}")
    shift = mu1 - mu2
    trace = np.trace(sigma1) + np.trace(sigma2) - 2 * _trace_of_root(sigma1, sigma2)
    distance = float(shift @ shift + trace)
    if not np.isfinite(distance):
        raise WorkError("the means or covariances are not finite")
    return max(distance, 0.0)  # it is never negative; rounding may say so for equal Gaussians


def _trace_of_root(sigma1: Float64, sigma2: Float64) -> float:
    """Trace of the principal root of ``sigma1 sigma2``."""
    rank, values = _product_spectrum(sigma1, sigma2)
    if rank and values[0] <= rank * np.finfo(float).eps * values[-1]:
        # The smallest eigenvalues drown in rounding: perhaps the other matrix has the lower rank.
        rank2 = dpstrf(sigma2.T, lower=1)[2]
        if rank2 < rank:
            values = _product_spectrum(sigma2, sigma1)[1]
    return float(np.sqrt(np.maximum(values, 0)).sum())


def _product_spectrum(sigma1: Float64, sigma2: Float64) -> tuple[int, Float64]:
    """Rank r of ``sigma1`` and the r eigenvalues, ascending, of ``sigma1 sigma2`` that it leaves nonzero."""
    cholesky, order = _pivoted_cholesky(sigma1)
    rank = cholesky.shape[1]
    if rank == 0:
        return 0, np.zeros(0)
    permuted = sigma2[np.ix_(order, order)]
    if rank == len(sigma1):
        product, _ = dsygst(
            permuted.T, cholesky, itype=2, lower=1, overwrite_a=1
        )  # the lower triangle of Lᵀ A L
    else:
        lower = np.tril(cholesky)
        product = lower.T @ (permuted @ lower)
    return rank, eigvalsh(product, lower=True, overwrite_a=True, driver="evd")


def covariance_factor(sigma: Float64) -> Float64:
    """``F`` [D, r] with ``F Fᵀ = sigma`` and r the rank of ``sigma`` [D, D]. Raises WorkError as below."""
    cholesky, order = _pivoted_cholesky(sigma)
    factor = np.empty(cholesky.shape)
    factor[order] = np.tril(cholesky)
    return factor


def _pivoted_cholesky(sigma: Float64) -> tuple[Float64, npt.NDArray[np.intp]]:
    """``L`` [D, r], valid on and below its diagonal, and an order [D] with ``sigma[order][:, order] = L Lᵀ``.

    Pivots below D * eps times the largest variance are taken as zero. Raises WorkError where ``sigma`` is not
    finite, not symmetric or has a negative variance.
    """
    variances = np.diagonal(sigma)
    if not np.isfinite(sigma.sum()):
        raise WorkError("a covariance matrix is not finite")
    scale = np.abs(variances).max(initial=0.0)
    if variances.min(initial=0.0) < 0 or np.abs(sigma - sigma.T).max(initial=0.0) > 1e-5 * scale:
        raise WorkError("a covariance matrix is not symmetric with variances of zero or more")
    if scale == 0:
        return np.zeros((len(sigma), 0)), np.arange(len(sigma))
    factor, pivots, rank, _ = dpstrf(sigma.T, lower=1)
    return factor[:, :rank], pivots.astype(np.intp) - 1
