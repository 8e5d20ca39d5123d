"""DDIM, deterministic or not; with all of its noise, the ancestral sampling of DDPM."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from cmbench.diffusion.evaluation import bound, start
from cmbench.diffusion.preconditioning import Denoise

if TYPE_CHECKING:
    from cmbench.sampling.seeds import SampleRng


def ddim(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    eta: float = 0.0,
    rng: "SampleRng | None" = None,
) -> Tensor:
    """DDIM (Song et al., 2020, equations 12 and 16) from ``noise`` (unit normal [B, C, H, W]) down ``sigmas`` [N + 1].

    The variance of a step from s to t is eta^2 times that of DDPM's posterior, t^2 (s^2 - t^2) / s^2 on the scale of
    y = x / alpha: 0 is the probability-flow ODE, 1 is DDPM's ancestral sampling (Ho et al., 2020, equation 7). The
    grid may end at 0. N evaluations; ``rng`` is drawn from where eta > 0. Returns float64 [B, C, H, W].
    """
    if eta and rng is None:
        raise ValueError("a stochastic sampler needs an rng")
    clean = bound(denoise, labels)
    y, levels = start(noise, sigmas)
    for s, t in pairwise(levels):
        image = clean(y, s)
        std = eta * t * math.sqrt(s**2 - t**2) / s
        y = image + math.sqrt(t**2 - std**2) / s * (y - image)
        if rng is not None and std > 0:
            y = y + std * rng.normal(tuple(y.shape[1:])).double()
    return y
