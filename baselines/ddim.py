"""DDIM (Song et al., 2020, arXiv 2010.02502) on the EDM network.

In the variance-exploding parameterisation with sigma as time, the deterministic DDIM step (their equation 12 with
eta = 0) is Euler's step of the probability-flow ODE (their section 4.3). One evaluation a step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.solvers import euler_step, integrate
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DDIMRecipe:
    """DDIM has nothing to set."""


def sampler(model: Model, _recipe: DDIMRecipe, nfe: int) -> "Sampler":
    """Euler over ``nfe`` points of the Karras grid, the last step to zero."""
    denoise = model.denoiser()
    sigmas = karras_sigmas(model.noise, nfe)
    return lambda noise, labels, _rng: integrate(denoise, noise, sigmas, euler_step, labels)


DDIM = Method(
    name="ddim",
    label="DDIM",
    group=SAMPLERS,
    reference="Song et al., 2020",
    summary="deterministic first-order sampler",
    recipe=DDIMRecipe,
    sampler=sampler,
    nfes=(10, 20, 50),
    paper="arXiv:2010.02502",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs="on the EDM network and the Karras grid; the paper's network is variance-preserving, its grid uniform in t",
)
