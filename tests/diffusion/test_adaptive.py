"""The batched adaptive solver against scipy's, one sample at a time."""

import numpy as np
import pytest
import torch
from mixture import SHAPE, Mixture
from scipy.integrate import solve_ivp

from cmbench.diffusion.adaptive import solve_rk45, unless_nominal
from cmbench.errors import WorkError


def flow(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mixture's ODE in log sigma, negative time being allowed to fall: nonlinear, of very unequal scales."""
    return y - Mixture().denoise(y, torch.exp(t))


def circle(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A rotation whose speed depends on time and radius."""
    pace = (1 + y.flatten(1).square().sum(1)) * torch.cos(t)
    return pace.reshape(-1, 1, 1, 1) * torch.stack([-y[..., 1], y[..., 0]], dim=-1)


def start(count: int, scale: float) -> torch.Tensor:
    spread = torch.linspace(0.1, 2, count, dtype=torch.float64).reshape(-1, 1, 1, 1)
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * spread * noise


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("field", "ends", "scale"), [(flow, (np.log(80.0), np.log(0.002)), 80.0), (circle, (0.0, 2.0), 1.0)]
)
def test_each_sample_is_solved_as_scipy_solves_it_alone(field, ends, scale, tolerance):
    y = start(8, scale)
    spent = torch.zeros(len(y), dtype=torch.int64)

    def counted(t, x, rows):
        spent[rows] += 1
        return field(t, x)

    made = solve_rk45(counted, y, *ends, rtol=tolerance, atol=tolerance)
    for i in range(len(y)):

        def alone(t, flat):
            x = torch.from_numpy(flat).reshape(1, *SHAPE)
            return field(torch.tensor([t], dtype=torch.float64), x).numpy().ravel()

        wanted = solve_ivp(alone, ends, y[i].numpy().ravel(), "RK45", rtol=tolerance, atol=tolerance)
        assert wanted.success
        assert spent[i] == wanted.nfev
        np.testing.assert_allclose(made[i].ravel(), wanted.y[:, -1], rtol=1e-10, atol=1e-10)
    assert len(set(spent.tolist())) > 1  # otherwise the steps could have been shared


def test_rejected_steps_are_as_scipys():
    """A slope that jumps makes the solver step back."""

    def jump(t, y):
        return torch.where(t < 1, 1.0, -200.0).reshape(-1, 1) * y

    y = torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64)
    spent = []

    def counted(t, x, rows):
        spent.append(len(rows))
        return jump(t, x)

    made = solve_rk45(counted, y, 0.0, 1.2, rtol=1e-6, atol=1e-6)
    nfev = 0
    for i in range(3):
        wanted = solve_ivp(
            lambda t, v: (1.0 if t < 1 else -200.0) * v, (0, 1.2), y[i].numpy(), rtol=1e-6, atol=1e-6
        )
        nfev += wanted.nfev
        assert wanted.nfev > 2 + 6 * (len(wanted.t) - 1)  # some attempts were rejected
        np.testing.assert_allclose(made[i], wanted.y[:, -1], rtol=1e-10, atol=1e-10)
    assert sum(spent) == nfev


def test_a_sample_does_not_depend_on_its_batch():
    y = start(9, 80.0)
    ends = float(np.log(80.0)), float(np.log(0.002))

    def solve(x):
        return solve_rk45(lambda t, v, rows: flow(t, v), x, *ends, rtol=1e-4, atol=1e-4)

    torch.testing.assert_close(
        solve(y), torch.cat([solve(y[i : i + 1]) for i in range(9)]), rtol=0, atol=1e-12
    )


def test_rows_say_which_samples_are_evaluated():
    """Each sample has a rate of its own, found by its row; the solution is exp(rate)."""
    rate = torch.linspace(0.5, 6, 7, dtype=torch.float64)
    y = torch.ones(7, 2, dtype=torch.float64)
    made = solve_rk45(lambda t, v, rows: rate[rows][:, None] * v, y, 0.0, 1.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made, torch.exp(rate)[:, None].expand(7, 2), rtol=1e-7, atol=0)


def test_a_slope_that_is_not_finite_is_reported():
    with pytest.raises(WorkError, match="step became too small"):
        solve_rk45(lambda t, v, rows: v * torch.nan, torch.ones(2, 1), 0.0, 1.0, rtol=1e-3, atol=1e-3)


def test_only_the_nominal_nfe_can_be_asked_for():
    refuses = unless_nominal(110)
    assert refuses(110, None) is None
    assert "ask for 110" in str(refuses(35, None))
