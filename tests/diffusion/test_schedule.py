"""Schedules against their papers' formulas, and the spacings of noise levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmbench.diffusion.grid import GridRecipe, karras_sigmas, spaced_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.schedule import SCHEDULES
from cmbench.errors import UsageError

NOISE = NoiseRange()
LEVELS = st.floats(1e-3, 100)


def test_linear_schedule_is_the_variance_preserving_sde():
    """Song et al. (2021), equation 33: alpha = exp(-t^2 (b1 - b0) / 4 - t b0 / 2), and noise of 1 - alpha^2."""
    schedule = SCHEDULES["vp-linear"]
    for t in (1e-4, 1e-3, 0.1, 0.5, 1.0):
        alpha = math.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
        assert schedule.alpha(t) == pytest.approx(alpha, rel=1e-12)
        assert schedule.sigma(t) == pytest.approx(math.sqrt(1 - alpha**2) / alpha, rel=1e-9)


def test_cosine_schedule_is_nichol_and_dhariwals():
    schedule = SCHEDULES["vp-cosine"]
    for t in (1e-4, 1e-3, 0.1, 0.5, 0.99):
        signal = (math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
        assert schedule.alpha(t) == pytest.approx(math.sqrt(signal), rel=1e-10)
        assert schedule.sigma(t) == pytest.approx(math.sqrt((1 - signal) / signal), rel=1e-9)


def test_the_schedules_that_do_not_scale():
    assert SCHEDULES["ve"].sigma(9.0) == 3
    assert SCHEDULES["edm"].sigma(9.0) == 9
    for name in ("ve", "edm"):
        assert SCHEDULES[name].alpha(9.0) == 1
        assert SCHEDULES[name].alpha_rate(9.0) == 0


@pytest.mark.parametrize("name", SCHEDULES)
@given(sigma=LEVELS)
def test_time_is_the_inverse_of_sigma(name, sigma: float):
    schedule = SCHEDULES[name]
    assert schedule.sigma(schedule.time(sigma)) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_noise_is_time_zero(name):
    schedule = SCHEDULES[name]
    assert schedule.time(0.0) == pytest.approx(0, abs=1e-15)
    assert schedule.sigma(0.0) == 0
    assert schedule.alpha(0.0) == 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 60.0])
def test_rates_are_derivatives(name, sigma: float):
    schedule = SCHEDULES[name]
    t = schedule.time(sigma)
    h = 1e-5 * t
    slope = (schedule.sigma(t + h) - schedule.sigma(t - h)) / (2 * h)
    assert schedule.rate(t) == pytest.approx(slope, rel=1e-6)
    log_slope = (math.log(schedule.alpha(t + h)) - math.log(schedule.alpha(t - h))) / (2 * h)
    assert schedule.alpha_rate(t) == pytest.approx(log_slope, rel=1e-4, abs=1e-9)


def function_of(spacing: str, name) -> object:
    """What the spacing is even in."""
    return {
        "karras": lambda sigma: sigma ** (1 / NOISE.rho),
        "log-snr": lambda sigma: -math.log(sigma),
        "time": SCHEDULES[name].time,
        "time-quadratic": lambda sigma: math.sqrt(SCHEDULES[name].time(sigma)),
    }[spacing]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", ["karras", "log-snr", "time", "time-quadratic"])
@pytest.mark.parametrize("n", [2, 3, 18])
def test_spacings_are_even_in_their_function(spacing, name, n: int):
    sigmas = spaced_sigmas(NOISE, n, spacing, SCHEDULES[name])
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == n
    assert sigmas[0] == NOISE.sigma_max
    assert sigmas[-1] == NOISE.sigma_min
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    seen = [function_of(spacing, name)(sigma) for sigma in sigmas.tolist()]
    np.testing.assert_allclose(np.diff(seen), np.full(n - 1, (seen[-1] - seen[0]) / (n - 1)), rtol=1e-6)


def test_quadratic_time_of_ddim():
    """Their steps are c i^2, here from the highest level's time down."""
    sigmas = GridRecipe("vp-linear", "time-quadratic", sigma_min=1e-6).levels(NOISE, 10)
    times = [SCHEDULES["vp-linear"].time(sigma) for sigma in sigmas.tolist()]
    assert times == pytest.approx([times[0] * (i / 10) ** 2 for i in range(10, -1, -1)], abs=1e-5)


def test_a_grid_of_one_point_is_the_highest_level():
    for spacing in ("karras", "log-snr", "time", "time-quadratic"):
        assert spaced_sigmas(NOISE, 1, spacing, SCHEDULES["vp-linear"]).tolist() == [80.0]
    with pytest.raises(UsageError, match="at least one point"):
        spaced_sigmas(NOISE, 0, "time", SCHEDULES["vp-linear"])


def test_spacing_in_time_needs_a_schedule():
    with pytest.raises(ValueError, match="needs a schedule"):
        spaced_sigmas(NOISE, 5, "time")


def test_levels_of_a_recipe():
    ends = GridRecipe(to_zero=True).levels(NOISE, 6)
    assert torch.equal(ends[:-1], karras_sigmas(NOISE, 6))
    assert ends[-1] == 0
    assert torch.equal(GridRecipe().levels(NOISE, 5), karras_sigmas(NOISE, 6))
    short = GridRecipe(sigma_min=0.3).levels(NOISE, 5)
    assert short[-1] == 0.3
    with pytest.raises(UsageError):
        GridRecipe(sigma_min=100.0).levels(NOISE, 5)
