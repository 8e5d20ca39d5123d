"""CMMD (Jayasumana et al. 2024): squared MMD of CLIP embeddings under a Gaussian kernel, times 1000."""

import numpy as np

from cmbench.errors import UsageError
from cmbench.metrics.kid import kernel_sum
from cmbench.metrics.moments import Float64, as_features, require_finite


def cmmd(samples: object, reference: object, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """``scale * MMD²`` of embeddings [N, D] and [M, D], each row brought to unit length first.

    The biased estimate of the authors' program: means over all pairs, each vector with itself included. Unit
    vectors lie within 2 of each other, so that kernel values are all near one; they are kept as their
    difference from one, in float64.

    Raises:
        UsageError: unlike dimensions, no vectors, or a vector of length zero.
        WorkError: values that are not finite.
    """
    x, y = _unit(samples, "samples"), _unit(reference, "reference")
    if x.shape[1] != y.shape[1]:
        raise UsageError(f"samples of {x.shape[1]} dimensions cannot be compared with {y.shape[1]}")

    def kernel(cosines: Float64) -> Float64:
        result: Float64 = np.expm1((cosines - 1) / sigma**2)  # |a - b|² = 2 - 2 a·b
        return result

    n, m = len(x), len(y)  # a vector with itself adds expm1(0) = 0 to the sums
    within = kernel_sum(x, x, kernel) / n**2 + kernel_sum(y, y, kernel) / m**2
    return scale * (within - 2 * kernel_sum(x, y, kernel) / (n * m))


def _unit(vectors: object, name: str) -> Float64:
    features = as_features(vectors, name).astype(np.float64)
    require_finite(features)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not norms.all() or len(features) == 0:
        raise UsageError(f"CMMD {name} must be vectors of some length")
    unit: Float64 = features / norms
    return unit
