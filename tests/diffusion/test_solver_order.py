"""Every deterministic solver against the exact solution of the probability-flow ODE of a mixture.

The components are wide enough that trajectories bend everywhere, so that each solver shows its order at the numbers
of steps that are compared. Everything is float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from mixture import SHAPE, Mixture
from scipy.integrate import quad
from torch import Tensor

from cmbench.diffusion.ddim import ddim
from cmbench.diffusion.deis import coefficients, deis
from cmbench.diffusion.dpm_solver import dpm_solver, fast_orders
from cmbench.diffusion.dpm_solver_pp import dpm_solver_pp
from cmbench.diffusion.grid import GridRecipe
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.ode import churned, solve
from cmbench.diffusion.schedule import SCHEDULES
from cmbench.diffusion.unipc import unipc

DATA = Mixture(std=0.3)
NOISE = NoiseRange()
Z = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

LOG_SNR = GridRecipe("vp-linear", "log-snr")
QUADRATIC = GridRecipe("vp-linear", "time-quadratic")
KARRAS = GridRecipe("edm", "karras")
# In the time of a variance-preserving schedule sigma is like sqrt(t) near 0, where no polynomial follows it: tAB shows
# its order away from there.
ABOVE = GridRecipe("vp-linear", "time-quadratic", sigma_min=0.2)


@dataclass(frozen=True)
class Case:
    """``run(sigmas)`` is to have the error of a method of this order, over its grid in these numbers of steps."""

    order: int
    grid: GridRecipe
    run: Callable[[Tensor], Tensor]
    steps: tuple[int, int] = (32, 64)


def classic(name, heun: bool) -> Callable[[Tensor], Tensor]:
    return lambda sigmas: solve(DATA.denoise, Z, sigmas, None, SCHEDULES[name], heun=heun)


def single(order: int) -> Callable[[Tensor], Tensor]:
    return lambda sigmas: dpm_solver(DATA.denoise, Z, sigmas, None, (order,) * (len(sigmas) - 1))


def multi(order: int, *, released: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda sigmas: dpm_solver_pp(DATA.denoise, Z, sigmas, None, order, released=released)


def uni(order: int, prediction, variant="bh2") -> Callable[[Tensor], Tensor]:
    return lambda sigmas: unipc(
        DATA.denoise, Z, sigmas, None, order, prediction=prediction, variant=variant, lower_final=False
    )


def exponential(points: int, clock) -> Callable[[Tensor], Tensor]:
    return lambda sigmas: deis(DATA.denoise, Z, sigmas, None, points, clock)


def no_churn(sigmas: Tensor) -> Tensor:
    return churned(DATA.denoise, Z, sigmas, None, None, churn=0, low=0, high=100, noise_scale=1)


VP = SCHEDULES["vp-linear"].time
CASES = {
    "ddim": Case(1, QUADRATIC, lambda sigmas: ddim(DATA.denoise, Z, sigmas, None)),
    "euler": Case(1, KARRAS, classic("edm", heun=False)),
    "euler in vp-linear": Case(1, QUADRATIC, classic("vp-linear", heun=False)),
    "euler in vp-cosine": Case(
        1, GridRecipe("vp-cosine", "time-quadratic"), classic("vp-cosine", heun=False)
    ),
    "heun": Case(2, KARRAS, classic("edm", heun=True)),
    "heun in vp-linear": Case(2, QUADRATIC, classic("vp-linear", heun=True), (64, 128)),
    "heun in vp-cosine": Case(2, GridRecipe("vp-cosine", "time-quadratic"), classic("vp-cosine", heun=True)),
    "heun in ve": Case(2, GridRecipe("ve", "karras"), classic("ve", heun=True), (64, 128)),
    "edm-sde without churn": Case(2, KARRAS, no_churn),
    "dpm-solver-1": Case(1, LOG_SNR, single(1)),
    "dpm-solver-2": Case(2, LOG_SNR, single(2)),
    "dpm-solver-3": Case(3, LOG_SNR, single(3)),
    "dpmpp-1": Case(1, LOG_SNR, multi(1)),
    "dpmpp-2m": Case(2, LOG_SNR, multi(2)),
    "dpmpp-3m": Case(3, LOG_SNR, multi(3), (64, 128)),
    "dpmpp-3m, released": Case(2, LOG_SNR, multi(3, released=True), (64, 128)),
    "dpmpp-3m on karras": Case(3, KARRAS, multi(3), (64, 128)),
    "unipc-1": Case(2, LOG_SNR, uni(1, "noise")),
    "unipc-1 bh1": Case(2, LOG_SNR, uni(1, "noise", "bh1"), (64, 128)),
    "unipc-2": Case(3, LOG_SNR, uni(2, "noise")),
    "unipc-3": Case(4, LOG_SNR, uni(3, "noise"), (64, 128)),
    "unipc-3 of data": Case(4, LOG_SNR, uni(3, "data"), (64, 128)),
    "unipc-2 of data, bh1": Case(3, LOG_SNR, uni(2, "data", "bh1")),
    "deis, degree 0": Case(1, ABOVE, exponential(1, VP)),
    "deis, degree 1": Case(2, ABOVE, exponential(2, VP)),
    "deis, degree 2": Case(3, ABOVE, exponential(3, VP)),
    # over even steps in time: on the quadratic grid the first steps' lower order shows before the fourth does
    "deis, degree 3": Case(4, GridRecipe("vp-linear", "time", sigma_min=0.2), exponential(4, VP), (128, 256)),
    "ab, 2 points": Case(2, KARRAS, exponential(2, lambda sigma: sigma)),
    "ab, 3 points": Case(3, KARRAS, exponential(3, lambda sigma: sigma), (64, 128)),
    "ab, 4 points": Case(4, KARRAS, exponential(4, lambda sigma: sigma), (128, 256)),
}


@pytest.fixture(scope="module")
def solution() -> Callable[[float], Tensor]:
    known: dict[float, Tensor] = {}

    def at(end: float) -> Tensor:
        if end not in known:
            known[end] = DATA.solve(Z * NOISE.sigma_max, NOISE.sigma_max, end)
        return known[end]

    return at


def error(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).square().mean().sqrt())


@pytest.mark.parametrize("name", CASES)
def test_error_falls_with_the_nominal_order(name: str, solution):
    case = CASES[name]
    errors = []
    for steps in case.steps:
        sigmas = case.grid.levels(NOISE, steps)
        made = case.run(sigmas)
        assert made.dtype == torch.float64
        errors.append(error(made, solution(float(sigmas[-1]))))
    slope = math.log(errors[0] / errors[1]) / math.log(case.steps[1] / case.steps[0])
    assert slope == pytest.approx(case.order, abs=0.3)


@pytest.mark.parametrize("nfe", [24, 25, 26])
def test_dpm_solver_fast_is_of_third_order_whatever_the_remainder(nfe: int, solution):
    """The lower steps at the end are where the solution hardly moves any more."""

    def made(nfe: int) -> float:
        orders = fast_orders(nfe)
        sigmas = LOG_SNR.levels(NOISE, len(orders))
        return error(dpm_solver(DATA.denoise, Z, sigmas, None, orders), solution(NOISE.sigma_min))

    few, many = made(nfe), made(4 * nfe)
    assert few < 1e-2
    assert math.log(few / many) / math.log(4) == pytest.approx(3, abs=0.5)


def test_orders_of_dpm_solver_fast():
    """The paper's examples, and its rule: K evaluations in K // 3 + 1 steps."""
    assert fast_orders(10) == (3, 3, 3, 1)
    assert fast_orders(11) == (3, 3, 3, 2)
    assert fast_orders(9) == (3, 3, 2, 1)
    assert [fast_orders(n) for n in (1, 2, 3)] == [(1,), (2,), (2, 1)]
    for nfe in range(1, 60):
        assert sum(fast_orders(nfe)) == nfe
        assert len(fast_orders(nfe)) == nfe // 3 + 1


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_coefficients_of_tab_are_the_papers_integrals(points: int):
    """DEIS, equation 15, in the variance-preserving x: the integral of Psi beta / (2 noise) times Lagrange's basis."""

    def alpha(t: float) -> float:
        return math.exp(-(t**2) * 19.9 / 4 - t * 0.05)

    times = [0.9, 0.6, 0.4, 0.25][:points]
    here, after = times[-1], 0.1  # from the last known time on
    levels = [math.sqrt(1 - alpha(t) ** 2) / alpha(t) for t in (here, after)]
    mine = coefficients(levels[0], levels[1], times, VP)
    for j, made in enumerate(mine):

        def integrand(t: float, j: int = j) -> float:
            basis = math.prod((t - other) / (times[j] - other) for k, other in enumerate(times) if k != j)
            beta = 0.1 + 19.9 * t
            return alpha(after) / alpha(t) * beta / (2 * math.sqrt(1 - alpha(t) ** 2)) * basis

        wanted = quad(integrand, here, after, epsabs=1e-12)[0]
        assert alpha(after) * made == pytest.approx(wanted, rel=1e-8)


def test_deis_at_ten_evaluations_is_nearer_than_lower_degrees(solution):
    sigmas = QUADRATIC.levels(NOISE, 10)
    errors = [error(exponential(n, VP)(sigmas), solution(NOISE.sigma_min)) for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_first_orders_are_one_method():
    """Euler in sigma, DDIM, DPM-solver-1, DPM-solver++ of order 1 and DEIS of degree 0 on one grid."""
    sigmas = QUADRATIC.levels(NOISE, 7)
    wanted = CASES["ddim"].run(sigmas)
    for made in (classic("edm", heun=False), single(1), multi(1), exponential(1, VP)):
        torch.testing.assert_close(made(sigmas), wanted, rtol=1e-9, atol=1e-9)


def test_a_step_to_zero_is_the_denoised_image():
    sigmas = GridRecipe(to_zero=True).levels(NOISE, 1)
    wanted = DATA.denoise(Z * 80, torch.full((len(Z),), 80.0, dtype=torch.float64))
    runs = [CASES["ddim"].run, multi(2), multi(3), uni(3, "data"), uni(3, "noise")]
    runs += [classic("edm", heun=True), exponential(4, VP), no_churn]
    for run in runs:
        torch.testing.assert_close(run(sigmas), wanted, rtol=1e-9, atol=1e-9)
