"""DPM-solver++ 2M, 3M and its SDE form (Lu et al., 2022, arXiv 2211.01095) on the EDM network.

One evaluation a step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.dpm_solver_pp import dpm_solver_pp
from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import Name
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DPMSolverPPRecipe(GridRecipe):
    """Steps uniform in time, as the paper takes for this solver.

    Attributes:
        lower_final: whether the last steps are of lower order.
    """

    schedule: Name = "vp-linear"
    spacing: Spacing = "time"
    lower_final: bool = True


@dataclass(frozen=True)
class ThirdRecipe(DPMSolverPPRecipe):
    """As 2M.

    Attributes:
        released: the authors' coefficient of the second derivative, which makes the method second-order.
    """

    released: bool = False


@dataclass(frozen=True)
class SDERecipe(DPMSolverPPRecipe):
    """As 2M.

    Attributes:
        order: 1 or 2.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise UsageError(f"dpmpp-sde.order {self.order}: the SDE form is of order 1 or 2")


def second(model: Model, recipe: DPMSolverPPRecipe, nfe: int) -> "Sampler":
    """Algorithm 2."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, _rng: dpm_solver_pp(
        denoise, noise, sigmas, labels, 2, lower_final=recipe.lower_final
    ).float()


def third(model: Model, recipe: ThirdRecipe, nfe: int) -> "Sampler":
    """The same with the image extrapolated through three evaluations."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, _rng: dpm_solver_pp(
        denoise, noise, sigmas, labels, 3, lower_final=recipe.lower_final, released=recipe.released
    ).float()


def stochastic(model: Model, recipe: SDERecipe, nfe: int) -> "Sampler":
    """SDE-DPM-solver++."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, rng: dpm_solver_pp(
        denoise, noise, sigmas, labels, recipe.order, rng, lower_final=recipe.lower_final
    ).float()


DIFFERS = (
    "on the EDM network, over its noise range; no thresholding; the last steps are of lower order at any number of "
    "steps (the authors' code: below 15), without which the long last step of 20 or 50 fails"
)

DPMPP_2M = Method(
    name="dpmpp-2m",
    label="DPM-solver++ (2M)",
    group=SAMPLERS,
    reference="Lu et al., 2022",
    summary="second-order multistep exponential integrator of the clean image in log-SNR",
    recipe=DPMSolverPPRecipe,
    sampler=second,
    nfes=(10, 20),
    paper="arXiv:2211.01095",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs=DIFFERS,
)

DPMPP_3M = Method(
    name="dpmpp-3m",
    label="DPM-solver++ (3M)",
    group=SAMPLERS,
    reference="Lu et al., 2022",
    summary="third-order multistep exponential integrator of the clean image in log-SNR",
    recipe=ThirdRecipe,
    sampler=third,
    nfes=(10, 20),
    paper="arXiv:2211.01095",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs=f"{DIFFERS}; the second derivative has its full weight, of which the authors' code has half "
    "(released=true does as it does)",
)

DPMPP_SDE = Method(
    name="dpmpp-sde",
    label="SDE-DPM-solver++ (2M)",
    group=SAMPLERS,
    reference="Lu et al., 2022",
    summary="multistep exponential integrator of the diffusion SDE",
    recipe=SDERecipe,
    sampler=stochastic,
    nfes=(20, 50),
    paper="arXiv:2211.01095",
    parent=lambda _variant, _recipe: Parent("edm"),
    deterministic=False,
    differs=DIFFERS,
)
