"""Kernel Inception Distance (Binkowski et al. 2018): squared MMD of the kernel (x·y / D + 1)³."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cmbench.errors import UsageError
from cmbench.metrics.moments import Array, Float64, as_features, require_finite

Kernel = Callable[[Float64], Float64]


def kid(
    samples: object, reference: object, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) of the unbiased estimate over random subsets (torch-fidelity).

    Each of ``subsets`` draws takes ``size`` vectors without replacement from ``samples`` [N, D] and as many
    from ``reference`` [M, D]. Products are of the features' own type, powers and sums in float64.

    Raises:
        UsageError: fewer vectors than ``size``, or unlike dimensions.
        WorkError: values that are not finite.
    """
    x, y = _pair(samples, reference)
    if min(len(x), len(y)) < size:
        raise UsageError(f"KID subsets of {size} need as many vectors, there are {len(x)} and {len(y)}")
    kernel = _cubic(x.shape[1])
    random = np.random.RandomState(seed)  # the legacy generator: the published subsets are drawn with it
    values = []
    for _ in range(subsets):
        a = x[random.choice(len(x), size, replace=False)]
        b = y[random.choice(len(y), size, replace=False)]
        within = kernel_sum(a, a, kernel) + kernel_sum(b, b, kernel)
        values.append(within / (size * (size - 1)) - 2 * kernel_sum(a, b, kernel) / size**2)
    return float(np.mean(values)), float(np.std(values))


def kid_unbiased(samples: object, reference: object) -> float:
    """The unbiased estimate from all of ``samples`` [N, D] and ``reference`` [M, D], without subsets.

    Raises as :func:`kid`; each set needs two vectors.
    """
    x, y = _pair(samples, reference)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UsageError(f"an unbiased KID needs two vectors of each kind, there are {n} and {m}")
    kernel = _cubic(x.shape[1])
    within = kernel_sum(x, x, kernel) / (n * (n - 1)) + kernel_sum(y, y, kernel) / (m * (m - 1))
    return float(within - 2 * kernel_sum(x, y, kernel) / (n * m))


def kernel_sum(x: Array, y: Array, kernel: Kernel) -> float:
    """Sum of ``kernel(x_i · y_j)`` over all pairs, by blocks; where ``x is y``, over pairs i != j."""
    total = 0.0
    step = 1024
    for i in range(0, len(x), step):
        for j in range(i if x is y else 0, len(y), step):
            a, b = x[i : i + step], y[j : j + step]
            diagonal = x is y and i == j
            values = kernel((a @ a.T if diagonal else a @ b.T).astype(np.float64))
            part = float(values.sum())
            if diagonal:
                total += part - float(values.trace())
            else:
                total += 2 * part if x is y else part
    return total


def _cubic(dimensions: int) -> Kernel:
    def kernel(products: npt.NDArray[np.float64]) -> Float64:
        products /= dimensions
        products += 1
        return products * products * products

    return kernel


def _pair(samples: object, reference: object) -> tuple[Array, Array]:
    x, y = as_features(samples, "samples"), as_features(reference, "reference")
    if x.shape[1] != y.shape[1]:
        raise UsageError(f"samples of {x.shape[1]} dimensions cannot be compared with {y.shape[1]}")
    require_finite(x)
    require_finite(y)
    return x, y
