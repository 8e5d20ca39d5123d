"""Where the teacher's probability-flow ODE ends, and how far from there a student's samples are.

A distilled student should map noise to the end of the teacher's trajectory. How far it misses is a figure of its
own: FID sees the set of all images, not whether each of them is the right one.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise
from cmbench.diffusion.solvers import heun_step, integrate
from cmbench.errors import UsageError
from cmbench.metrics.moments import Float64

POINTS = 64
"""Points of the Karras grid on which the ODE is solved: 127 evaluations by Heun's method."""

Images = NDArray[np.float32]


def end_point(
    denoise: Denoise, noise: Tensor, labels: Tensor | None, levels: NoiseRange, points: int = POINTS
) -> Tensor:
    """The deterministic solution from ``noise`` (unit normal, [B, C, H, W]): float32 [B, C, H, W].

    Heun's method on a Karras grid of ``points`` points in float64, and a last Euler step from sigma_min to zero (EDM,
    Algorithm 1). Its error falls with the square of ``points``: twice as many move it by 3/4 of it.
    """
    return integrate(denoise, noise, karras_sigmas(levels, points), heun_step, labels)


def root_mean_square(a: Images, b: Images) -> Float64:
    """Distances [N] of float images [N, C, H, W], clipped to [-1, 1] first: root mean square over the values.

    Raises:
        UsageError: images of unlike shapes.
    """
    if a.shape != b.shape:
        raise UsageError(f"images {list(a.shape)} and {list(b.shape)} do not pair up")
    difference = a.clip(-1, 1).astype(np.float64) - b.clip(-1, 1)
    distances: Float64 = np.sqrt(np.square(difference).reshape(len(a), -1).mean(axis=1))
    return distances
