"""Ancestral sampling of DDPM (Ho et al., 2020, arXiv 2006.11239) on the EDM network. One evaluation a step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.ddim import ddim
from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import Name
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class AncestralRecipe(GridRecipe):
    """Uniform in time, as the paper's chain.

    Attributes:
        eta: share of the posterior's standard deviation that each step adds; below 1, the family that DDIM defines.
    """

    schedule: Name = "vp-linear"
    spacing: Spacing = "time"
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"ancestral.eta {self.eta}: need 0 <= eta <= 1")


def sampler(model: Model, recipe: AncestralRecipe, nfe: int) -> "Sampler":
    """``nfe`` draws from the posterior of the next level given this one and the denoised image."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, rng: ddim(denoise, noise, sigmas, labels, recipe.eta, rng).float()


ANCESTRAL = Method(
    name="ancestral",
    label="DDPM (ancestral)",
    group=SAMPLERS,
    reference="Ho et al., 2020",
    summary="ancestral sampling: the posterior of each step, first order and stochastic",
    recipe=AncestralRecipe,
    sampler=sampler,
    nfes=(50, 100),
    paper="arXiv:2006.11239",
    parent=lambda _variant, _recipe: Parent("edm"),
    deterministic=False,
    differs="on the EDM network, in few steps of continuous time; the posterior's variance (the paper tries beta too)",
)
