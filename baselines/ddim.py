"""DDIM (Song et al., 2020, arXiv 2010.02502), deterministic, on the EDM network. One evaluation a step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.ddim import ddim
from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import Name
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DDIMRecipe(GridRecipe):
    """The paper's quadratic grid on CIFAR-10 (appendix D.2)."""

    schedule: Name = "vp-linear"
    spacing: Spacing = "time-quadratic"


def sampler(model: Model, recipe: DDIMRecipe, nfe: int) -> "Sampler":
    """``nfe`` steps of equation 12 with eta = 0."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, _rng: ddim(denoise, noise, sigmas, labels).float()


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
    differs="on the EDM network; continuous time, over the network's noise range",
    revision=2,
)
