"""Consistency objectives: schedules of appendix C, exact functions have no loss, targets move as they should."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from gaussian import ExactConsistency, ExactDenoiser, Gaussian, Scale
from torch import nn

from cmbench.consistency import methods
from cmbench.consistency.distance import l1, squared_l2
from cmbench.consistency.function import ConsistencyFunction
from cmbench.consistency.methods import CDRecipe, CTRecipe
from cmbench.consistency.training import (
    WEIGHTINGS,
    ConsistencyObjective,
    adaptive_decay,
    adaptive_points,
)
from cmbench.data.base import ArraySource, ImageData
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.solvers import STEPS, euler_step, heun_step
from cmbench.errors import UsageError
from cmbench.methods import TrainJob
from cmbench.training.fit import Fit

NOISE = NoiseRange()
DATA = Gaussian()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s0", "s1", "steps"), [(2, 150, 800_000), (2, 200, 800_000), (2, 20, 3000)])
def test_points_follow_appendix_c(s0: int, s1: int, steps: int):
    points = adaptive_points(s0, s1, steps)
    assert points(0) == s0  # ceil(s0 - 1) + 1
    assert points(steps - 1) == s1 + 1
    assert points(steps) == s1 + 1
    for k in {0, 1, steps // 3, steps // 2, steps - 1}:
        assert points(k) == math.ceil((k / steps * ((s1 + 1) ** 2 - s0**2) + s0**2) ** 0.5 - 1) + 1
    counts = [points(k) for k in range(0, steps, max(1, steps // 500))]
    assert counts == sorted(counts)


def test_target_decay_of_paper_and_released_code():
    """mu(0) is mu0 by the paper; the code, which divides by N - 1, starts at mu0 squared (0.81 for 0.9)."""
    points = adaptive_points(2, 150, 800_000)
    paper = adaptive_decay(0.9, 2, points)
    assert paper(0) == pytest.approx(0.9)
    assert paper(800_000) == pytest.approx(0.9 ** (2 / 151))
    released = adaptive_decay(0.9, 2, lambda k: points(k) - 1)
    assert released(0) == pytest.approx(0.81)
    assert released(800_000) == pytest.approx(0.9 ** (2 / 150))
    decays = [paper(k) for k in range(0, 800_000, 10_000)]
    assert decays == sorted(decays)


# --- what is minimised -----------------------------------------------------------------------------


def _loss_of_the_exact_function(step, points: int) -> float:
    """Mean distance over 20,000 draws; what remains is the solver's error over one interval."""
    network = ExactConsistency(DATA, NOISE)
    objective = ConsistencyObjective(
        NOISE, l1, lambda _: points, lambda _: 0.0, None, DATA.denoise, STEPS[step]
    )
    x = DATA.mean + DATA.std * torch.randn(20_000, 1, 1, 1, generator=rng(1), dtype=torch.float64)
    return float(objective.loss(network, x, None, 0, rng()).detach().mean())


@pytest.mark.parametrize(("step", "order"), [("euler", 1), ("heun", 2)])
def test_the_exact_consistency_function_has_no_distillation_loss_but_the_solvers_error(step: str, order: int):
    """Error of one step of a solver of order p: h^(p+1)."""
    coarse, middle, fine = (_loss_of_the_exact_function(step, n) for n in (30, 60, 120))
    assert math.log2(coarse / middle) == pytest.approx(order + 1, abs=0.35)
    assert math.log2(middle / fine) == pytest.approx(order + 1, abs=0.35)
    assert fine < (5e-4 if step == "euler" else 5e-5)


def test_another_function_has_a_distillation_loss():
    wrong = ExactConsistency(Gaussian(DATA.mean + 0.3, DATA.std), NOISE)
    objective = ConsistencyObjective(NOISE, l1, lambda _: 120, lambda _: 0.0, None, DATA.denoise, heun_step)
    x = DATA.mean + DATA.std * torch.randn(2000, 1, 1, 1, dtype=torch.float64)
    assert float(objective.loss(wrong, x, None, 0, rng()).detach().mean()) > 1e-3


class Spy(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x, c_noise, labels=None):
        sigma = torch.exp(4 * c_noise)
        self.seen.append((x * torch.sqrt(sigma**2 + 0.25).reshape(-1, 1, 1, 1), sigma))
        return super().forward(x, c_noise, labels)


def test_training_in_isolation_has_the_same_noise_at_two_neighbouring_levels():
    network = Spy()
    x = torch.rand(200, 1, 2, 2) * 2 - 1
    ConsistencyObjective(NOISE, squared_l2, lambda _: 6, lambda _: 0.0).loss(network, x, None, 0, rng())
    (low, at_low), (high, at_high) = network.seen  # the goal is made first
    grid = karras_sigmas(NOISE, 6).flip(0).float()
    index = torch.cdist(at_high[:, None].log(), grid[:, None].log()).argmin(1)
    torch.testing.assert_close(at_high, grid[index], rtol=1e-4, atol=0)
    torch.testing.assert_close(at_low, grid[index - 1], rtol=1e-4, atol=0)
    assert set(index.tolist()) == {1, 2, 3, 4, 5}  # every interval is drawn, and nothing outside
    z_high = (high - x) / at_high.reshape(-1, 1, 1, 1)
    z_low = (low - x) / at_low.reshape(-1, 1, 1, 1)
    clear = at_low > 0.5  # where the subtraction leaves digits
    torch.testing.assert_close(z_high[clear], z_low[clear], rtol=1e-3, atol=1e-3)
    assert float(z_high.std()) == pytest.approx(1, abs=0.1)


def test_distillation_starts_from_the_image_with_noise_and_follows_the_teacher_down():
    network = Spy()
    teacher = []

    def denoise(x, sigma, labels):
        teacher.append((x, sigma, labels))
        return DATA.denoise(x, sigma)

    x = torch.rand(50, 1, 2, 2) * 2 - 1
    labels = torch.arange(50)
    objective = ConsistencyObjective(
        NOISE, squared_l2, lambda _: 6, lambda _: 0.0, teacher=denoise, step=euler_step
    )
    objective.loss(network, x, labels, 0, rng())
    (low, at_low), (high, at_high) = network.seen
    torch.testing.assert_close(high, teacher[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        low, euler_step(DATA.denoise, high, at_high, at_low, None), rtol=1e-3, atol=1e-3
    )
    assert teacher[0][2] is labels


def test_intervals_are_drawn_uniformly():
    network = Spy()
    ConsistencyObjective(NOISE, squared_l2, lambda _: 5, lambda _: 0.0).loss(
        network, torch.zeros(8000, 1, 1, 1), None, 0, rng()
    )
    levels = network.seen[1][1].log().round(decimals=2).unique(return_counts=True)[1]
    assert len(levels) == 4
    assert bool(((levels - 2000).abs() < 200).all())


def test_the_number_of_points_is_that_of_the_step():
    asked = []
    objective = ConsistencyObjective(NOISE, squared_l2, lambda k: asked.append(k) or 5, lambda _: 0.0)
    objective.loss(Scale(), torch.zeros(2, 1, 1, 1), None, 41, rng())
    assert asked == [41]


def test_loss_is_weighted_by_the_level_it_comes_from():
    def losses(weighting: str) -> tuple[torch.Tensor, torch.Tensor]:
        network = Spy()
        objective = ConsistencyObjective(
            NOISE, squared_l2, lambda _: 9, lambda _: 0.0, weighting=WEIGHTINGS[weighting]
        )
        loss = objective.loss(network, torch.zeros(64, 1, 2, 2), None, 0, rng())
        return loss.detach(), network.seen[1][1]  # the higher level

    uniform, sigma = losses("uniform")
    karras, _ = losses("karras")
    torch.testing.assert_close(karras, uniform * (sigma**2 + 0.25) / (sigma * 0.5) ** 2, rtol=1e-3, atol=0)
    assert float(sigma.min()) < 0.1 < 60 < float(sigma.max())


# --- the target ------------------------------------------------------------------------------------


def test_without_target_ema_the_goal_is_the_current_network_without_its_gradient():
    network = Scale()
    x = torch.rand(20, 1, 2, 2, generator=rng(3)) * 2 - 1
    objective = ConsistencyObjective(NOISE, squared_l2, lambda _: 8, lambda _: 0.0)
    objective.loss(network, x, None, 0, rng()).mean().backward()

    copied = Scale()
    draws = rng()
    grid = karras_sigmas(NOISE, 8).flip(0).float()
    index = torch.randint(7, (20,), generator=draws)
    z = torch.randn(x.shape, generator=draws)
    made, goal = (
        ConsistencyFunction(copied, NOISE)(x + t.reshape(-1, 1, 1, 1) * z, t)
        for t in (grid[index + 1], grid[index])
    )
    ((made - goal.detach()) ** 2).mean().backward()
    torch.testing.assert_close(network.weight.grad, copied.weight.grad)
    torch.testing.assert_close(network.bias.grad, copied.bias.grad)
    through_both = Scale()
    a, b = (
        ConsistencyFunction(through_both, NOISE)(x + t.reshape(-1, 1, 1, 1) * z, t)
        for t in (grid[index + 1], grid[index])
    )
    ((a - b) ** 2).mean().backward()
    assert not torch.allclose(network.weight.grad, through_both.weight.grad)
    assert objective.modules == {}


def test_target_network_is_an_exponential_average_and_gives_the_goal():
    network, target = Scale(0.3, 0.1), Scale(0.3, 0.1)
    decays = [0.9, 0.5, 0.0]
    objective = ConsistencyObjective(NOISE, squared_l2, lambda _: 8, lambda k: decays[k], target)
    assert objective.modules == {"target": target}
    wanted = 0.3
    for k, decay in enumerate(decays):
        with torch.no_grad():
            network.weight += 1
        wanted = decay * wanted + (1 - decay) * float(network.weight.detach())
        objective.after_step(network, k)
        assert float(target.weight.detach()) == pytest.approx(wanted)

    # A target whose function is constant moves the goal, not the gradient's path.
    with torch.no_grad():
        target.weight.zero_()
        target.bias.fill_(5.0)
    loss = objective.loss(network, torch.zeros(50, 1, 1, 1), None, 0, rng()).mean()
    loss.backward()
    assert float(loss.detach()) > 1
    assert target.weight.grad is None
    assert network.weight.grad is not None


# --- from recipe to objective ----------------------------------------------------------------------


@dataclass(frozen=True)
class Bench(TrainJob):
    """A training that stops where the loop would begin, and keeps what it would have been given."""

    kept: list = field(default_factory=list)

    def fit(self, network, objective, settings):
        self.kept.append((network, objective, settings))
        return network


def bench(recipe, teacher: nn.Module | None = None) -> Bench:
    images = ImageData("toy", "Toy", ArraySource(np.zeros((4, 1, 2, 2), np.uint8)))
    config = {"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8}
    return Bench(recipe, images, config, 0, NOISE, 3, torch.device("cpu"), None, lambda _: None, "", teacher)


def test_recipe_of_distillation_reaches_its_objective():
    from cmbench.networks import build

    torch.manual_seed(9)
    teacher = build({"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8}, (1, 2, 2), 0)
    for p in teacher.parameters():
        nn.init.normal_(p)
    job = bench(CDRecipe(points=9, solver="euler", metric="l1", target_ema=0.95, fit=Fit(steps=5)), teacher)
    methods.train_cd(job)
    ((student, objective, settings),) = job.kept
    assert settings.steps == 5
    for a, b, c in zip(
        student.parameters(), teacher.parameters(), objective.target.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.requires_grad
        assert not c.requires_grad
        assert a.data_ptr() != b.data_ptr() != c.data_ptr()
    assert (objective.points(0), objective.points(4)) == (9, 9)
    assert objective.target_ema(3) == 0.95
    assert objective.step is euler_step
    assert objective.distance is l1
    assert objective.weighting is WEIGHTINGS["uniform"]

    job = bench(CDRecipe(target_ema=0.0, solver="heun", weighting="karras"), teacher)
    methods.train_cd(job)
    assert job.kept[0][1].target is None
    assert job.kept[0][1].step is heun_step
    assert job.kept[0][1].weighting is WEIGHTINGS["karras"]
    x, sigma = torch.randn(2, 1, 2, 2), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(job.kept[0][1].teacher(x, sigma, None), Denoiser(teacher, 0.5)(x, sigma))


def test_recipe_of_training_in_isolation_reaches_its_objective():
    def objective(**settings):
        job = bench(CTRecipe(fit=Fit(steps=1000), s0=2, s1=20, mu0=0.9, **settings))
        methods.train_ct(job)
        return job.kept[0][1]

    paper, released, fixed = objective(), objective(decay="released"), objective(schedule="fixed")
    assert paper.teacher is None
    assert [paper.points(k) for k in (0, 999)] == [2, 21]
    assert [released.points(k) for k in (0, 999)] == [2, 21]
    assert [fixed.points(k) for k in (0, 999)] == [21, 21]
    assert [paper.target_ema(k) for k in (0, 999)] == pytest.approx([0.9, 0.9 ** (2 / 21)])
    assert [released.target_ema(k) for k in (0, 999)] == pytest.approx([0.81, 0.9 ** (2 / 20)])
    assert [fixed.target_ema(k) for k in (0, 999)] == [0.9, 0.9]
    assert paper.weighting is WEIGHTINGS["uniform"]
    assert objective(weighting="karras").weighting is WEIGHTINGS["karras"]
    job = bench(CTRecipe(mu0=0.0))
    methods.train_ct(job)
    assert job.kept[0][1].target is None


def test_isolated_training_starts_from_the_seed_alone():
    first, again = bench(CTRecipe()), bench(CTRecipe())
    torch.manual_seed(1)
    methods.train_ct(first)
    torch.manual_seed(2)
    methods.train_ct(again)
    for a, b in zip(first.kept[0][0].parameters(), again.kept[0][0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CDRecipe(points=1),
        lambda: CDRecipe(target_ema=1.0),
        lambda: CDRecipe(target_ema=-0.1),
        lambda: CTRecipe(s0=1),
        lambda: CTRecipe(s0=30, s1=20),
        lambda: CTRecipe(mu0=1.0),
        lambda: CTRecipe(mu0=-0.5),
    ],
)
def test_settings_that_cannot_train_are_refused_before_anything_is_trained(make):
    with pytest.raises(UsageError):
        make()


def test_teacher_of_the_right_data_distils_into_it():
    """The teacher as a network, through Denoiser, in float32, as a real run has it."""
    objective = ConsistencyObjective(
        NOISE, l1, lambda _: 80, lambda _: 0.0, None, Denoiser(ExactDenoiser(DATA), 0.5), heun_step
    )
    x = DATA.mean + DATA.std * torch.randn(2000, 1, 1, 1)
    assert float(objective.loss(ExactConsistency(DATA, NOISE), x, None, 0, rng()).detach().mean()) < 2e-3
