"""Mean and covariance of features, accumulated in float64, batch by batch and shard by shard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dsyrk

from cmbench.errors import UsageError, WorkError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def as_features(features: Any, name: str = "features") -> Array:
    """A torch tensor (any device, any float type) or array of shape [N, D] as a NumPy array on the host.

    float32 and float64 keep their type; anything else becomes float32.

    Raises:
        UsageError: not two-dimensional.
    """
    if hasattr(features, "detach"):  # a torch tensor; this module does not import torch
        features = features.detach().cpu()
        features = (features if features.dtype.itemsize >= 4 else features.float()).numpy()
    array = np.asarray(features)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if array.ndim != 2:
        raise UsageError(f"{name} must have shape [samples, dimensions], not {list(array.shape)}")
    return array


def require_finite(features: Array, first_index: int = 0) -> None:
    """Raise WorkError naming the first sample (``first_index`` + row) whose values are not all finite."""
    if not np.isfinite(features.sum(dtype=np.float64)):  # one cheap pass: a NaN or an infinity survives a sum
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if bad.size:
            raise WorkError(
                f"the features of sample {first_index + int(bad[0])} are not finite ({bad.size} such)"
            )


class Moments:
    """Running mean [D] and sum of centred outer products [D, D] of feature vectors.

    Each batch is centred on its own mean and joined by the rule of Chan, Golub and LeVeque (1979), so that
    large means cost no digits; the shift between the means enters as one more row, which leaves one symmetric
    product (BLAS ``syrk``) per batch. Batch size and merge order change the result by rounding only (about
    1e-14 relative).
    """

    def __init__(self, dimensions: int) -> None:
        self.n = 0
        self.mean: Float64 = np.zeros(dimensions)
        self._m2: Float64 = np.zeros((dimensions, dimensions), order="F")  # lower triangle only

    def update(self, features: Any, first_index: int | None = None) -> None:
        """Add features of shape [B, D] (array or torch tensor).

        ``first_index`` is the sample index of the first row, for messages; by default the number seen so far.

        Raises:
            UsageError: the wrong shape.
            WorkError: a value that is not finite; names the sample.
        """
        batch = as_features(features)
        if batch.shape[1] != self.mean.size:
            raise UsageError(f"features have {batch.shape[1]} dimensions, these moments {self.mean.size}")
        if len(batch) == 0:
            return
        require_finite(batch, self.n if first_index is None else first_index)
        rows = np.empty((len(batch) + 1, self.mean.size))
        mean = batch.mean(axis=0, dtype=np.float64)
        np.subtract(batch, mean, out=rows[:-1])
        self._join(len(batch), mean, rows)

    def _join(self, n: int, mean: Float64, rows: Float64) -> None:
        """Add ``n`` vectors of this mean, whose centred outer products are those of ``rows[:-1]``."""
        shift = mean - self.mean
        total = self.n + n
        rows[-1] = shift * np.sqrt(self.n * n / total)
        self._m2 = dsyrk(1.0, rows.T, beta=1.0, c=self._m2, lower=1, overwrite_c=1)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def merge(self, other: "Moments") -> None:
        """Add everything that ``other`` has seen. Raises UsageError where the dimensions differ."""
        if other.mean.size != self.mean.size:
            raise UsageError(f"cannot merge moments of {other.mean.size} and {self.mean.size} dimensions")
        if other.n:
            self._m2 += other._m2
            self._join(other.n, other.mean, np.empty((1, self.mean.size)))

    def covariance(self, ddof: int = 1) -> Float64:
        """The covariance matrix [D, D], divided by n - ``ddof``. Raises WorkError for too few samples."""
        if self.n <= ddof:
            raise WorkError(f"a covariance needs more than {ddof} samples, there are {self.n}")
        lower = np.tril(self._m2)
        lower += np.tril(lower, -1).T
        lower /= self.n - ddof
        return lower

    def state(self) -> dict[str, Array]:
        """Arrays ``n`` [], ``mean`` [D] and ``m2`` [D, D], to be saved with a shard."""
        return {"n": np.array(self.n), "mean": self.mean.copy(), "m2": np.tril(self._m2)}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> "Moments":
        """Inverse of :meth:`state`. Raises WorkError for a state that is incomplete or of unlike shapes."""
        try:
            n, mean, m2 = int(state["n"]), state["mean"], state["m2"]
        except (KeyError, TypeError, ValueError) as error:
            raise WorkError(f"damaged moments: {error}") from error
        if mean.ndim != 1 or m2.shape != (mean.size, mean.size) or n < 0:
            raise WorkError(f"damaged moments: n {n}, mean {list(mean.shape)}, m2 {list(m2.shape)}")
        moments = cls(mean.size)
        moments.n, moments.mean = n, mean.astype(np.float64)
        moments._m2 = np.asfortranarray(m2, dtype=np.float64).copy(order="F")
        return moments
