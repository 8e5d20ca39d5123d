"""DPM-solver-2 and DPM-solver-fast (Lu et al., 2022, arXiv 2206.00927) on the EDM network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.dpm_solver import dpm_solver, fast_orders
from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import Name
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class DPMSolverRecipe(GridRecipe):
    """Steps uniform in lambda, the half log-SNR; ``schedule`` matters to other spacings alone.

    The grid ends at the noise level of t = 1e-3, the paper's choice for few evaluations.
    """

    schedule: Name = "vp-linear"
    spacing: Spacing = "log-snr"
    sigma_min: float | None = 0.0105

    def __post_init__(self) -> None:
        if self.to_zero:
            raise UsageError(
                "DPM-solver steps in the log-SNR, which is infinite at no noise: to_zero must be false"
            )


def _sampler(model: Model, recipe: DPMSolverRecipe, orders: tuple[int, ...]) -> "Sampler":
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, len(orders))
    return lambda noise, labels, _rng: dpm_solver(denoise, noise, sigmas, labels, orders).float()


def second_order(model: Model, recipe: DPMSolverRecipe, nfe: int) -> "Sampler":
    """``nfe / 2`` steps of DPM-solver-2."""
    return _sampler(model, recipe, (2,) * (nfe // 2))


def fast(model: Model, recipe: DPMSolverRecipe, nfe: int) -> "Sampler":
    """Steps of orders 3, ..., 3 and lower that cost ``nfe`` evaluations."""
    return _sampler(model, recipe, fast_orders(nfe))


def refuses_odd(nfe: int, _recipe: DPMSolverRecipe) -> str | None:
    """A second-order step costs two evaluations."""
    return "DPM-solver-2 takes an even number of evaluations, two a step" if nfe % 2 else None


DIFFERS = (
    "on the EDM network, from its highest noise level down; ends at t = 1e-3 at any number of evaluations "
    "(the paper: at 1e-4 above 15)"
)

DPM_SOLVER_2 = Method(
    name="dpm-solver-2",
    label="DPM-solver-2",
    group=SAMPLERS,
    reference="Lu et al., 2022",
    summary="second-order exponential integrator in log-SNR, two evaluations a step",
    recipe=DPMSolverRecipe,
    sampler=second_order,
    refuses=refuses_odd,
    nfes=(10,),
    paper="arXiv:2206.00927",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs=DIFFERS,
)

DPM_SOLVER_FAST = Method(
    name="dpm-solver-fast",
    label="DPM-solver-fast",
    group=SAMPLERS,
    reference="Lu et al., 2022",
    summary="third-order exponential integrator in log-SNR whose last steps are lower to fit any budget",
    recipe=DPMSolverRecipe,
    sampler=fast,
    nfes=(10, 20),
    paper="arXiv:2206.00927",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs=DIFFERS,
)
