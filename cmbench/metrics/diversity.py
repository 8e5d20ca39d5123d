"""Diversity: the mean distance within pairs of samples, whatever the distance (features, LPIPS)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmbench.errors import UsageError
from cmbench.metrics.distances import squared_distances
from cmbench.metrics.moments import Float64, as_features, require_finite


class Diversity(NamedTuple):
    """Mean of the distances of independent pairs, and the standard error of that mean."""

    mean: float
    error: float


def disjoint_pairs(total: int, seed: int = 0) -> npt.NDArray[np.intp]:
    """``total // 2`` pairs [P, 2] of sample indices from a seeded shuffle, no index in two of them.

    Such pairs are independent, which gives their mean an honest standard error. Raises UsageError below 4
    samples.
    """
    if total < 4:
        raise UsageError(f"diversity needs two pairs of samples, there are {total} samples")
    return np.random.default_rng(seed).permutation(total)[: total // 2 * 2].reshape(-1, 2)


def feature_distances(features: object, pairs: npt.NDArray[np.intp]) -> Float64:
    """Euclidean distances [P] of the ``pairs`` [P, 2] of rows of features [N, D], in float64."""
    x = as_features(features)
    require_finite(x)
    return np.sqrt(squared_distances(x, pairs[:, 0], x, pairs[:, 1]))


def diversity(distances: npt.ArrayLike) -> Diversity:
    """Aggregate the distances [P] of independent pairs. Raises UsageError for fewer than two."""
    values = np.asarray(distances, dtype=np.float64)
    if values.size < 2:
        raise UsageError(f"diversity needs the distances of two pairs, not {values.size}")
    return Diversity(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))
