"""FID without its bias from the number of samples (Chong and Forsyth 2020)."""

from dataclasses import dataclass

import numpy as np

from cmbench.errors import UsageError
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.moments import Float64, Moments, as_features


@dataclass(frozen=True)
class Extrapolation:
    """The line ``distance = value + slope / N`` through the distances [P] at the sample sizes [P]."""

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def fid_infinity(
    features: object, mu: Float64, sigma: Float64, *, points: int = 15, smallest: int = 5000, seed: int = 0
) -> Extrapolation:
    """Extrapolate the Fréchet distance of ``features`` [N, D] to a reference ``mu`` [D], ``sigma`` [D, D].

    The first samples of one seeded shuffle, at ``points`` evenly spaced sizes from ``smallest`` to N, are
    fitted by least squares in 1/N. The sets are nested: each sample enters the moments once, and the points
    are not independent, so that the fit has no standard error of its own. The reference's own bias stays.

    Raises:
        UsageError: N not above ``smallest``, fewer than two points, or sizes below D, where the distance does
        not
            follow 1/N.
        WorkError: values that are not finite.
    """
    x = as_features(features)
    n, dimensions = x.shape
    if not dimensions < smallest < n:
        raise UsageError(f"FID∞ needs D < smallest < N, not {dimensions} < {smallest} < {n}")
    if points < 2:
        raise UsageError(f"a line needs two points, not {points}")
    order = np.random.default_rng(seed).permutation(n)
    sizes = np.unique(np.linspace(smallest, n, points).astype(int))
    moments, distances, start = Moments(dimensions), [], 0
    for size in sizes:
        for first in range(start, size, 4096):
            moments.update(x[order[first : min(first + 4096, size)]])
        start = size
        distances.append(frechet_distance(moments.mean, moments.covariance(), mu, sigma))
    slope, value = np.polyfit(1 / sizes, distances, 1)
    return Extrapolation(float(value), float(slope), tuple(int(s) for s in sizes), tuple(distances))
