"""The consistency function, its boundary, and multistep sampling (Algorithm 1)."""

import math

import pytest
import torch
from gaussian import ExactConsistency, Gaussian, Scale

from cmbench.consistency.function import (
    ConsistencyFunction,
    ConsistencyModel,
    check_taus,
    default_taus,
    multistep,
)
from cmbench.consistency.methods import CD, CT, CDRecipe, CTRecipe
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.networks import build
from cmbench.sampling.generate import EvaluationCounter, Source

NOISE = NoiseRange()
DATA = Gaussian()


class Recorded:
    """A consistency function that notes its inputs, and a noise source of known draws."""

    def __init__(self, made: float) -> None:
        self.made, self.calls, self.drawn = made, [], []

    def __call__(self, x, sigma, labels):
        self.calls.append((x, sigma, labels))
        return torch.full_like(x, self.made)

    def normal(self, shape):
        self.drawn.append(torch.randn(len(self.calls[0][0]), *shape))
        return self.drawn[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [NOISE, NoiseRange(0.013, 10.0, 0.7)])
def test_at_sigma_min_it_is_the_identity_exactly(dtype: torch.dtype, noise: NoiseRange):
    torch.manual_seed(0)
    network = build({"kind": "mlp", "width": 16, "blocks": 1}, (1, 4, 4), 0)
    for p in network.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(5, 1, 4, 4, dtype=dtype) * 3
    lowest = karras_sigmas(noise, 18)[-1].expand(5).to(dtype)
    assert torch.equal(ConsistencyFunction(network, noise)(x, lowest), x)
    assert not torch.allclose(ConsistencyFunction(network, noise)(x, 2 * lowest), x)


def test_coefficients_are_those_of_appendix_c():
    noise = NoiseRange(0.01, 50.0, 0.6)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.2, 1.0, 50.0], dtype=torch.float64)
    made = ConsistencyFunction(Scale(0.0, 2.0), noise)(x, sigma)
    for i, t in enumerate(sigma.tolist()):
        above = t - 0.01
        c_skip = 0.36 / (above**2 + 0.36)
        c_out = 0.6 * above / math.sqrt(t**2 + 0.36)
        torch.testing.assert_close(made[i], c_skip * x[i] + c_out * 2.0)


def test_the_exact_network_gives_the_exact_function():
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64) * 2
    sigma = torch.tensor([0.01, 0.5, 10.0, 80.0], dtype=torch.float64)
    made = ConsistencyFunction(ExactConsistency(DATA, NOISE), NOISE)(x, sigma)
    torch.testing.assert_close(made, DATA.flow(x, sigma, torch.full_like(sigma, 0.002)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taus", [(), (0.8,), (20.0, 2.0, 0.1)])
def test_multistep_makes_one_evaluation_more_than_it_has_taus(taus: tuple[float, ...]):
    f = Recorded(0.5)
    labels = torch.tensor([3, 4])
    made = multistep(ConsistencyModel(f, NOISE), torch.randn(2, 1, 2, 2), labels, f, taus)
    assert len(f.calls) == 1 + len(taus)
    assert len(f.drawn) == len(taus)
    assert [float(sigma[0]) for _, sigma, _ in f.calls] == pytest.approx([80.0, *taus])
    assert all(given is labels for _, _, given in f.calls)
    assert made.shape == (2, 1, 2, 2)


def test_multistep_clips_before_it_adds_noise_again_and_at_the_end():
    f = Recorded(7.0)
    noise = torch.randn(2, 1, 2, 2)
    made = multistep(ConsistencyModel(f, NOISE), noise, None, f, (3.0,))
    torch.testing.assert_close(f.calls[0][0], 80 * noise)
    torch.testing.assert_close(f.calls[1][0], 1 + math.sqrt(9 - 0.002**2) * f.drawn[0])
    assert torch.equal(made, torch.ones(2, 1, 2, 2))
    f = Recorded(-7.0)
    assert torch.equal(multistep(ConsistencyModel(f, NOISE), noise, None, f, ()), -torch.ones(2, 1, 2, 2))


def test_noise_of_tau_at_sigma_min_is_none_at_all():
    """sqrt(tau^2 - eps^2), not tau: at tau = eps the image is left alone."""
    f = Recorded(0.25)
    multistep(ConsistencyModel(f, NOISE), torch.randn(2, 1, 2, 2), None, f, (0.002,))
    torch.testing.assert_close(f.calls[1][0], torch.full((2, 1, 2, 2), 0.25), rtol=0, atol=1e-7)


@pytest.mark.parametrize("taus", [(), (10.0,), (20.0, 2.0, 0.5)])
def test_multistep_with_the_exact_function_samples_the_gaussian(taus: tuple[float, ...]):
    network = ExactConsistency(DATA, NOISE)
    source = Source(CD.sampler(Model(network, NOISE), CDRecipe(taus={str(1 + len(taus)): taus}), 1 + len(taus)),
                    (1, 40, 40), 0, 0, torch.device("cpu"))  # fmt: skip
    x = source.images(range(10)).double()
    n = x.numel()
    # clipped to [-1, 1]: two standard deviations above the mean, three below
    wanted = torch.clamp(DATA.mean + DATA.std * torch.randn(400_000, dtype=torch.float64), -1, 1)
    assert float(x.mean()) == pytest.approx(float(wanted.mean()), abs=5 * DATA.std / math.sqrt(n))
    assert float(x.std()) == pytest.approx(float(wanted.std()), rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
@pytest.mark.parametrize("method", [CD, CT])
def test_a_sampler_evaluates_as_often_as_it_was_asked_to(method, nfe: int):
    network = Scale()
    counter = EvaluationCounter(network)
    sampler = method.sampler(Model(network, NOISE), method.recipe(), nfe)
    Source(sampler, (1, 2, 2), 0, 0, torch.device("cpu")).images(range(5))
    assert counter.rows == 5 * nfe


def test_samples_depend_on_neither_batch_nor_order():
    sampler = CD.sampler(Model(Scale(), NOISE), CDRecipe(), 3)
    source = Source(sampler, (1, 3, 3), 0, 7, torch.device("cpu"))
    together = source.images(range(6))
    assert torch.equal(torch.cat([source.images([i]) for i in range(6)]), together)
    assert torch.equal(source.images([4, 1, 5]), together[[4, 1, 5]])
    assert len({float(image.sum()) for image in together}) == 6


@pytest.mark.parametrize(
    "taus",
    [(0.002,), (80.0,), (100.0,), (0.0,), (-1.0,), (1.0, 1.0), (1.0, 2.0), (5.0, 3.0, 4.0), (math.nan,)],
)
def test_taus_that_do_not_fall_within_the_range_are_refused(taus: tuple[float, ...]):
    with pytest.raises(UsageError, match="fall strictly"):
        check_taus(taus, NOISE)


def test_default_taus_lie_on_the_training_grid():
    grid = karras_sigmas(NOISE, 18).tolist()
    assert default_taus(1, 18, NOISE) == ()
    assert default_taus(2, 18, NOISE) == (grid[8],)
    assert default_taus(17, 18, NOISE) == tuple(grid[1:-1])
    for nfe in range(1, 18):
        taus = default_taus(nfe, 18, NOISE)
        check_taus(taus, NOISE)
        assert len(taus) == nfe - 1 and set(taus) <= set(grid)
    with pytest.raises(UsageError, match="at most 17 evaluations"):
        default_taus(18, 18, NOISE)


@pytest.mark.parametrize(("method", "recipe"), [(CD, CDRecipe), (CT, CTRecipe)])
def test_taus_of_the_recipe_serve_their_nfe_alone(method, recipe):
    chosen = recipe(taus={"2": (0.585,), "3": (1.0,)})
    assert method.refuses(1, chosen) is None
    assert method.refuses(2, chosen) is None
    assert method.refuses(4, chosen) is None
    assert "3 evaluations take 2 taus, the recipe has 1" in method.refuses(3, chosen)

    levels = []

    class Spy(torch.nn.Module):
        def forward(self, x, c_noise, labels=None):
            levels.append(float(torch.exp(4 * c_noise[0])))
            return x

    noise = torch.randn(1, 1, 2, 2)
    rng = Recorded(0.0)
    rng.calls.append((noise,))
    method.sampler(Model(Spy(), NOISE), chosen, 2)(noise, None, rng)
    assert levels == pytest.approx([80, 0.585], rel=1e-5)


def test_more_evaluations_than_the_training_grid_has_levels_need_taus():
    assert CD.refuses(9, CDRecipe(points=10)) is None
    assert "grid of 10 points has levels for 9 evaluations" in CD.refuses(10, CDRecipe(points=10))
    assert CT.refuses(20, CTRecipe(s1=20)) is None
    assert "grid of 21 points" in CT.refuses(21, CTRecipe(s1=20))
    assert CD.refuses(3, CDRecipe(points=2, taus={"3": (2.0, 1.0)})) is None


def test_a_record_of_a_model_trained_with_lpips_says_so():
    for method in (CD, CT):
        assert "LPIPS" in method.notes(method.recipe(metric="lpips"))[0]
        assert method.notes(method.recipe(metric="l2")) == ()
