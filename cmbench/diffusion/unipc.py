"""UniPC (Zhao et al., 2023, arXiv 2302.04867): a multistep predictor with a corrector that costs no evaluation.

Written for y = x / alpha and lambda = -log(sigma), as :mod:`cmbench.diffusion.dpm_solver` is.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from cmbench.diffusion.evaluation import bound, start
from cmbench.diffusion.preconditioning import Denoise

Prediction = Literal["data", "noise"]
Variant = Literal["bh1", "bh2"]


def unipc(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    order: int = 3,
    *,
    prediction: Prediction = "data",
    variant: Variant = "bh1",
    lower_final: bool = True,
) -> Tensor:
    """UniPC-p from ``noise`` (unit normal [B, C, H, W]) down ``sigmas`` [N + 1]; N evaluations.

    Args:
        denoise: the denoiser.
        noise: unit normal [B, C, H, W].
        sigmas: falling noise levels [N + 1]; the last may be 0, where the step is the denoised image.
        labels: class labels [B] or None.
        order: p of the predictor UniP-p and the corrector UniC-p. The first steps have fewer.
        prediction: whether the denoised image or epsilon is extrapolated.
        variant: B(h) = h or B(h) = e^h - 1, which differ in the short polynomials alone.
        lower_final: whether the last steps are of lower order.

    Returns:
        y at the last level, float64 [B, C, H, W].
    """
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    steps = len(levels) - 1
    outputs: list[Tensor] = []
    before, used = y, 0  # where the last step began, and its order
    for i in range(steps):
        s, t = levels[i], levels[i + 1]
        image = clean(y, s)
        output = image if prediction == "data" else (y - image) / s
        if i:
            y = _step(before, [*outputs, output], levels[: i + 1], used, prediction, variant, corrects=True)
            # the evaluation is that of the predicted y: the corrected one gets none of its own
        outputs = [*outputs, output][-order:]
        if t == 0:
            # first order, and in the noise prediction on the corrected y, as everywhere
            return image if prediction == "data" else y - s * output
        used = min(order, i + 1, steps - i if lower_final else order)
        before = y
        y = _step(before, outputs, levels[: i + 2], used, prediction, variant, corrects=False)
    return y


def _step(
    y: Tensor,
    outputs: Sequence[Tensor],
    levels: Sequence[float],
    order: int,
    prediction: Prediction,
    variant: Variant,
    *,
    corrects: bool,
) -> Tensor:
    """From ``levels[-2]``, where y is, to ``levels[-1]``; a corrector has the output there as ``outputs[-1]``."""
    s, t = levels[-2], levels[-1]
    h = math.log(s / t)
    history = outputs[:-1] if corrects else outputs
    now = history[-1]
    # places of the further outputs in lambda, in steps from s: those before are negative, the corrector's is 1
    places = [-math.log(levels[-2 - k] / s) / h for k in range(1, order)]
    others = [history[-1 - k] for k in range(1, order)]
    if corrects:
        places, others = [*places, 1.0], [*others, outputs[-1]]
    # the linear term is left (data) or the signal (noise); the integral decays or grows along the step
    signed = -h if prediction == "data" else h
    scale, kept = (1.0, t / s) if prediction == "data" else (t, 1.0)
    y = kept * y - scale * math.expm1(signed) * now
    weight = signed if variant == "bh1" else math.expm1(signed)
    for share, place, other in zip(_shares(places, signed, weight), places, others, strict=True):
        y = y - scale * weight * share / place * (other - now)
    return y


def _shares(places: Sequence[float], h: float, weight: float) -> list[float]:
    """The weights a_m of the differences, from the paper's conditions of order.

    sum_m a_m places_m^(k - 1) = k! phi_(k + 1)(h) h / B(h) for k = 1, 2, ...
    """
    if len(places) < 2:
        return [0.5] * len(places)  # for a single difference, the paper's simpler choice of the same order
    phi, factorial, wanted = math.expm1(h) / h - 1, 1, []
    for k in range(1, len(places) + 1):
        wanted.append(phi * factorial / weight)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    powers = np.array([[place**k for place in places] for k in range(len(places))])
    shares: list[float] = np.linalg.solve(powers, np.array(wanted)).tolist()
    return shares
