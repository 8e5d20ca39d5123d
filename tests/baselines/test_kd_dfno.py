"""Knowledge distillation and DFNO: trajectories of the exact mixture, their targets, and the trained students."""

from dataclasses import replace

import pytest
import torch
from cmbench_baselines.dfno import DFNO, DFNORecipe, TrajectoryObjective, clean_points, targets
from cmbench_baselines.kd import KD, KDRecipe, RegressionObjective, one_step
from gaussian import ExactDenoiser, Gaussian
from mixture import SHAPE, ExactNetwork, Mixture, train_on_mixture, two_sample_p
from torch import nn

from cmbench import pairs
from cmbench.consistency.distance import squared_l2
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.trajectories import Trajectories
from cmbench.errors import UsageError
from cmbench.methods import Model, Parent
from cmbench.networks import build
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.training.fit import Fit

NOISE = NoiseRange()
CPU = torch.device("cpu")
DATA = Mixture()
SMALL = {"kind": "mlp", "width": 64, "blocks": 3, "embedding": 64}


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def rms(error: torch.Tensor) -> float:
    return float(error.square().flatten(1).sum(1).mean().sqrt())


# --- trajectories ----------------------------------------------------------------------------------


def test_kept_points_are_the_solution_at_their_levels():
    made = Trajectories(points=40, keep=4)
    z = noise(50)
    got = made.follow(Model(ExactNetwork(DATA), NOISE))(z, None)
    levels = made.levels(NOISE).tolist()
    assert got.shape == (50, 4, *SHAPE)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0
    for place, level in enumerate(levels):
        exact = DATA.solve(z.double() * 80, 80.0, max(level, 0.002))
        assert rms(got[:, place] - exact) < 0.01 * rms(exact)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 9), ("heun", 17)])
@pytest.mark.parametrize("keep", [1, 2, 9])
def test_trajectories_cost_what_their_solver_does(solver, evaluations: int, keep: int):
    made = Trajectories(solver=solver, points=9, keep=keep)
    network = ExactDenoiser(Gaussian())
    counter = EvaluationCounter(network)
    points = made.follow(Model(network, NOISE))(torch.randn(3, 1, 2, 2), None)
    assert points.shape == (3, keep, 1, 2, 2)
    assert counter.rows == 3 * evaluations


@pytest.mark.parametrize(("solver", "method", "nfe"), [("euler", "euler", 9), ("heun", "edm", 17)])
def test_the_last_point_is_the_samplers_image(solver, method: str, nfe: int):
    from cmbench import methods

    model = Model(ExactNetwork(DATA), NOISE)
    z = noise(20)
    sampler = methods.get(method)
    image = sampler.sampler(model, sampler.recipe(), nfe)(z, None, None)
    last = Trajectories(solver=solver, points=9, keep=3).follow(model)(z, None)[:, -1]
    torch.testing.assert_close(last, image)


@pytest.mark.parametrize("keep", [0, 10])
def test_a_solver_has_so_many_points(keep: int):
    with pytest.raises(UsageError, match=r"pairs\.keep"):
        Trajectories(points=9, keep=keep)


# --- objectives ------------------------------------------------------------------------------------


def test_regression_is_on_the_last_point_and_has_no_loss_at_the_solution():
    z = noise(30)

    class Perfect(nn.Module):
        """The raw network of a student whose image is 0.3 z."""

        def forward(self, x, c_noise, labels=None):
            total = 80.0**2 + 0.25
            noisy = x * total**0.5
            return (0.3 * z - 0.25 / total * noisy) / (80 * 0.5 / total**0.5)

    objective = RegressionObjective(NOISE, squared_l2)
    stored = torch.stack([z, torch.full_like(z, 7.0), 0.3 * z], 1)
    assert float(objective.loss(Perfect(), stored, None, 0, torch.Generator()).max()) < 1e-10
    swapped = stored[:, [0, 2, 1]]
    assert float(objective.loss(Perfect(), swapped, None, 0, torch.Generator()).min()) > 1


def test_targets_are_the_clean_images_of_straight_steps():
    levels = torch.tensor([20.0, 1.0, 0.0], dtype=torch.float64)
    clean, z = noise(10, 1)[:, None].expand(-1, 3, -1, -1, -1), noise(10)
    ratio = (levels / 80).float().reshape(1, -1, 1, 1, 1)
    points = clean + ratio * (80 * z[:, None] - clean)
    got = targets(torch.cat([z[:, None], points], 1), levels, NOISE)
    torch.testing.assert_close(got, clean, rtol=1e-4, atol=1e-4)


def test_starts_as_the_teachers_denoiser_at_the_points_levels():
    torch.manual_seed(0)
    teacher = build(SMALL, SHAPE, 0)
    nn.init.normal_(teacher.tail.weight)
    network = build({**SMALL, "trajectory": {"points": 3, "modes": 2}}, SHAPE, 0)
    network.inner.load_state_dict(teacher.state_dict())
    levels = torch.tensor([80.0, 80.0, 80.0])
    z = noise(6)
    got = clean_points(network, NOISE, levels, z, None)
    wanted = one_step(Denoiser(teacher, 0.5), NOISE, z, None)
    torch.testing.assert_close(got, wanted[:, None].expand(-1, 3, -1, -1, -1), rtol=1e-5, atol=1e-5)


def test_dfno_loss_is_the_mean_over_points():
    levels = torch.tensor([20.0, 0.0], dtype=torch.float64)
    network = build({**SMALL, "trajectory": {"points": 2, "modes": 2}}, SHAPE, 0)
    stored = torch.stack([noise(5), 20 * noise(5, 1), noise(5, 2)], 1)
    got = TrajectoryObjective(NOISE, levels, squared_l2).loss(network, stored, None, 0, torch.Generator())
    error = clean_points(network, NOISE, levels, stored[:, 0], None) - targets(stored, levels, NOISE)
    torch.testing.assert_close(got, error.square().flatten(1).mean(1))


@pytest.mark.parametrize("method", [KD, DFNO], ids=lambda m: m.name)
def test_students_spend_one_evaluation(method):
    recipe = method.recipe()
    network = build({**SMALL, **method.network(recipe)}, SHAPE, 0)
    counter = EvaluationCounter(network)
    source = Source(method.sampler(Model(network, NOISE), recipe, 1), SHAPE, 0, 0, CPU)
    assert source.images(range(4)).shape == (4, *SHAPE)
    assert counter.rows == 4


@pytest.mark.parametrize("modes", [0, 4])
def test_modes_fit_the_points(modes: int):
    with pytest.raises(UsageError, match=r"dfno\.modes"):
        DFNORecipe(pairs=Trajectories(keep=4), modes=modes)


# --- trained ---------------------------------------------------------------------------------------

PAIRS = Trajectories(count=8000, points=24, keep=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pairs.PairSet:
    return pairs.make(
        PAIRS.pairs(Parent("edm")),
        Model(ExactNetwork(DATA), NOISE),
        tmp_path_factory.mktemp("pairs"),
        shape=SHAPE,
        classes=0,
        batch_size=1000,
        device=CPU,
    )


def check(image: torch.Tensor, z: torch.Tensor, bound: float) -> None:
    """Error to the exact solution map, and a two-sample test."""
    exact = DATA.solve(z.double() * 80, 80.0, 0.002)
    assert rms(image - exact) < bound
    assert two_sample_p(image[:300], DATA.sample(300, seed=1)) > 0.01


FIT = Fit(steps=2000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)


@pytest.mark.slow
def test_kd_reaches_the_solution_map(made, tmp_path):
    """The teacher's weights stand for nothing here: the exact teacher is no network that a student could copy."""
    recipe = KDRecipe(FIT, PAIRS, metric="l2")
    model = train_on_mixture(KD, recipe, tmp_path, teacher=build(SMALL, SHAPE, 0), pairs=made)
    z = noise(1000, 11)
    with torch.no_grad():
        check(KD.sampler(model, recipe, 1)(z, None, None), z, bound=0.12)


@pytest.mark.slow
def test_dfno_reaches_the_whole_trajectory(made, tmp_path):
    recipe = DFNORecipe(replace(FIT, steps=1500, batch_size=128), PAIRS, modes=3, metric="l2")
    model = train_on_mixture(DFNO, recipe, tmp_path, teacher=build(SMALL, SHAPE, 0), pairs=made)
    assert any(float(layer.real.abs().max()) > 0.01 for layer in model.network.temporal)
    z = noise(1000, 11)
    with torch.no_grad():
        check(DFNO.sampler(model, recipe, 1)(z, None, None), z, bound=0.12)
        levels = PAIRS.levels(NOISE)
        clean = clean_points(model.network, NOISE, levels, z, None)
    for place, level in enumerate(levels.tolist()[:-1]):
        point = clean[:, place] + level / 80 * (80 * z - clean[:, place])
        exact = DATA.solve(z.double() * 80, 80.0, level)
        assert rms(point - exact) < 0.12
