"""Improved precision and recall (Kynkäänniemi et al. 2019): the share of each set in the other's manifold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cmbench.errors import UsageError
from cmbench.metrics.distances import Balls, neighbours
from cmbench.metrics.moments import Float64
from cmbench.metrics.screening import cross_blocks, prepare


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1, and the flags that they are the means of.

    ``precise`` [N]: the sample lies in the reference manifold; ``recalled`` [M]: the reference image lies in
    the sample manifold.
    """

    precise: npt.NDArray[np.bool_]
    recalled: npt.NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of the samples inside the reference manifold."""
        return float(self.precise.mean())

    @property
    def recall(self) -> float:
        """Share of the reference inside the sample manifold."""
        return float(self.recalled.mean())


def manifold_radii(features: object, *, k: int = 3, device: str | torch.device = "cpu") -> Float64:
    """Squared distance [N] of every row of features [N, D] to its ``k``-th nearest other row, in float64.

    These depend on one set alone and can be kept with a reference. Raises UsageError for k >= N.
    """
    (points,) = prepare(features, device=device)
    radii: Float64 = neighbours(points, points, k)[0][:, -1]
    return radii


def precision_recall(
    samples: object,
    reference: object,
    *,
    k: int = 3,
    reference_radii: Float64 | None = None,
    device: str | torch.device = "cpu",
) -> PrecisionRecall:
    """Precision and recall of ``samples`` [N, D] against ``reference`` [M, D] (arrays or tensors).

    A set's manifold is the union of the balls around its members that reach to their ``k``-th nearest other
    member, boundary included. Each block of the N x M distances serves both figures. The flags are those of a
    direct float64 computation on the given features, whatever the device or its arithmetic.

    ``reference_radii``: what :func:`manifold_radii` gave for this reference and this ``k``.

    Raises:
        UsageError: unlike dimensions, ``k`` not below the number of vectors, radii of another reference.
        WorkError: values that are not finite.
    """
    x, y = prepare(samples, reference, device=device)
    sample_radii = neighbours(x, x, k)[0][:, -1]
    if reference_radii is None:
        reference_radii = neighbours(y, y, k)[0][:, -1]
    if reference_radii.shape != (len(y),):
        raise UsageError(f"{list(reference_radii.shape)} radii do not belong to a reference of {len(y)}")
    precise = Balls(y, reference_radii, x, counts=False)
    recalled = Balls(x, sample_radii, y, counts=False)
    for rows, columns, s in cross_blocks(x, y):
        precise.look(s, columns, rows, turned=True)
        recalled.look(s, rows, columns)
    precise.resolve()
    recalled.resolve()
    return PrecisionRecall(precise.inside > 0, recalled.inside > 0)
