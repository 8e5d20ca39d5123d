"""Rectified flows on the mixture, whose velocity field is known: flow 1, reflow, distillation."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cmbench_baselines.rectified_flow import (
    RF1,
    RF1_DISTILL,
    RF2,
    RF3,
    RF3_DISTILL,
    FlowDistillObjective,
    FlowDistillRecipe,
    FlowObjective,
    FlowPairs,
    FlowRecipe,
    ReflowRecipe,
)
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import Tensor, nn

from cmbench import pairs
from cmbench.consistency.distance import squared_l2
from cmbench.diffusion.flow import VelocityField, euler, flow, heun, interpolate
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError
from cmbench.methods import Model, Parent
from cmbench.pairs import PairSet
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.training.fit import Fit

NOISE = NoiseRange()
CPU = torch.device("cpu")
DATA = Mixture()


def exact_velocity(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """E[image - z | x_t = x] of the mixture: (D(x / t, (1 - t) / t) - x) / (1 - t); at t = 0, E[image] - x."""
    s = t.double().reshape(-1, 1, 1, 1).clamp(min=1e-6)
    clean = DATA.denoise(x.double() / s, ((1 - s) / s).flatten())
    return (clean - x) / (1 - s)


class ExactFlow(nn.Module):
    """The raw network whose velocity field is the mixture's exact one."""

    def forward(self, x, c_noise, labels=None):
        field = VelocityField(self, NOISE)
        t = (c_noise.double() - field.first) / (field.last - field.first)
        return exact_velocity(x, t.clamp(max=1 - 1e-4)).float()


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


# --- numerics --------------------------------------------------------------------------------------


def test_time_runs_over_the_networks_range_of_noise_conditions():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append(c_noise)
            return x

    VelocityField(Spy(), NOISE)(torch.zeros(3, *SHAPE), torch.tensor([0.0, 0.5, 1.0]))
    ends = torch.tensor([80.0, 0.002]).log() / 4
    torch.testing.assert_close(seen[0], torch.stack([ends[0], ends.mean(), ends[1]]))


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
def test_steps_have_their_order(step, order: int):
    """dx/dt = x t: x(1) = x(0) exp(1/2)."""
    z = noise(5)
    exact = z.double() * torch.tensor(0.5).double().exp()
    errors = [
        float((flow(lambda x, t, _: x * t.reshape(-1, 1, 1, 1), z, n, step, None) - exact).abs().max())
        for n in (8, 16)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def test_the_exact_flow_turns_noise_into_the_mixture():
    made = flow(VelocityField(ExactFlow(), NOISE), noise(400), 40, heun, None)
    assert two_sample_p(made, DATA.sample(400, seed=3)) > 0.01
    assert two_sample_p(made + 0.1, DATA.sample(400, seed=3)) < 0.01


def test_the_exact_velocity_has_the_least_loss():
    x = DATA.sample(4000, seed=2).float()
    rng = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    objective = FlowObjective(NOISE)

    class Off(ExactFlow):
        def forward(self, x, c_noise, labels=None):
            return super().forward(x, c_noise) * 0.9

    least, other = (float(objective.loss(net, x, None, 0, rng()).mean()) for net in (ExactFlow(), Off()))
    assert least < other


def test_loss_on_pairs_takes_their_noise():
    """With v = image - z as the network's answer the loss is zero only if z is the pair's own."""
    z, image = noise(50), DATA.sample(50, seed=1).float()

    class Straight(nn.Module):
        def forward(self, x, c_noise, labels=None):
            return image - z

    objective = FlowObjective(NOISE)
    rng = torch.Generator().manual_seed(0)
    assert float(objective.loss(Straight(), torch.stack([z, image], 1), None, 0, rng).max()) == 0
    assert float(objective.loss(Straight(), image, None, 0, rng).mean()) > 0.5
    distill = FlowDistillObjective(NOISE, squared_l2)
    assert float(distill.loss(Straight(), torch.stack([z, image], 1), None, 0, rng).max()) < 1e-12


def test_interpolation_ends_at_noise_and_image():
    z, image = noise(3), noise(3, 1)
    assert torch.equal(interpolate(image, z, torch.zeros(3)), z)
    assert torch.equal(interpolate(image, z, torch.ones(3)), image)


@pytest.mark.parametrize("nfe", [1, 2, 7])
@pytest.mark.parametrize("method", [RF1, RF2, RF3])
def test_flows_spend_exactly_the_evaluations_asked_for(method, nfe: int):
    network = ExactFlow()
    assert method.refuses(nfe, None) is None
    counter = EvaluationCounter(network)
    source = Source(method.sampler(Model(network, NOISE), None, nfe), SHAPE, 0, 0, CPU)
    assert source.images(range(4)).shape == (4, *SHAPE)
    assert counter.rows == 4 * nfe


def test_each_flow_learns_from_the_one_before():
    assert RF1.parent("", FlowRecipe()) is None
    assert RF2.parent("", ReflowRecipe()) == Parent("rf1") == RF2.pairs("", ReflowRecipe()).of
    assert RF3.parent("", ReflowRecipe()) == Parent("rf2") == RF3.pairs("", ReflowRecipe()).of
    assert RF3_DISTILL.pairs("", FlowDistillRecipe()).of == Parent("rf3")
    assert RF1_DISTILL.pairs("", FlowDistillRecipe()).of == Parent("rf1")


def test_a_flow_needs_a_step():
    with pytest.raises(UsageError, match=r"pairs\.steps 0"):
        FlowPairs(steps=0)


# --- trained ---------------------------------------------------------------------------------------

PAIRS = FlowPairs(count=8000, steps=25)


def fit(steps: int) -> Fit:
    return Fit(steps=steps, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)


def made_by(model: Model, folder: Path) -> PairSet:
    wanted = PAIRS.pairs(Parent("rf1"))
    return pairs.make(wanted, model, folder, shape=SHAPE, classes=0, batch_size=1000, device=CPU)


@dataclass(frozen=True)
class Family:
    """Two flows and a student, and the first flow's pairs."""

    first: Model
    pairs: PairSet
    second: Model
    student: Model


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Family:
    folder = tmp_path_factory.mktemp("flows")
    first = train_on_mixture(RF1, FlowRecipe(fit(3000)), folder)
    made = made_by(first, folder / "pairs")
    second = train_on_mixture(RF2, ReflowRecipe(fit(2000)), folder, teacher=first.network, pairs=made)
    student = train_on_mixture(
        RF1_DISTILL, FlowDistillRecipe(fit(2000)), folder, teacher=first.network, pairs=made
    )
    return Family(first, made, second, student)


def straightness(model: Model, z: Tensor, steps: int = 40) -> float:
    """Mean of |v - (x_1 - x_0)|^2 along the flow's own paths (Liu et al., section 2.1); 0 for straight lines."""
    velocity, x, speeds = VelocityField(model.network, NOISE), z.double(), []
    with torch.no_grad():
        for number in range(steps):
            t = torch.full((len(x),), number / steps, dtype=torch.float64)
            speeds.append(velocity(x, t, None))
            x = heun(velocity, x, t, 1 / steps, None)
    return float((torch.stack(speeds) - (x - z)).square().sum((2, 3, 4)).mean())


@torch.no_grad()
def fine(model: Model, z: Tensor, steps: int = 50) -> Tensor:
    return flow(VelocityField(model.network, NOISE), z, steps, heun, None)


@torch.no_grad()
def sampled(method, model: Model, z: Tensor, nfe: int = 1) -> Tensor:
    return method.sampler(model, None, nfe)(z, None, None)


def rms(error: Tensor) -> float:
    return float(error.square().flatten(1).sum(1).mean().sqrt())


@pytest.mark.slow
def test_flow_1_learns_the_exact_velocity(family: Family):
    x, z = DATA.sample(4000, seed=9).float(), noise(4000, 9)
    t = torch.rand(4000, generator=torch.Generator().manual_seed(1)) * 0.95
    at_t = interpolate(x, z, t)
    exact = exact_velocity(at_t, t)
    with torch.no_grad():
        learnt = VelocityField(family.first.network, NOISE)(at_t, t)
    assert rms(learnt - exact) < 0.12 * rms(exact)


@pytest.mark.slow
def test_pairs_are_the_flows_solution(family: Family):
    """Against steps of half the length: the error of the fixed grid."""
    got = torch.from_numpy(family.pairs.read(torch.arange(500).numpy()))
    assert rms(got[:, 1] - fine(family.first, got[:, 0], 2 * PAIRS.steps)) < 0.01


@pytest.mark.slow
def test_reflow_keeps_the_marginals_and_straightens(family: Family):
    z = noise(1000, 5)
    before, after = (straightness(model, z) for model in (family.first, family.second))
    assert after < 0.3 * before
    assert two_sample_p(fine(family.second, z[:300]), DATA.sample(300, seed=1)) > 0.01
    bent, straight = (rms(sampled(RF2, model, z) - fine(model, z)) for model in (family.first, family.second))
    assert straight < 0.5 * bent


@pytest.mark.slow
def test_one_step_of_flow_1_is_the_mean_and_of_flow_2_the_mixture(family: Family):
    """Flow 1's velocity at t = 0 is E[image] - z: the paper's row with an FID of 378."""
    z, data = noise(300, 6), DATA.sample(300, seed=7)
    blurred = sampled(RF1, family.first, z)
    assert rms(blurred - DATA.sample(20_000, seed=8).mean(0)) < 0.1
    assert two_sample_p(blurred, data) < 0.01
    assert two_sample_p(sampled(RF2, family.second, z, 2), data) > 0.01


@pytest.mark.slow
def test_the_student_reaches_the_solution_map_of_its_flow(family: Family):
    z = noise(1000, 11)
    solution = fine(family.first, z)
    assert rms(sampled(RF1_DISTILL, family.student, z) - solution) < 0.12
    assert rms(sampled(RF1, family.first, z) - solution) > 0.3  # what the distillation adds
    assert two_sample_p(sampled(RF1_DISTILL, family.student, z[:300]), DATA.sample(300, seed=1)) > 0.01
