"""Density and coverage (Naeem et al. 2020): less moved by outliers than precision and recall."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cmbench.errors import UsageError
from cmbench.metrics.distances import Balls, neighbours
from cmbench.metrics.moments import Float64
from cmbench.metrics.screening import cross_blocks, prepare


@dataclass(frozen=True)
class DensityCoverage:
    """The counts behind both figures.

    ``balls`` [N]: how many reference balls hold each sample; ``occupied`` [M]: how many samples each
    reference ball holds; ``k``: the neighbour that a ball reaches to.
    """

    balls: npt.NDArray[np.int64]
    occupied: npt.NDArray[np.int64]
    k: int

    @property
    def density(self) -> float:
        """Mean number of reference balls around a sample, over ``k``: 0 or more, about 1 for equal sets."""
        return float(self.balls.mean() / self.k)

    @property
    def coverage(self) -> float:
        """Share (0..1) of the reference balls that hold a sample."""
        return float((self.occupied > 0).mean())


def density_coverage(
    samples: object,
    reference: object,
    *,
    k: int = 5,
    reference_radii: Float64 | None = None,
    device: str | torch.device = "cpu",
) -> DensityCoverage:
    """Density and coverage of ``samples`` [N, D] against ``reference`` [M, D] (arrays or tensors).

    A reference ball reaches to the ``k``-th nearest other reference vector, boundary excluded, as in the
    authors' program. The counts are those of a direct float64 computation. ``reference_radii``: what
    :func:`~cmbench.metrics.precision_recall.manifold_radii` gave for this reference and this ``k``.

    Raises:
        UsageError: unlike dimensions, ``k`` not below M, radii of another reference.
        WorkError: values that are not finite.
    """
    x, y = prepare(samples, reference, device=device)
    if reference_radii is None:
        reference_radii = neighbours(y, y, k)[0][:, -1]
    if reference_radii.shape != (len(y),):
        raise UsageError(f"{list(reference_radii.shape)} radii do not belong to a reference of {len(y)}")
    open_radii = np.nextafter(reference_radii, -np.inf)  # d² < r² is d² <= the float before r²
    balls = Balls(y, open_radii, x, counts=True)
    for rows, columns, s in cross_blocks(x, y):
        balls.look(s, columns, rows, turned=True)
    balls.resolve()
    return DensityCoverage(balls.inside, balls.occupied, k)
