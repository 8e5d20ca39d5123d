"""PFGM: its prior, its field and its field lines against closed forms, and a short training on the mixture."""

import math

import numpy as np
import pytest
import torch
from cmbench_baselines.pfgm import (
    PFGM,
    PFGMRecipe,
    PoissonObjective,
    follow_field,
    noise_level,
    normalised_field,
    poisson_mean,
    prior,
)
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from scipy import stats
from torch import nn

from cmbench.errors import UsageError
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.training.fit import Fit

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dimensions", [2, 12])
def test_prior_is_a_uniform_hemisphere_seen_from_the_origin(dimensions: int):
    made = prior(normal(4000, dimensions), normal(4000, seed=1), 3.0, torch.inf)
    squared = made.square().sum(1)
    assert stats.kstest(squared / (squared + 9), stats.beta(dimensions / 2, 0.5).cdf).pvalue > 0.01
    # a uniform direction in N + 1 dimensions is a normal vector's; its last coordinate was folded to be positive
    height = 3 / torch.sqrt(squared + 9)
    uniform = normal(4000, dimensions + 1, seed=2)
    other = uniform[:, -1].abs() / uniform.norm(dim=1)
    assert stats.ks_2samp(height, other).pvalue > 0.01
    assert two_sample_p((made / made.norm(dim=1, keepdim=True))[:300], _directions(300, dimensions)) > 0.01


def _directions(count: int, dimensions: int) -> torch.Tensor:
    other = normal(count, dimensions, seed=3)
    return other / other.norm(dim=1, keepdim=True)


def test_prior_is_cut_to_the_largest_root_mean_square():
    noise, radial = normal(500, 4), normal(500, seed=1)
    free, cut = prior(noise, radial, 3.0, torch.inf), prior(noise, radial, 3.0, 5.0)
    inside = free.square().mean(1).sqrt() <= 5
    assert 0 < int(inside.sum()) < 500
    torch.testing.assert_close(cut[inside], free[inside])
    size = cut[~inside].square().mean(1).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 5.0))


def test_field_is_that_of_the_charges():
    """The sum of (point - charge) / distance^(N + 1), in N + 1 dimensions, up to a factor for each point."""
    x, z, data = 2 * normal(6, *SHAPE), normal(6, seed=1).abs(), normal(9, *SHAPE, seed=2)
    gamma = 0.1
    mean = poisson_mean(x, z, data)
    made = normalised_field(mean, x, z, gamma)
    for i in range(6):
        point = np.append(x[i].ravel().numpy(), float(z[i]))
        apart = point - np.column_stack([data.reshape(9, 2).numpy(), np.zeros(9)])
        weight = np.linalg.norm(apart, axis=1) ** -3
        field = (weight[:, None] * apart).sum(0) / weight.sum()
        wanted = -math.sqrt(2) * field / (np.linalg.norm(field) + gamma * math.sqrt(2))
        np.testing.assert_allclose(made[i].numpy(), wanted, rtol=1e-8)


def test_a_mask_leaves_only_its_own_charges():
    x, z, data = normal(4, *SHAPE), torch.ones(4), normal(6, *SHAPE, seed=1)
    own = torch.tensor([0, 1, 0, 1])[:, None] == torch.tensor([0, 0, 0, 1, 1, 1])[None]
    made = poisson_mean(x, z, data, own)
    torch.testing.assert_close(made[0::2], poisson_mean(x[0::2], z[0::2], data[:3]))
    torch.testing.assert_close(made[1::2], poisson_mean(x[1::2], z[1::2], data[3:]))


def test_field_lines_carry_the_prior_to_the_charges_in_equal_shares():
    charges = torch.tensor([[-0.6, -0.4], [0.7, -0.5], [0.1, 0.6], [0.0, 0.0]], dtype=torch.float64)
    charges = charges.reshape(4, *SHAPE)
    z = {}

    def denoise(x, level, labels):
        """The exact mean; what the network is told is turned back into z."""
        beyond = (x.flatten(1).square().mean(1).sqrt() - 1).clamp(min=0)
        z["now"] = torch.sqrt((level**2 - beyond**2).clamp(min=0))
        return poisson_mean(x, z["now"], charges)

    recipe = PFGMRecipe(z_max=40.0, z_min=1e-4, tolerance=1e-5)
    count = 600
    made = follow_field(denoise, prior(normal(count, *SHAPE), normal(count, seed=1), 40, 1e9), None, recipe)
    apart = (made.flatten(1)[:, None] - charges.flatten(1)[None]).norm(dim=2)
    assert float(apart.min(1).values.quantile(0.95)) < 0.01  # the paths that come in flat are still under way
    shares = torch.bincount(apart.argmin(1), minlength=4)
    assert stats.chisquare(shares.numpy()).pvalue > 0.01


def test_the_exact_mean_has_the_least_loss_and_none_over_the_whole_data():
    recipe = PFGMRecipe(points=40, levels=200)
    data = Mixture().sample(200, seed=0).float()

    class Exact(nn.Module):
        """The raw network of the exact mean, shifted."""

        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x, c_noise, labels=None):
            level = torch.exp(4 * c_noise.double())
            total = torch.sqrt(level**2 + 0.25).reshape(-1, 1, 1, 1)
            noisy = x.double() * total
            beyond = (noisy.flatten(1).square().mean(1).sqrt() - 1).clamp(min=0)
            z = torch.sqrt((level**2 - beyond**2).clamp(min=0))
            clean = poisson_mean(noisy, z, data) + self.shift
            c_out = level.reshape(-1, 1, 1, 1) * 0.5 / total
            return ((clean - 0.25 / total**2 * noisy) / c_out).to(x.dtype)

    def loss(shift: float) -> float:
        rng = torch.Generator().manual_seed(0)
        losses = PoissonObjective(recipe, 0.5, False).loss(Exact(shift), data, None, 0, rng)
        assert losses.shape == (40,)
        return float(losses.mean())

    assert loss(0.0) < 1e-3 * loss(0.1)


def test_training_points_have_the_distribution_of_the_paper():
    """At a fixed scale s the points lie at x + s e, z = s |e'|: checked through what the network is told."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append((x, torch.exp(4 * c_noise)))
            return x

    recipe = PFGMRecipe(points=4000, sigma=0.05, tau=0.03, levels=100)
    data = torch.zeros(4000, *SHAPE)
    PoissonObjective(recipe, 0.5, False).loss(Spy(), data, None, 0, torch.Generator().manual_seed(0))
    x, level = seen[0]
    noisy = x.double() * torch.sqrt(level.double() ** 2 + 0.25).reshape(-1, 1, 1, 1)
    beyond = (noisy.flatten(1).square().mean(1).sqrt() - 1).clamp(min=0)
    z = torch.sqrt((level**2 - beyond**2).clamp(min=0))
    rng = np.random.default_rng(0)
    spread = 0.05 * 1.03 ** rng.uniform(0, 100, 4000)
    assert stats.ks_2samp(z, spread * abs(rng.standard_normal(4000))).pvalue > 0.01
    radius = spread * np.linalg.norm(rng.standard_normal((4000, 2)), axis=1)
    assert stats.ks_2samp(noisy.flatten(1).norm(dim=1), radius).pvalue > 0.01


def test_level_told_is_z_near_the_data_and_grows_with_the_distance():
    z = torch.tensor([0.1, 0.1])
    x = torch.tensor([[0.9, -0.9], [30.0, 40.0]])
    made = noise_level(x, z)
    assert float(made[0]) == pytest.approx(0.1)
    assert float(made[1]) == pytest.approx(math.hypot(0.1, math.sqrt(1250) - 1))


@pytest.mark.parametrize("wrong", [{"z_min": 0.0}, {"z_max": 1e-4}, {"gamma": 0.0}, {"tolerance": 0.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        PFGMRecipe(**wrong)


@pytest.mark.slow
def test_trained_on_the_mixture(tmp_path):
    fit = Fit(steps=1500, batch_size=1000, learning_rate=2e-3, schedule="cosine", ema=0.99)
    recipe = PFGMRecipe(fit, points=256, levels=330, z_max=15.0, upper=150.0)
    model = train_on_mixture(PFGM, recipe, tmp_path)
    counter = EvaluationCounter(model.network)
    made = Source(PFGM.sampler(model, recipe, 110), SHAPE, 0, 5, CPU).images(range(300))
    data = Mixture().sample(300, seed=3)
    assert two_sample_p(made, data) > 0.01
    assert two_sample_p(made + 0.12, data) < 0.01
    assert 30 < counter.rows / 300 < 300
