"""EDM and progressive distillation on Gaussian data, where the answers are known."""

import math

import pytest
import torch
from cmbench_baselines.edm import EDM, DenoisingObjective, EDMRecipe
from cmbench_baselines.pd import PD, PDRecipe, StageObjective, grid, two_steps
from gaussian import ExactDenoiser, Gaussian, Scale
from torch import nn

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.solvers import euler_step
from cmbench.errors import UsageError
from cmbench.methods import Model, Parent
from cmbench.sampling.generate import EvaluationCounter, Source

NOISE = NoiseRange()
DATA = Gaussian()
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- EDM -------------------------------------------------------------------------------------------


def test_edm_loss_is_equations_2_and_8():
    sd = 0.7
    network = Scale()
    x = torch.rand(6, 1, 3, 3, generator=rng(1)) * 2 - 1
    made = DenoisingObjective(NoiseRange(sigma_data=sd), -0.4, 0.9).loss(network, x, None, 0, rng())
    draws = rng()
    sigma = torch.exp(-0.4 + 0.9 * torch.randn(6, generator=draws))
    z = torch.randn(x.shape, generator=draws)
    for i, s in enumerate(sigma.tolist()):
        clean = Denoiser(network, sd)(x[i : i + 1] + s * z[i : i + 1], sigma[i : i + 1])
        wanted = (s**2 + sd**2) / (s * sd) ** 2 * float((clean - x[i]).square().mean().detach())
        assert float(made[i].detach()) == pytest.approx(wanted, rel=1e-4)


def test_edm_loss_is_least_at_the_exact_denoiser():
    x = DATA.mean + DATA.std * torch.randn(4000, 1, 1, 1, generator=rng(1))
    objective = DenoisingObjective(NOISE, -1.2, 1.2)

    def loss(data: Gaussian) -> float:
        return float(objective.loss(ExactDenoiser(data), x, None, 0, rng()).mean())

    best = loss(DATA)
    for other in (Gaussian(0.25, 0.4), Gaussian(0.15, 0.4), Gaussian(0.2, 0.5), Gaussian(0.2, 0.32)):
        assert loss(other) > best


def test_edm_levels_are_log_normal():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append(4 * c_noise)
            return x

    DenoisingObjective(NOISE, -1.2, 0.8).loss(Spy(), torch.zeros(20_000, 1, 1, 1), None, 0, rng())
    assert float(seen[0].mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(seen[0].std()) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("nfe", [1, 3, 9, 35, 79])
def test_edm_spends_exactly_the_evaluations_asked_for(nfe: int):
    assert EDM.refuses(nfe, EDMRecipe()) is None
    _counts(EDM, EDMRecipe(), nfe)


def test_edm_refuses_even_numbers_of_evaluations():
    for nfe in (2, 4, 50):
        assert "odd" in EDM.refuses(nfe, EDMRecipe())


def _counts(method, recipe, nfe: int) -> None:
    network = ExactDenoiser(DATA)
    counter = EvaluationCounter(network)
    source = Source(method.sampler(Model(network, NOISE), recipe, nfe), (1, 2, 2), 0, 0, CPU)
    assert source.images(range(4)).shape == (4, 1, 2, 2)
    assert counter.rows == 4 * nfe


def test_ddim_step_is_equation_12_of_its_paper():
    """x' = sqrt(a') x0 + sqrt(1 - a') eps, in variance-exploding variables: x0 + sigma' eps."""
    x, high, low = torch.randn(3, 1, 2, 2), torch.tensor([80.0, 2.0, 0.5]), torch.tensor([20.0, 1.0, 0.1])
    s, t = high.reshape(-1, 1, 1, 1), low.reshape(-1, 1, 1, 1)
    a, b = 1 / (1 + s**2), 1 / (1 + t**2)
    clean = DATA.denoise(x, high)
    vp = x * a.sqrt()
    epsilon = (vp - a.sqrt() * clean) / (1 - a).sqrt()
    wanted = (b.sqrt() * clean + (1 - b).sqrt() * epsilon) / b.sqrt()
    torch.testing.assert_close(euler_step(DATA.denoise, x, high, low, None), wanted, rtol=1e-4, atol=1e-4)


def test_the_sampler_of_edm_reaches_the_gaussian():
    source = Source(EDM.sampler(Model(ExactDenoiser(DATA), NOISE), EDMRecipe(), 79), (1, 40, 40), 0, 0, CPU)
    x = source.images(range(12)).double()
    assert float(x.mean()) == pytest.approx(DATA.mean, abs=0.015)
    assert float(x.std()) == pytest.approx(DATA.std, rel=0.03)


# --- progressive distillation ----------------------------------------------------------------------


def test_grids_of_the_stages_nest_and_end_at_zero():
    start = 16
    finest = grid(NOISE, 2 * start, start)
    torch.testing.assert_close(finest[:-1], karras_sigmas(NOISE, 2 * start), rtol=0, atol=0)
    steps = start
    while steps >= 1:
        mine, teachers = grid(NOISE, steps, start), grid(NOISE, 2 * steps, start)
        assert len(mine) == steps + 1
        assert torch.equal(mine, teachers[::2])
        assert float(mine[0]) == 80
        assert float(mine[-1]) == 0
        steps //= 2


@pytest.mark.parametrize("low", [0.0, 0.3])
def test_one_step_to_the_target_ends_where_two_steps_of_the_teacher_end(low: float):
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64) * 3
    high, middle, end = (torch.full((5,), s, dtype=torch.float64) for s in (4.0, 1.5, low))
    goal = two_steps(DATA.denoise, x, high, middle, end, None)
    two = euler_step(DATA.denoise, euler_step(DATA.denoise, x, high, middle, None), middle, end, None)
    one = euler_step(lambda *_: goal, x, high, end, None)
    torch.testing.assert_close(one, two)


def test_target_is_that_of_algorithm_2_of_the_paper():
    """Their z = alpha x + sigma e; ours has alpha = 1, which their formula must agree with for any alpha."""
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    high, middle, low = (torch.full((3,), s, dtype=torch.float64) for s in (4.0, 1.5, 0.3))
    at_low = euler_step(DATA.denoise, euler_step(DATA.denoise, x, high, middle, None), middle, low, None)
    a_t, a_s = 1 / math.sqrt(1 + 16), 1 / math.sqrt(1 + 0.09)  # variance preserving
    ratio = (0.3 * a_s) / (4.0 * a_t)
    wanted = (a_s * at_low - ratio * a_t * x) / (a_s - ratio * a_t)
    torch.testing.assert_close(two_steps(DATA.denoise, x, high, middle, low, None), wanted)


def test_a_teacher_that_knows_the_one_image_is_its_own_target():
    """On a single image D is constant, the ODE is a straight line, and any number of steps agrees."""
    image = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    high, middle, low = (torch.full((3,), s, dtype=torch.float64) for s in (4.0, 1.5, 0.3))
    goal = two_steps(lambda z, *_: image.expand_as(z), x, high, middle, low, None)
    torch.testing.assert_close(goal, image.expand_as(x))


class Perfect(nn.Module):
    """The raw network of a student that hits its target: found by looking the level up in the stage's grid."""

    def __init__(self, teacher, levels: torch.Tensor) -> None:
        super().__init__()
        self.teacher, self.levels = teacher, levels

    def forward(self, x, c_noise, labels=None):
        sigma = torch.exp(4 * c_noise.double())
        index = (self.levels[:-1].log()[None] - sigma.log()[:, None]).abs().argmin(1)
        assert bool((index % 2 == 0).all())
        high, middle, low = (self.levels[index + i] for i in range(3))
        s = high.reshape(-1, 1, 1, 1)
        total = torch.sqrt(s**2 + 0.25)
        noisy = x.double() * total
        goal = two_steps(self.teacher, noisy, high, middle, low, labels)
        return ((goal - 0.25 / total**2 * noisy) / (s * 0.5 / total)).to(x.dtype)


def test_a_perfect_student_has_no_loss_and_samples_as_its_teacher_in_half_the_steps():
    start = 8
    levels = grid(NOISE, 8, start)  # of a teacher of 8 steps
    student = Perfect(DATA.denoise, levels)
    x = torch.rand(200, 1, 2, 2, generator=rng(1)) * 2 - 1
    loss = StageObjective(DATA.denoise, levels, 0.5).loss(student, x, None, 0, rng())
    wrong = StageObjective(DATA.denoise, levels, 0.5).loss(ExactDenoiser(DATA), x, None, 0, rng())
    assert float(loss.mean()) < 1e-6
    assert float(wrong.mean()) > 100 * float(loss.mean())

    recipe = PDRecipe(start=start)
    noise = torch.randn(5, 1, 2, 2)
    by_student = PD.sampler(Model(student, NOISE), recipe, 4)(noise, None, None)
    by_teacher = PD.sampler(Model(ExactDenoiser(DATA), NOISE), recipe, 8)(noise, None, None)
    torch.testing.assert_close(by_student, by_teacher, rtol=1e-3, atol=1e-3)


def test_stage_loss_is_the_larger_of_x_and_epsilon():
    """|x^ - x|^2 max(1, 1/sigma^2)."""
    levels = torch.tensor([4.0, 2.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    teacher = lambda z, *_: torch.zeros_like(z)  # noqa: E731 (its target is 0)
    network = Scale(0.0, 0.0)  # D = c_skip x
    x = torch.full((400, 1, 1, 1), 0.5)
    loss = StageObjective(teacher, levels, 0.5).loss(network, x, None, 0, rng()).detach()
    draws = rng()
    index = 2 * torch.randint(2, (400,), generator=draws)
    noisy = x + levels[index].float().reshape(-1, 1, 1, 1) * torch.randn(x.shape, generator=draws)
    assert set(index.tolist()) == {0, 2}
    for s, weight in ((4.0, 1.0), (0.5, 4.0)):
        chosen = levels[index] == s
        made = 0.25 / (s**2 + 0.25) * noisy[chosen]
        torch.testing.assert_close(
            loss[chosen], weight * made.square().flatten(1).mean(1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("nfe", [1, 2, 4, 32])
def test_pd_spends_exactly_the_evaluations_asked_for(nfe: int):
    assert PD.refuses(nfe, PDRecipe()) is None
    assert PD.variant(nfe, PDRecipe()) == str(nfe)
    _counts(PD, PDRecipe(), nfe)


@pytest.mark.parametrize("nfe", [3, 5, 6, 33, 64])
def test_pd_refuses_what_no_student_does(nfe: int):
    assert "powers of two up to 32" in PD.refuses(nfe, PDRecipe())


def test_pd_stages_follow_one_another_up_to_the_diffusion_model():
    recipe, variant, chain = PDRecipe(start=8), "1", []
    while (above := PD.parent(variant, recipe)).method == "pd":
        chain.append(above.variant)
        variant = above.variant
    assert chain == ["2", "4", "8"]
    assert above == Parent("edm")


@pytest.mark.parametrize("start", [0, -2, 3, 12])
def test_pd_start_must_be_a_power_of_two(start: int):
    with pytest.raises(UsageError, match="power of two"):
        PDRecipe(start=start)


def test_last_stages_train_longer():
    from dataclasses import dataclass, field

    import numpy as np

    from cmbench.data.base import ArraySource, ImageData
    from cmbench.methods import TrainJob
    from cmbench.networks import build
    from cmbench.training.fit import Fit

    @dataclass(frozen=True)
    class Bench(TrainJob):
        kept: list = field(default_factory=list)

        def fit(self, network, objective, settings):
            self.kept.append((objective, settings))
            return network

    images = ImageData("toy", "Toy", ArraySource(np.zeros((4, 1, 2, 2), np.uint8)))
    config = {"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8}
    recipe = PDRecipe(Fit(steps=10), start=8, last_factor=3)
    for variant, steps in (("8", 10), ("4", 10), ("2", 30), ("1", 30)):
        job = Bench(
            recipe,
            images,
            config,
            0,
            NOISE,
            0,
            CPU,
            None,
            lambda _: None,
            variant,
            build(config, (1, 2, 2), 0),
        )
        assert PD.train is not None
        PD.train(job)
        ((objective, settings),) = job.kept
        assert settings.steps == steps
        assert torch.equal(objective.levels, grid(NOISE, 2 * int(variant), 8))
