"""Grid, preconditioning and solvers against the formulas of EDM and exact solutions on Gaussian data."""

import math

import pytest
import torch
from gaussian import ExactDenoiser, Gaussian, Scale
from hypothesis import given
from hypothesis import strategies as st

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.solvers import STEPS, euler_step, heun_step, integrate
from cmbench.errors import UsageError
from cmbench.sampling.generate import EvaluationCounter

NOISE = NoiseRange()
DATA = Gaussian()


@given(
    n=st.integers(2, 400),
    low=st.floats(1e-4, 0.5),
    high=st.floats(1.0, 200.0),
    rho=st.floats(1.0, 10.0),
)
def test_karras_grid_is_equation_5_and_its_ends_are_exact(n: int, low: float, high: float, rho: float):
    grid = karras_sigmas(NoiseRange(low, high, 0.5, rho), n)
    assert grid.dtype == torch.float64
    assert grid[0] == high
    assert grid[-1] == low
    assert bool((grid[1:] < grid[:-1]).all())
    for i in {0, 1, n // 2, n - 1}:
        wanted = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert float(grid[i]) == pytest.approx(wanted, rel=1e-9)


def test_karras_grid_of_the_paper():
    """The levels that the released samplers name by index (18 points: 11 -> 0.585; 40 points: 22 -> 1.382)."""
    assert float(karras_sigmas(NOISE, 18)[11]) == pytest.approx(0.585, abs=1e-3)
    assert float(karras_sigmas(NOISE, 40)[22]) == pytest.approx(1.382, abs=1e-3)
    assert float(karras_sigmas(NOISE, 40)[17]) == pytest.approx(4.366, abs=1e-3)
    assert float(karras_sigmas(NOISE, 201)[106]) == pytest.approx(1.913, abs=1e-3)
    assert float(karras_sigmas(NOISE, 151)[67]) == pytest.approx(3.991, abs=1e-3)


def test_a_grid_of_one_point_is_the_highest_level_and_none_is_refused():
    assert karras_sigmas(NOISE, 1).tolist() == [80.0]
    with pytest.raises(UsageError, match="at least one point"):
        karras_sigmas(NOISE, 0)


@pytest.mark.parametrize(
    "values", [(0.0, 80, 0.5, 7), (80, 80, 0.5, 7), (90, 80, 0.5, 7), (0.002, 80, 0, 7), (0.002, 80, 0.5, 0)]
)
def test_a_noise_range_that_makes_no_sense_is_refused(values: tuple[float, ...]):
    with pytest.raises(UsageError):
        NoiseRange(*values)


def test_denoiser_has_the_preconditioning_of_edm():
    sd = 0.7
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen["x"], seen["c_noise"], seen["labels"] = x, c_noise, labels
            return torch.full_like(x, 3.0)

    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    labels = torch.tensor([1, 2, 3])
    sigma = torch.tensor([0.002, 1.3, 80.0], dtype=torch.float64)
    made = Denoiser(Spy(), sd)(x, sigma, labels)
    for i, s in enumerate(sigma.tolist()):
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / math.sqrt(s**2 + sd**2)
        c_in = 1 / math.sqrt(s**2 + sd**2)
        torch.testing.assert_close(made[i], c_skip * x[i] + c_out * 3.0)
        torch.testing.assert_close(seen["x"][i], (c_in * x[i]).float())
        assert float(seen["c_noise"][i]) == pytest.approx(math.log(s) / 4, rel=1e-6)
    assert made.dtype == torch.float64
    assert seen["x"].dtype == torch.float32
    assert seen["labels"] is labels


def test_exact_network_makes_the_exact_denoiser():
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64) * 3
    sigma = torch.tensor([0.002, 0.1, 2.0, 80.0], dtype=torch.float64)
    made = Denoiser(ExactDenoiser(DATA), 0.5)(x, sigma)
    torch.testing.assert_close(made, DATA.denoise(x, sigma), rtol=1e-4, atol=1e-5)


def _error(step, points: int) -> float:
    """Of the ODE from sigma_max to sigma_min, plus the last step to zero, which is exact in both."""
    noise = torch.linspace(-2, 2, 32).reshape(8, 1, 2, 2)
    made = integrate(DATA.denoise, noise, karras_sigmas(NOISE, points), step, None).double()
    high, low = (torch.full((8,), s, dtype=torch.float64) for s in (NOISE.sigma_max, NOISE.sigma_min))
    wanted = DATA.denoise(DATA.flow(noise.double() * NOISE.sigma_max, high, low), low)
    return float((made - wanted).abs().max())


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_solver_converges_with_its_order(name: str, order: int):
    coarse, middle, fine = (_error(STEPS[name], n) for n in (64, 128, 256))
    assert fine < middle < coarse < 0.1
    for ratio in (coarse / middle, middle / fine):
        assert math.log2(ratio) == pytest.approx(order, abs=0.2)


def test_heun_beats_euler_at_equal_cost():
    assert _error(heun_step, 50) < _error(euler_step, 99) / 4


@pytest.mark.parametrize("n", [1, 2, 5, 18])
@pytest.mark.parametrize(("step", "cost"), [(euler_step, lambda n: n), (heun_step, lambda n: 2 * n - 1)])
def test_evaluations_are_counted(n: int, step, cost):
    network = ExactDenoiser(DATA)
    counter = EvaluationCounter(network)
    integrate(Denoiser(network, 0.5), torch.randn(3, 1, 2, 2), karras_sigmas(NOISE, n), step, None)
    assert counter.rows == 3 * cost(n)
    counter.close()
    network(torch.zeros(1, 1, 2, 2), torch.zeros(1))
    assert counter.rows == 3 * cost(n)


def test_noise_becomes_the_gaussian_of_the_data():
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    made = integrate(DATA.denoise, noise, karras_sigmas(NOISE, 40), heun_step, None)
    assert made.dtype == torch.float32
    assert float(made.mean()) == pytest.approx(DATA.mean, abs=4 * DATA.std / math.sqrt(20_000))
    assert float(made.std()) == pytest.approx(DATA.std, rel=4 / math.sqrt(2 * 20_000))


def test_steps_take_a_noise_level_of_its_own_for_each_sample():
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    high = torch.tensor([80.0, 3.0, 0.5], dtype=torch.float64)
    low = torch.tensor([40.0, 0.1, 0.4], dtype=torch.float64)
    for step in STEPS.values():
        together = step(DATA.denoise, x, high, low, None)
        alone = [step(DATA.denoise, x[i : i + 1], high[i : i + 1], low[i : i + 1], None) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))


def test_euler_step_to_zero_is_the_denoised_image():
    x, high = torch.randn(2, 1, 2, 2), torch.tensor([2.0, 0.3])
    torch.testing.assert_close(euler_step(DATA.denoise, x, high, torch.zeros(2), None), DATA.denoise(x, high))


def test_labels_reach_every_evaluation():
    seen = []

    def denoise(x, sigma, labels):
        seen.append(labels)
        return DATA.denoise(x, sigma)

    labels = torch.tensor([4, 5])
    integrate(denoise, torch.randn(2, 1, 2, 2), karras_sigmas(NOISE, 4), heun_step, labels)
    assert len(seen) == 7
    assert all(given is labels for given in seen)


def test_denoiser_is_differentiable_in_its_weights():
    network = Scale()
    Denoiser(network, 0.5)(torch.ones(1, 1, 1, 1), torch.tensor([1.0])).sum().backward()
    # dD/dw = c_out c_in x = (s sd / t)(1 / t) with t^2 = s^2 + sd^2
    assert float(network.weight.grad) == pytest.approx(0.5 / 1.25)
