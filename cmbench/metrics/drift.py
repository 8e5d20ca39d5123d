"""Drift: how far the image of one seed moves when the number of evaluations changes (whatever the distance)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmbench.errors import UsageError, WorkError


class Mean(NamedTuple):
    """Mean of the distances of independent samples, and the standard error of that mean."""

    mean: float
    error: float


def mean_distance(distances: npt.ArrayLike) -> Mean:
    """Aggregate distances [N] between two images of each of N independent samples.

    Raises:
        UsageError: fewer than two samples.
        WorkError: values that are not finite.
    """
    values = np.asarray(distances, dtype=np.float64)
    if values.size < 2:
        raise UsageError(f"a mean distance and its error take two samples, not {values.size}")
    if not np.isfinite(values).all():
        raise WorkError(f"{int((~np.isfinite(values)).sum())} of {values.size} distances are not finite")
    return Mean(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))
