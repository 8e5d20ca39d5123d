"""Consistency trajectory models, on Gaussian data and on the mixture, whose solution maps are known."""

import pytest
import torch
from cmbench_baselines.ctm import CTM, CTMRecipe, Trajectory, TrajectoryObjective
from cmbench_baselines.edm import EDM, EDMRecipe
from flow_maps import NOISE, ExactTeacher, check_sampler, rms
from gaussian import ExactDenoiser, Gaussian, column
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import Tensor, nn

from cmbench.consistency.distance import squared_l2
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.solvers import heun_step
from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.training.fit import Fit

DATA = Gaussian()


class Exact(nn.Module):
    """The raw network whose jumps are those of the Gaussian's flow; at s = t its g is the denoiser."""

    def __init__(self, data: Gaussian = DATA) -> None:
        super().__init__()
        self.data = data

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        t, s = torch.exp(4 * c_noise.double()).unbind(1)
        total = torch.sqrt(column(t, x.double()) ** 2 + 0.25)
        noisy = x.double() * total
        ratio = column(s / t, noisy)
        same = ratio > 1 - 1e-6
        jump = (self.data.flow(noisy, t, s) - ratio * noisy) / (1 - ratio).clamp(min=1e-9)
        g = torch.where(same, self.data.denoise(noisy, t), jump)
        return ((g - 0.25 / total**2 * noisy) * total / (0.5 * column(t, noisy))).to(x.dtype)


def test_a_jump_to_where_it_starts_is_the_identity():
    x, t = torch.randn(4, 1, 2, 2), torch.tensor([0.002, 0.5, 3.0, 80.0])

    class Wild(nn.Module):
        def forward(self, x, c_noise, labels=None):
            return torch.sin(9 * x)

    torch.testing.assert_close(Trajectory(Wild(), 0.5)(x, t, t), x, rtol=0, atol=0)


def objective(target: nn.Module, **values) -> TrajectoryObjective:
    recipe = CTMRecipe(points=40, **values)
    return TrajectoryObjective(
        recipe, NOISE, squared_l2, Denoiser(ExactDenoiser(DATA), 0.5), heun_step, target
    )


@pytest.mark.parametrize("most_steps", [1, 39])
def test_the_exact_jumps_have_no_trajectory_loss(most_steps: int):
    x = DATA.mean + DATA.std * torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def loss(network: nn.Module) -> float:
        made = [
            objective(network, most_steps=most_steps).trajectory(
                network, x, None, torch.Generator().manual_seed(seed)
            )
            for seed in range(5)
        ]
        return float(torch.cat(made).mean())

    assert loss(Exact()) < 1e-4  # what Heun's steps lose
    assert loss(Exact(Gaussian(0.3, 0.4))) > 20 * loss(Exact())
    assert loss(Exact(Gaussian(0.2, 0.5))) > 20 * loss(Exact())


def test_the_denoising_loss_is_least_where_g_is_the_denoiser():
    x = DATA.mean + DATA.std * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def loss(data: Gaussian) -> float:
        return float(
            objective(Exact(data)).denoising(Exact(data), x, None, torch.Generator().manual_seed(1)).mean()
        )

    best = loss(DATA)
    for other in (Gaussian(0.25, 0.4), Gaussian(0.15, 0.4), Gaussian(0.2, 0.5), Gaussian(0.2, 0.32)):
        assert loss(other) > best


def test_levels_are_ordered_and_every_jump_is_trained():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append(torch.exp(4 * c_noise))
            return x

    made = objective(Spy(), most_steps=3)
    made.trajectory(Spy(), torch.zeros(5000, 1, 1, 1), None, torch.Generator().manual_seed(0))
    from_u, _, from_t, _ = seen  # the target's two jumps, the student's, the target's again
    (u, s), (t, again) = from_u.unbind(1), from_t.unbind(1)
    assert bool((t > u).all()) and bool((u >= s).all())
    torch.testing.assert_close(s, again)
    assert float(s.min()) == pytest.approx(NOISE.sigma_min, rel=1e-3)
    assert float(t.max()) == pytest.approx(NOISE.sigma_max, rel=1e-3)


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_exact_jumps_sample_the_data_at_any_gamma(nfe: int, gamma: float):
    class Draws:
        generator = torch.Generator().manual_seed(3)

        def normal(self, shape):
            return torch.randn(40_000, *shape, generator=self.generator)

    z = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    made = CTM.sampler(Model(Exact(), NOISE), CTMRecipe(gamma=gamma), nfe)(z, None, Draws())
    assert float(made.mean()) == pytest.approx(DATA.mean, abs=0.015)
    assert float(made.std()) == pytest.approx(DATA.std, rel=0.02)
    if gamma == 0:
        wanted = DATA.flow(80 * z.double(), torch.full((40_000,), 80.0), torch.full((40_000,), 0.002))
        torch.testing.assert_close(made.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("nfe", [1, 2, 17])
def test_sampler(nfe: int, gamma: float):
    check_sampler(CTM, CTMRecipe(gamma=gamma), nfe)


def test_the_grid_has_levels_for_so_many_evaluations():
    assert "levels for 17 evaluations" in CTM.refuses(18, CTMRecipe())


def test_settings_that_make_no_sense_are_refused():
    for values in (
        {"points": 1},
        {"most_steps": 18},
        {"gamma": 2.0},
        {"denoising": -1.0},
        {"target_ema": 1.0},
    ):
        with pytest.raises(UsageError, match="ctm"):
            CTMRecipe(**values)


@pytest.mark.slow
def test_on_the_mixture_every_jump_is_the_solution_map(tmp_path):
    def fit(steps: int, learning_rate: float) -> Fit:
        return Fit(steps=steps, batch_size=256, learning_rate=learning_rate, schedule="cosine", ema=0.99)

    data = Mixture()
    start = train_on_mixture(EDM, EDMRecipe(fit=fit(1000, learning_rate=2e-3)), tmp_path).network
    recipe = CTMRecipe(fit=fit(1200, learning_rate=1e-3), points=18, most_steps=4, target_ema=0.9)
    model = train_on_mixture(CTM, recipe, tmp_path, teacher=ExactTeacher(data, start))
    z = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(7))
    exact = data.solve(80 * z, 80.0, 0.002)
    with torch.no_grad():
        made = {nfe: CTM.sampler(model, recipe, nfe)(z, None, None) for nfe in (1, 4)}
    assert rms(made[1] - exact) < 0.18
    assert rms(made[4] - exact) < 0.1
    assert two_sample_p(made[1], data.sample(300, seed=11)) > 0.01
