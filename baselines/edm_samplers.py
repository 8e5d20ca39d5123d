"""Euler, Heun and the stochastic sampler of EDM (Karras et al., 2022, arXiv 2206.00364), and Adams-Bashforth.

On the Karras grid, the last step to no noise at all, in the EDM time t = sigma unless ``schedule`` says otherwise.
The method ``edm`` is ``heun`` at its defaults, in the group and under the label of the paper's tables.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.deis import deis
from cmbench.diffusion.grid import GridRecipe
from cmbench.diffusion.ode import churned, solve
from cmbench.diffusion.schedule import SCHEDULES
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class EDMGridRecipe(GridRecipe):
    """The Karras grid; Euler and Heun step in the time of ``schedule``."""

    to_zero: bool = True


@dataclass(frozen=True)
class EDMSDERecipe(EDMGridRecipe):
    """The paper's values for unconditional CIFAR-10 (its Table 5); ``schedule`` matters to the spacing alone.

    Attributes:
        s_churn, s_min, s_max, s_noise: how much noise the steps add, between which levels, and its standard deviation.
    """

    s_churn: float = 30.0
    s_min: float = 0.01
    s_max: float = 1.0
    s_noise: float = 1.007

    def __post_init__(self) -> None:
        if self.s_churn < 0 or self.s_noise <= 0:
            raise UsageError("edm-sde: need s_churn >= 0 and s_noise > 0")


@dataclass(frozen=True)
class ABRecipe(EDMGridRecipe):
    """Adams-Bashforth in the time of ``schedule``.

    Attributes:
        order: evaluations that the slope is extrapolated from; the first steps have fewer.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UsageError(f"ab.order {self.order}: the order is at least 1")


def euler(model: Model, recipe: EDMGridRecipe, nfe: int) -> "Sampler":
    """``nfe`` steps of Euler."""
    denoise, sigmas, schedule = model.denoiser(), recipe.levels(model.noise, nfe), SCHEDULES[recipe.schedule]
    return lambda noise, labels, _rng: solve(denoise, noise, sigmas, labels, schedule, heun=False).float()


def heun(model: Model, recipe: EDMGridRecipe, nfe: int) -> "Sampler":
    """Algorithm 1."""
    denoise, schedule = model.denoiser(), SCHEDULES[recipe.schedule]
    sigmas = recipe.levels(model.noise, heun_steps(nfe))
    return lambda noise, labels, _rng: solve(denoise, noise, sigmas, labels, schedule, heun=True).float()


def stochastic(model: Model, recipe: EDMSDERecipe, nfe: int) -> "Sampler":
    """Algorithm 2."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, heun_steps(nfe))
    return lambda noise, labels, rng: churned(
        denoise,
        noise,
        sigmas,
        labels,
        rng,
        churn=recipe.s_churn,
        low=recipe.s_min,
        high=recipe.s_max,
        noise_scale=recipe.s_noise,
    ).float()


def adams_bashforth(model: Model, recipe: ABRecipe, nfe: int) -> "Sampler":
    """``nfe`` steps; in the EDM time, the rhoAB of Zhang & Chen (2022), also known as LMS."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    clock = SCHEDULES[recipe.schedule].time
    return lambda noise, labels, _rng: deis(denoise, noise, sigmas, labels, recipe.order, clock).float()


def heun_steps(nfe: int) -> int:
    """Steps of Heun that ``nfe`` evaluations are enough for: two each, and one for a last step to 0."""
    return (nfe + 1) // 2


def refuses(nfe: int, recipe: EDMGridRecipe) -> str | None:
    """Two evaluations a step, one for a step to 0."""
    if recipe.to_zero:
        return None if nfe % 2 else "Heun takes an odd number of evaluations (2N - 1 for N grid points)"
    return "Heun that ends above 0 takes an even number of evaluations, two a step" if nfe % 2 else None


EULER = Method(
    name="euler",
    label="Euler",
    group=SAMPLERS,
    reference="Karras et al., 2022",
    summary="Euler on the Karras grid: first order",
    recipe=EDMGridRecipe,
    sampler=euler,
    nfes=(10, 20, 50),
    paper="arXiv:2206.00364",
    parent=lambda _variant, _recipe: Parent("edm"),
)

HEUN = Method(
    name="heun",
    label="Heun (EDM)",
    group=SAMPLERS,
    reference="Karras et al., 2022",
    summary="Heun on the Karras grid: second order, two evaluations a step",
    recipe=EDMGridRecipe,
    sampler=heun,
    refuses=refuses,
    nfes=(11, 19, 35),
    paper="arXiv:2206.00364",
    parent=lambda _variant, _recipe: Parent("edm"),
)

EDM_SDE = Method(
    name="edm-sde",
    label="EDM (stochastic)",
    group=SAMPLERS,
    reference="Karras et al., 2022",
    summary="EDM's stochastic sampler: noise added before steps of Heun",
    recipe=EDMSDERecipe,
    sampler=stochastic,
    refuses=refuses,
    nfes=(35, 79),
    paper="arXiv:2206.00364",
    parent=lambda _variant, _recipe: Parent("edm"),
    deterministic=False,
    differs="the churn of the paper's CIFAR-10 VP network on every data set but ImageNet-64",
)

AB = Method(
    name="ab",
    label="Adams-Bashforth (LMS)",
    group=SAMPLERS,
    reference="Zhang & Chen, 2022",
    summary="linear multistep in sigma on the Karras grid: fourth order, one evaluation a step",
    recipe=ABRecipe,
    sampler=adams_bashforth,
    nfes=(10, 20),
    paper="arXiv:2204.13902",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs="the paper's rhoAB, on the Karras grid that later libraries (as LMS) run it on",
)
