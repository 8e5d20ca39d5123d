"""3-DEIS (Zhang & Chen, 2022, arXiv 2204.13902), the tAB scheme, on the EDM network. One evaluation a step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.deis import deis
from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import SCHEDULES, Name
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DEISRecipe(GridRecipe):
    """Quadratic time steps; the polynomial is in the schedule's time (schedule "edm": their rhoAB).

    Attributes:
        order: degree of the polynomial, the paper's r; it goes through one evaluation more.
    """

    schedule: Name = "vp-linear"
    spacing: Spacing = "time-quadratic"
    order: int = 3

    def __post_init__(self) -> None:
        if self.order < 0:
            raise UsageError(f"deis.order {self.order}: a polynomial's degree is at least 0")


def sampler(model: Model, recipe: DEISRecipe, nfe: int) -> "Sampler":
    """``nfe`` steps of equation 14."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    clock = SCHEDULES[recipe.schedule].time
    return lambda noise, labels, _rng: deis(denoise, noise, sigmas, labels, recipe.order + 1, clock).float()


DEIS = Method(
    name="deis",
    label="3-DEIS",
    group=SAMPLERS,
    reference="Zhang & Chen, 2022",
    summary="multistep exponential integrator with polynomials in time (tAB3)",
    recipe=DEISRecipe,
    sampler=sampler,
    nfes=(10, 20),
    paper="arXiv:2204.13902",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs="on the EDM network, over its noise range",
)
