"""Score SDE's samplers where the score is known, and short trainings on the mixture."""

import math

import numpy as np
import pytest
import torch
from cmbench_baselines.score_sde import (
    ODE,
    VE,
    VP,
    VP_SDE,
    ODERecipe,
    VERecipe,
    VPRecipe,
    langevin_step,
    predictor_corrector,
    probability_flow,
    vp_score,
)
from gaussian import Gaussian
from mixture import SHAPE, ExactNetwork, Mixture, train_on_mixture, two_sample_p
from scipy.integrate import quad

from cmbench.diffusion.ddpm import linear_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.sde import VarianceExploding, geometric
from cmbench.errors import UsageError
from cmbench.methods import Model, Parent
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.sampling.seeds import SampleRng, initial_noise
from cmbench.training.fit import Fit

CPU = torch.device("cpu")
DATA = Mixture()
EXACT = Model(ExactNetwork(DATA), NoiseRange())
LARGE = (1, 8, 8)


def images(method, recipe, nfe: int, count: int, model: Model = EXACT, seed: int = 5) -> torch.Tensor:
    return Source(method.sampler(model, recipe, nfe), SHAPE, 0, seed, CPU).images(range(count))


def raised() -> tuple[Mixture, torch.Tensor]:
    """Three components in 64 dimensions, where a sample's own norms are near their mean, and samples of it."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-0.5, 0.5, (3, 64))
    data = Mixture(0.2, tuple(map(tuple, centres.tolist())), (0.3, 0.3, 0.4))
    which = rng.choice(3, 300, p=data.weights)
    return data, torch.from_numpy(centres[which] + 0.2 * rng.standard_normal((300, 64)))


def test_variance_preserving_times_solve_their_equation():
    """d ln scale / dt = -beta / 2, scale^2 (1 + sigma^2) = 1, and DDPM's levels are nearly those at i / 1000."""
    for t in (0.01, 0.3, 1.0):
        at = torch.tensor(t, dtype=torch.float64)
        area, _ = quad(lambda s: float(VP.beta(torch.tensor(s))), 0, t)
        assert float(VP.scale(at)) == pytest.approx(math.exp(-area / 2), rel=1e-6)
        assert float(VP.scale(at) ** 2 * (1 + VP.sigma(at) ** 2)) == pytest.approx(1)
    times = torch.arange(100, 1000, dtype=torch.float64)
    torch.testing.assert_close(VP.sigma((times + 1) / 1000), linear_sigmas()[100:], rtol=0.11, atol=0)


def test_variance_exploding_levels_are_geometric():
    sde = VarianceExploding(0.02, 100)
    t = torch.linspace(1, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(t), geometric(100, 0.02, 11))
    assert geometric(100, 0.02, 1).tolist() == [100]


def test_score_is_the_gradient_of_the_log_density():
    data = Gaussian()
    t = torch.tensor([0.05, 0.4, 1.0], dtype=torch.float64)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    scale, sigma = (v.reshape(3, 1, 1, 1) for v in (VP.scale(t), VP.sigma(t)))
    variance = scale**2 * (data.std**2 + sigma**2)
    torch.testing.assert_close(vp_score(data.denoise, x, t, None), (scale * data.mean - x) / variance)


def test_langevin_step_has_the_signal_to_noise_ratio_asked_for():
    score, z = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.randn(5, 1, 2, 2)
    x = torch.zeros(5, 1, 2, 2, dtype=torch.float64)
    made = langevin_step(x, score, z, 0.16)
    size = 2 * (0.16 * z.double().flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)) ** 2
    e = size.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(made, e * score + torch.sqrt(2 * e) * z)
    ratio = (e * score).flatten(1).norm(dim=1) / (torch.sqrt(2 * e) * z).flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((5,), 0.16, dtype=torch.float64))


@pytest.mark.slow
def test_predictor_and_corrector_with_the_exact_score_give_the_mixture():
    data, drawn = raised()
    spent = 0

    def denoise(x, sigma, labels):
        nonlocal spent
        spent += len(x)
        return data.denoise(x, sigma)

    noise = initial_noise(5, range(300), LARGE)
    made = predictor_corrector(
        denoise, noise, geometric(100, 0.02, 1000), None, SampleRng(5, range(300), CPU), 0.16
    )
    assert spent == 300 * 2000
    assert two_sample_p(made, drawn) > 0.01
    assert two_sample_p(made + 0.07, drawn) < 0.01


def test_the_reverse_sde_with_the_exact_score_gives_the_mixture():
    made = images(VP_SDE, VPRecipe(), 1000, 300)
    assert two_sample_p(made, DATA.sample(300, seed=3)) > 0.01


def test_the_ode_reaches_the_exact_solution():
    noise = initial_noise(5, range(40), SHAPE).double()
    high, low = (float(VP.sigma(torch.tensor(t, dtype=torch.float64))) for t in (1.0, 1e-3))
    scale = float(VP.scale(torch.tensor(1e-3, dtype=torch.float64)))
    wanted = scale * DATA.solve(noise * math.sqrt(1 + high**2), high, low)
    error = {
        tolerance: float((probability_flow(DATA.denoise, noise, None, tolerance) - wanted).abs().max())
        for tolerance in (1e-3, 1e-5, 1e-7)
    }
    assert error[1e-5] < 5e-4
    assert error[1e-7] < error[1e-5] < error[1e-3]
    torch.testing.assert_close(images(ODE, ODERecipe(), 140, 40), wanted.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("method", "recipe", "nfe"), [(VE, VERecipe(), 20), (VP_SDE, VPRecipe(), 20)])
def test_evaluations_and_independence_of_the_batch(method, recipe, nfe: int):
    counter = EvaluationCounter(EXACT.network)
    together = images(method, recipe, nfe, 6)
    counter.close()
    assert counter.rows == 6 * nfe
    alone = Source(method.sampler(EXACT, recipe, nfe), SHAPE, 0, 5, CPU)
    torch.testing.assert_close(together, torch.cat([alone.images([0]), alone.images(range(1, 6))]))


def test_what_cannot_be_asked_for():
    assert VE.refuses(2000, VERecipe()) is None
    assert "even" in str(VE.refuses(35, VERecipe()))
    assert ODE.refuses(140, ODERecipe()) is None
    assert "ask for 140" in str(ODE.refuses(35, ODERecipe()))
    assert ODE.parent("", ODERecipe()) == Parent("score-sde-vp")
    for wrong in (lambda: VERecipe(snr=0), lambda: VERecipe(sigma_min=200), lambda: ODERecipe(0)):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.slow
def test_variance_preserving_trained_on_the_mixture(tmp_path):
    fit = Fit(steps=2500, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    model = train_on_mixture(VP_SDE, VPRecipe(fit), tmp_path)
    data = DATA.sample(300, seed=3)
    made = images(VP_SDE, VPRecipe(), 1000, 300, model)
    assert two_sample_p(made, data) > 0.01
    assert two_sample_p(made + 0.12, data) < 0.01
    counter = EvaluationCounter(model.network)
    noise = initial_noise(5, range(300), SHAPE)
    made = images(ODE, ODERecipe(1e-4), 140, 300, model)
    assert 30 < counter.rows / 300 < 400
    assert two_sample_p(made, data) > 0.01
    exact = probability_flow(DATA.denoise, noise, None, 1e-6)
    assert float((made - exact).flatten(1).norm(dim=1).median()) < 0.08


@pytest.mark.slow
def test_variance_exploding_trained_on_the_mixture(tmp_path):
    """By the ODE: in two dimensions a sample's own norms are too unlike their mean for the corrector."""
    from cmbench.diffusion.solvers import heun_step, integrate

    fit = Fit(steps=2000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    model = train_on_mixture(VE, VERecipe(fit), tmp_path)
    noise = initial_noise(5, range(300), SHAPE)
    made = integrate(model.denoiser(), noise, geometric(100, 0.02, 100), heun_step, None)
    data = DATA.sample(300, seed=3)
    assert two_sample_p(made, data) > 0.01
    exact = DATA.denoise(DATA.solve(100 * noise, 100.0, 0.02), torch.full((300,), 0.02))
    assert float((made - exact).flatten(1).norm(dim=1).median()) < 0.08
