"""DDPM and ADM's sampler where the denoiser is known, and a short training on the mixture."""

import math

import pytest
import torch
from cmbench_baselines.adm import ADM, ADMRecipe
from cmbench_baselines.ddpm import DDPM, DDPMRecipe, EpsilonObjective
from mixture import SHAPE, ExactNetwork, Mixture, train_on_mixture, two_sample_p
from torch import nn

from cmbench.diffusion.ddpm import linear_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.errors import UsageError
from cmbench.methods import Model, Parent
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.training.fit import Fit

CPU = torch.device("cpu")
DATA = Mixture()
EXACT = Model(ExactNetwork(DATA), NoiseRange())


def source(sampler, seed: int = 5) -> Source:
    return Source(sampler, SHAPE, 0, seed, CPU)


@pytest.mark.parametrize(
    ("method", "recipe", "nfe"),
    [(DDPM, DDPMRecipe(), 1000), (ADM, ADMRecipe(), 250), (ADM, ADMRecipe("large"), 1000)],
)
def test_ancestral_sampling_with_the_exact_denoiser_gives_the_mixture(method, recipe, nfe: int):
    counter = EvaluationCounter(EXACT.network)
    made = source(method.sampler(EXACT, recipe, nfe)).images(range(300))
    counter.close()
    assert counter.rows == 300 * nfe
    data = DATA.sample(300, seed=3)
    assert two_sample_p(made, data) > 0.01
    assert two_sample_p(made + 0.12, data) < 0.01


@pytest.mark.parametrize("nfe", [1, 7, 100])
def test_a_sample_depends_on_its_seed_alone(nfe: int):
    images = source(DDPM.sampler(EXACT, DDPMRecipe(), nfe)).images
    torch.testing.assert_close(images(range(6)), torch.cat([images([0, 1]), images([2, 3, 4, 5])]))
    assert not torch.equal(images([0]), images([1]))


def test_more_evaluations_than_levels_are_refused():
    for method, recipe in ((DDPM, DDPMRecipe()), (ADM, ADMRecipe())):
        assert method.refuses(1000, recipe) is None
        assert "1000 noise levels" in str(method.refuses(1001, recipe))
    assert ADM.parent("", ADMRecipe()) == Parent("ddpm")
    with pytest.raises(UsageError, match="variance"):
        ADMRecipe("learned")


def test_loss_is_the_simple_loss_of_equation_14():
    """The mean squared error of the noise that the network's denoiser implies."""

    class Fixed(nn.Module):
        def forward(self, x, c_noise, labels=None):
            return 0.3 * x + c_noise.reshape(-1, 1, 1, 1)

    sigmas = linear_sigmas()
    x = DATA.sample(50, seed=0).float()
    objective = EpsilonObjective(lambda u: sigmas[(u * 1000).long()], 0.5)
    made = objective.loss(Fixed(), x, None, 0, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    sigma = sigmas[(torch.rand(50, generator=rng, dtype=torch.float64) * 1000).long()]
    z = torch.randn(x.shape, generator=rng)
    noisy = x + sigma.float().reshape(-1, 1, 1, 1) * z
    epsilon = (noisy - Denoiser(Fixed(), 0.5)(noisy, sigma.float())) / sigma.float().reshape(-1, 1, 1, 1)
    wanted = (z - epsilon).square().flatten(1).mean(1)
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-4)
    assert len(set(sigma.tolist())) > 40
    assert math.log(float(sigma.max() / sigma.min())) > 4


@pytest.mark.slow
def test_trained_on_the_mixture(tmp_path):
    fit = Fit(steps=2500, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    model = train_on_mixture(DDPM, DDPMRecipe(fit), tmp_path)
    made = source(DDPM.sampler(model, DDPMRecipe(), 1000)).images(range(300))
    data = DATA.sample(300, seed=3)
    assert two_sample_p(made, data) > 0.01
    assert two_sample_p(made + 0.12, data) < 0.01
