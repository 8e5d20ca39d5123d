"""Memorization: samples nearer to a training image than any other training image is (Alaa et al. 2022)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cmbench.errors import UsageError
from cmbench.metrics.distances import neighbours
from cmbench.metrics.moments import Float64
from cmbench.metrics.screening import prepare


@dataclass(frozen=True)
class Memorization:
    """Each sample's nearest training image and what the distance says.

    ``distances`` [N]: Euclidean, in feature space; ``nearest`` [N]: the row of the training image;
    ``authentic`` [N]: whether the training image has a training neighbour that is nearer than the sample.
    """

    distances: Float64
    nearest: npt.NDArray[np.intp]
    authentic: npt.NDArray[np.bool_]

    @property
    def authpct(self) -> float:
        """Percentage of authentic samples, as dgm-eval reports it."""
        return float(100 * self.authentic.mean())

    def closeness(self, train_radii: Float64) -> Float64:
        """Distance [N] to the nearest training image over that image's own to its nearest other; 0 for a copy.

        Below 1 a sample is not authentic. ``train_radii`` as for :func:`memorization`.
        """
        reach = np.sqrt(train_radii[self.nearest])
        ratio = np.full(len(reach), np.inf)
        np.divide(self.distances, reach, out=ratio, where=reach > 0)
        ratio[self.distances == 0] = 0
        return ratio

    @property
    def copied(self) -> float:
        """Share (0..1) of the samples that are not authentic."""
        return float(1 - self.authentic.mean())


def memorization(
    samples: object,
    train: object,
    *,
    train_radii: Float64 | None = None,
    device: str | torch.device = "cpu",
) -> Memorization:
    """Compare ``samples`` [N, D] with the training features [M, D] (arrays or tensors), exactly in float64.

    ``train_radii`` [M]: what :func:`~cmbench.metrics.precision_recall.manifold_radii` gave for ``train``, k =
    1.

    Raises:
        UsageError: unlike dimensions, fewer than two training vectors, radii of another set.
        WorkError: values that are not finite.
    """
    x, y = prepare(samples, train, device=device)
    if train_radii is None:
        train_radii = neighbours(y, y, 1)[0][:, 0]
    if train_radii.shape != (len(y),):
        raise UsageError(f"{list(train_radii.shape)} radii do not belong to a training set of {len(y)}")
    squared, rows = neighbours(x, y, 1)
    nearest = rows[:, 0]
    return Memorization(np.sqrt(squared[:, 0]), nearest, train_radii[nearest] < squared[:, 0])
