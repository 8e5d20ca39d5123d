"""TrigFlow on EDM networks: the same function, the tangent of the paper, the learnt weight."""

import math

import pytest
import torch
from gaussian import ExactDenoiser, Gaussian, Scale
from torch import nn

from cmbench.consistency.trigflow import AdaptiveWeight, ContinuousObjective, sigma_of
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.training.loop import TrainsAlong

NOISE = NoiseRange()
DATA = Gaussian()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(teacher: nn.Module | None = None, **settings) -> ContinuousObjective:
    chosen = {"log_mean": -1.0, "log_std": 1.4, "warmup": 0, "c": 0.1, "weight": None} | settings
    return ContinuousObjective(NOISE, teacher, **chosen)


class Wavy(nn.Module):
    """A smooth function of both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, c_noise, labels=None):
        return self.gain * torch.sin(2 * x) * torch.cos(3 * c_noise).reshape(-1, 1, 1, 1)


class FlowConsistency(nn.Module):
    """The raw network whose EDM-preconditioned form maps to the start of the Gaussian's trajectory."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise, labels=None):
        s = torch.exp(4 * c_noise).reshape(-1, 1, 1, 1)
        total = torch.sqrt(s**2 + 0.25)
        noisy = x * total
        wanted = DATA.mean + (noisy - DATA.mean) * DATA.std / torch.sqrt(DATA.std**2 + s**2)
        return (wanted - 0.25 / total**2 * noisy) * total / (0.5 * s) + self.unused


def test_trigflow_of_an_edm_network_is_its_denoiser():
    """cos(t) x_t + sin(t) sd N(x_t / sd, c) is D at sigma = sd tan(t), x = x_t / cos(t)."""
    network, t = Wavy(), torch.tensor([0.01, 0.4, 1.1, 1.56], dtype=torch.float64)
    x_t = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    sigma, column = 0.5 * torch.tan(t), t.reshape(-1, 1, 1, 1)
    f = column.cos() * x_t + column.sin() * 0.5 * network(x_t / 0.5, sigma.log() / 4)
    torch.testing.assert_close(f, Denoiser(network, 0.5)(x_t / column.cos(), sigma), rtol=1e-4, atol=1e-4)
    assert sigma_of(1.1, NOISE) == pytest.approx(0.98238, abs=1e-4)


@pytest.mark.parametrize("teacher", [None, ExactDenoiser(DATA)])
def test_tangent_is_the_total_derivative_along_the_path(teacher):
    """cos(t) df(x_t, t)/dt by finite differences of f along the data's line, or along the teacher's ODE."""
    network = Wavy()
    t = torch.tensor([0.05, 0.4, 1.1, 1.5], dtype=torch.float64)
    x, z = (torch.randn(4, 1, 2, 2, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    z = 0.5 * z

    def f(at: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        column = time.reshape(-1, 1, 1, 1)
        return column.cos() * at + column.sin() * 0.5 * network(at / 0.5, (0.5 * time.tan()).log() / 4)

    column = t.reshape(-1, 1, 1, 1)
    x_t = column.cos() * x + column.sin() * z
    sigma = 0.5 * t.tan()
    slope = column.cos() * z - column.sin() * x
    if teacher is not None:
        # Of the trajectory that EDM's ODE follows, d/dt of cos(t) x(sigma): by a short exact piece of it.
        def at(time):
            end = 0.5 * time.tan()
            return time.cos().reshape(-1, 1, 1, 1) * DATA.flow(x_t / column.cos(), sigma, end)

        slope = (at(t + 1e-5) - at(t - 1e-5)) / 2e-5
    h = 1e-5
    wanted = column.cos() * (f(x_t + h * slope, t + h) - f(x_t - h * slope, t - h)) / (2 * h)
    out, made = objective(teacher).tangent(network, x, z, sigma, None, 1.0)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
    assert out.requires_grad
    assert not made.requires_grad


def test_warm_up_scales_only_what_passes_through_the_network():
    x, z, sigma = torch.randn(3, 1, 2, 2), 0.5 * torch.randn(3, 1, 2, 2), torch.tensor([0.1, 1.0, 5.0])
    none, half, whole = (objective().tangent(Wavy(), x, z, sigma, None, r)[1] for r in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + whole) / 2)
    assert not torch.allclose(none, whole)
    shares = []

    class Listening(ContinuousObjective):
        def tangent(self, network, x, z, sigma, labels, share):
            shares.append(share)
            return super().tangent(network, x, z, sigma, labels, share)

    listening = Listening(NOISE, None, -1.0, 1.4, 10, 0.1, None)
    for step in (0, 5, 10, 50):
        listening.loss(Scale(), x, None, step, rng())
    assert shares == [0.0, 0.5, 1.0, 1.0]


def test_the_exact_function_has_no_tangent_along_the_teachers_ode():
    sigma = torch.logspace(-2.5, 1.9, 50)
    x = DATA.mean + DATA.std * torch.randn(50, 1, 1, 1, generator=rng(1))
    z = 0.5 * torch.randn(50, 1, 1, 1, generator=rng(2))
    _, exact = objective(ExactDenoiser(DATA)).tangent(FlowConsistency(), x, z, sigma, None, 1.0)
    _, other = objective(ExactDenoiser(Gaussian(0.4, 0.4))).tangent(FlowConsistency(), x, z, sigma, None, 1.0)
    assert float(exact.abs().max()) < 2e-4
    assert float(other.abs().mean()) > 0.02


def test_loss_gradient_is_the_normalised_tangent():
    """d/d(out) of |out - stopgrad(out) + g|^2 / D is 2 g / D: the network moves against its tangent."""
    network, x = Wavy(), torch.rand(6, 1, 2, 2, generator=rng(1)) * 2 - 1
    made = objective()
    made.loss(network, x, None, 0, rng()).sum().backward()
    draws = rng()
    sigma = torch.exp(-1.0 + 1.4 * torch.randn(6, generator=draws))
    z = 0.5 * torch.randn(x.shape, generator=draws)
    out, g = made.tangent(network, x, z, sigma, None, 1.0)
    g = g / (g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + 0.1)
    (wanted,) = torch.autograd.grad((2 * g / 4 * out).sum(), network.gain)
    torch.testing.assert_close(network.gain.grad, wanted)


def test_the_learnt_weight_balances_the_levels():
    """exp(w) l - w is least where exp(w) = 1 / l."""
    weight = AdaptiveWeight()
    c = torch.linspace(-1.5, 1.1, 200)
    assert torch.equal(weight(c), torch.zeros(200))
    loss = torch.exp(1 + torch.sin(2 * c))
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.05)
    for _ in range(600):
        w = weight(c)
        optimizer.zero_grad()
        (w.exp() * loss - w).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight(c).detach(), -loss.log(), rtol=0, atol=0.05)


def test_the_weight_is_declared_where_there_is_one():
    weight = AdaptiveWeight()
    learnt = objective(weight=weight)
    assert isinstance(learnt, TrainsAlong)
    assert list(learnt.trained.parameters()) == list(weight.parameters())
    assert learnt.modules == {"weight": weight}
    assert list(objective().trained.parameters()) == []
    loss = learnt.loss(Scale(), torch.zeros(4, 1, 2, 2), None, 0, rng())
    loss.mean().backward()
    assert weight.linear.bias.grad.abs() > 0


def test_levels_are_log_normal():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append(4 * c_noise.detach())
            return x

    objective().loss(Spy(), torch.zeros(20_000, 1, 1, 1), None, 0, rng())
    assert float(seen[0].mean()) == pytest.approx(-1.0, abs=0.03)
    assert float(seen[0].std()) == pytest.approx(1.4, abs=0.03)
    assert math.isfinite(float(seen[0].max()))
