"""DPM-solver++ (Lu et al., 2022, arXiv 2211.01095): multistep exponential integrators of the clean image in lambda.

Written for y = x / alpha and lambda = -log(sigma), as :mod:`cmbench.diffusion.dpm_solver` is. One evaluation a step.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cmbench.diffusion.evaluation import bound, start
from cmbench.diffusion.preconditioning import Denoise

if TYPE_CHECKING:
    from cmbench.sampling.seeds import SampleRng


def dpm_solver_pp(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    order: int,
    rng: "SampleRng | None" = None,
    *,
    lower_final: bool = True,
    released: bool = False,
) -> Tensor:
    """Solve from ``noise`` (unit normal [B, C, H, W]) down ``sigmas`` [N + 1]; N evaluations.

    Args:
        denoise: the denoiser.
        noise: unit normal [B, C, H, W].
        sigmas: falling noise levels [N + 1]; the last may be 0, where the step is the denoised image.
        labels: class labels [B] or None.
        order: 1 to 3: of the polynomial through the last denoised images, plus one. The first steps have fewer.
        rng: given, the steps solve the diffusion SDE instead of its ODE (SDE-DPM-solver++, orders 1 and 2).
        lower_final: whether the last steps are of lower order.
        released: at order 3, half the weight of the second derivative, as the authors' code (and those that follow
            it) has; that is of second order.

    Returns:
        y at the last level, float64 [B, C, H, W].
    """
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    steps = len(levels) - 1
    half = 0.5 if released else 1.0
    images: list[Tensor] = []
    for i in range(steps):
        s, t = levels[i], levels[i + 1]
        images = [*images[-2:], clean(y, s)]
        if t == 0:
            return images[-1]
        use = min(order, i + 1, steps - i if lower_final else order)
        h = math.log(s / t)
        # distances in lambda of the earlier evaluations from this one, in steps
        ages = [math.log(levels[i - k] / s) / h for k in range(1, use)]
        if rng is None:
            y = t / s * y + _towards(images, ages, h, half)
        else:
            # the SDE's exponential integral decays twice as fast: e^(-2h), of which the noise makes up the rest
            kept = math.exp(-h)
            y = t / s * kept * y + _towards(images, ages, 2 * h, half)
            y = y + t * math.sqrt(-math.expm1(-2 * h)) * rng.normal(tuple(y.shape[1:])).double()
    return y


def _towards(images: Sequence[Tensor], ages: Sequence[float], h: float, trust: float) -> Tensor:
    """The integral of e^(u - h) D(u) over u in [0, h], D extrapolated through the last ``len(ages) + 1`` images.

    ``trust`` scales the second derivative of D.
    """
    weight = -math.expm1(-h)
    now = images[-1]
    if not ages:
        return weight * now
    slope = (now - images[-2]) / ages[0]
    if len(ages) == 1:
        return weight * (
            now + slope / 2
        )  # 2M: the slope at the middle of the step, as accurate as its integral
    before = (images[-2] - images[-3]) / (ages[1] - ages[0])
    curvature = (slope - before) / ages[1]
    slope = slope + ages[0] * curvature
    linear = 1 - weight / h
    return weight * now + linear * slope + trust * (1 - 2 * linear / h) * curvature
