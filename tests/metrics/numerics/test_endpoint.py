"""End points of the probability-flow ODE: a closed form, an independent solver, and the order of the error."""

import numpy as np
import pytest
import torch
from gaussian import Gaussian
from scipy.integrate import solve_ivp

from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.metrics.drift import mean_distance
from cmbench.metrics.endpoint import end_point, root_mean_square

LEVELS = NoiseRange()
NOISE = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_gaussian_data_have_a_closed_form_that_is_approached_with_the_square_of_the_points():
    data = Gaussian()
    start = torch.full((6,), LEVELS.sigma_max, dtype=torch.float64)
    exact = data.flow(NOISE.double() * LEVELS.sigma_max, start, torch.zeros(6))
    errors = [
        float((end_point(data.denoise, NOISE, None, LEVELS, points) - exact).abs().max())
        for points in (32, 64, 128)
    ]
    # The last step, from sigma_min to zero, leaves (sigma_min / std)^2 / 2 = 1.25e-5 of the deviation.
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_a_mixture_ends_where_scipys_solver_ends():
    """Two narrow peaks, where trajectories bend: a Runge-Kutta solver of order 8 in log sigma agrees."""
    centres, std = torch.tensor([-0.6, 0.5], dtype=torch.float64), 0.15

    def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: None = None) -> torch.Tensor:
        s = sigma.double().reshape(-1, 1, 1, 1, 1)
        away = x.double()[..., None] - centres
        weight = torch.softmax(-(away**2) / (2 * (std**2 + s**2)), -1)
        return (weight * (centres + std**2 / (std**2 + s**2) * away)).sum(-1)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(NOISE.shape)
        return (x - denoise(x, torch.full((6,), np.exp(log_sigma), dtype=torch.float64))).numpy().ravel()

    start = NOISE.double().numpy().ravel() * LEVELS.sigma_max
    span = (np.log(LEVELS.sigma_max), np.log(1e-5))
    expected = solve_ivp(slope, span, start, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    errors = [
        np.abs(end_point(denoise, NOISE, None, LEVELS, points).numpy().ravel() - expected).max()
        for points in (64, 256)
    ]
    assert errors[0] < 5e-3 and errors[1] < 3e-4


def test_root_mean_square_counts_what_is_seen():
    a = np.zeros((2, 1, 2, 2), np.float32)
    b = a.copy()
    b[0, 0, 0, 0] = 0.5
    b[1] = 7  # clipped to 1
    np.testing.assert_allclose(root_mean_square(a, b), [0.25, 1.0])
    np.testing.assert_array_equal(root_mean_square(b, b), 0)
    with pytest.raises(UsageError, match="do not pair up"):
        root_mean_square(a, b[:1])


def test_the_mean_of_distances_has_the_error_of_independent_draws():
    x = np.random.default_rng(0).exponential(size=(2000, 50))
    means = [mean_distance(row) for row in x]
    assert np.std([m.mean for m in means]) == pytest.approx(np.mean([m.error for m in means]), rel=0.1)
    assert mean_distance([2.0, 4.0]) == (3.0, 1.0)
    with pytest.raises(UsageError, match="two samples"):
        mean_distance([1.0])
    with pytest.raises(WorkError, match="1 of 3 distances"):
        mean_distance([1.0, np.nan, 2.0])
