"""Pairs of iCT and ECT, their loss, and the dropout that both evaluations of a pair share."""

import math

import pytest
import torch
from gaussian import ExactConsistency, Gaussian, Scale
from scipy.stats import norm
from torch import nn

from cmbench.consistency.distance import pseudo_huber, pseudo_huber_with
from cmbench.consistency.function import ConsistencyFunction
from cmbench.consistency.isolated import (
    PairObjective,
    doubling_points,
    earlier_level,
    grid_pairs,
    interval_probabilities,
    tuning_pairs,
)
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser

NOISE = NoiseRange()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s0", "s1", "steps"), [(10, 1280, 400_000), (10, 160, 5000), (4, 4, 7)])
def test_intervals_double_at_equal_distances(s0: int, s1: int, steps: int):
    points = doubling_points(s0, s1, steps)
    stages = int(math.log2(s1 // s0)) + 1
    counts = [points(k) - 1 for k in range(0, steps, max(1, steps // 4000))]
    assert sorted(set(counts)) == [s0 * 2**i for i in range(stages)]
    assert counts == sorted(counts)
    spell = steps // stages
    assert [points(i * spell) - 1 for i in range(stages)] == [s0 * 2**i for i in range(stages)]
    assert [points((i + 1) * spell - 1) - 1 for i in range(stages)] == [s0 * 2**i for i in range(stages)]
    assert points(steps - 1) == points(10 * steps) == s1 + 1


def test_intervals_have_the_mass_of_the_log_normal():
    ascending = karras_sigmas(NOISE, 30).flip(0)
    edges = norm.cdf(ascending.log().numpy(), -1.1, 2.0)
    wanted = (edges[1:] - edges[:-1]) / (edges[-1] - edges[0])
    made = interval_probabilities(ascending, -1.1, 2.0)
    assert made.numpy() == pytest.approx(wanted, rel=1e-6)

    low, high = grid_pairs(NOISE, lambda _: 30, -1.1, 2.0)(50_000, 0, rng())
    index = torch.searchsorted(ascending.float(), low)
    torch.testing.assert_close(high, ascending.float()[index + 1])
    counted = torch.bincount(index, minlength=29) / 50_000
    assert float((counted.double() - made).abs().max()) < 0.01


def test_grid_is_that_of_the_step():
    draw = grid_pairs(NOISE, lambda k: 3 + k, -1.1, 2.0)
    for step in (0, 4):
        levels = torch.cat(draw(5000, step, rng())).unique()
        torch.testing.assert_close(levels, karras_sigmas(NOISE, 3 + step).flip(0).float())


def test_tuning_begins_with_denoising_and_halves_the_gap_at_each_stage():
    t = torch.tensor([1e-3, 0.1, 1.0, 5.0, 80.0], dtype=torch.float64)
    assert float(earlier_level(t, 0, 2.0, 8.0, 1.0)[0]) == 0  # 1 - (1 + 4) / 2 < 0
    for stage in range(3, 9):
        gap, next_gap = (t - earlier_level(t, n, 2.0, 8.0, 1.0) for n in (stage, stage + 1))
        torch.testing.assert_close(next_gap, gap / 2)
    torch.testing.assert_close(
        earlier_level(torch.tensor([1.0]), 4, 2.0, 8.0, 1.0),
        torch.tensor([1 - (1 + 8 / (1 + math.e)) / 32]),
    )
    early, late = (tuning_pairs(-1.1, 2.0, 50, 2.0, 8.0, 1.0)(20_000, k, rng()) for k in (49, 50))
    assert torch.equal(early[1], late[1])
    assert float(early[1].log().mean()) == pytest.approx(-1.1, abs=0.05)
    assert float(early[1].log().std()) == pytest.approx(2.0, abs=0.05)
    torch.testing.assert_close(early[0], earlier_level(early[1], 0, 2.0, 8.0, 1.0))
    torch.testing.assert_close(late[0], earlier_level(late[1], 1, 2.0, 8.0, 1.0))


# --- loss ------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_distance_to_the_earlier_level():
    x = torch.rand(5, 1, 2, 2, generator=rng(1)) * 2 - 1
    levels = (torch.tensor([0.0, 0.1, 0.2, 1.0, 9.0]), torch.tensor([0.1, 0.2, 0.4, 1.5, 10.0]))
    network = Scale()
    f = Denoiser(network, 0.5)
    loss = PairObjective(lambda n: Denoiser(n, 0.5), pseudo_huber, lambda *_: levels).loss(
        network, x, None, 0, rng()
    )
    z = torch.randn(x.shape, generator=rng())
    goal = f(x + levels[0].reshape(-1, 1, 1, 1) * z, levels[0])
    goal[0] = x[0]  # f(x, 0) = x, where the network's noise input has no value
    made = f(x + levels[1].reshape(-1, 1, 1, 1) * z, levels[1])
    torch.testing.assert_close(loss, pseudo_huber(made, goal) / (levels[1] - levels[0]))

    loss.sum().backward()
    gradient = network.weight.grad.clone()
    network.weight.grad = None
    (pseudo_huber(made, goal.detach()) / (levels[1] - levels[0])).sum().backward()
    torch.testing.assert_close(gradient, network.weight.grad)
    assert bool(gradient.isfinite())


def test_pseudo_huber_without_its_constant_is_the_norm_and_has_a_finite_gradient():
    x = torch.tensor([[[[3.0, 4.0]]], [[[1.0, 1.0]]]], requires_grad=True)
    y = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 1.0]]]])
    made = pseudo_huber_with(0.0)(x, y)
    assert made.tolist() == [5.0, 0.0]
    made.sum().backward()
    torch.testing.assert_close(x.grad[0, 0, 0], torch.tensor([0.6, 0.8]))
    assert x.grad[1].abs().max() == 0
    assert pseudo_huber_with(2.0)(x, y)[0].item() == pytest.approx(math.sqrt(29) - 2)


def test_both_evaluations_of_a_pair_drop_the_same_units():
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = []

        def forward(self, x, c_noise, labels=None):
            self.seen.append(nn.functional.dropout(torch.ones_like(x), 0.5, training=True))
            return x

    network = Drops()
    objective = PairObjective(
        lambda n: ConsistencyFunction(n, NOISE), pseudo_huber, grid_pairs(NOISE, lambda _: 9, -1.1, 2.0)
    )
    x = torch.zeros(4, 1, 8, 8)
    for _ in range(2):
        objective.loss(network, x, None, 0, rng())
    first, second, third, fourth = network.seen
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(first, third)


def test_the_exact_function_has_less_loss_than_a_wrong_one():
    """In expectation over the data the tuning target has the exact function's gradient zero as r approaches t."""
    data = Gaussian()
    x = data.mean + data.std * torch.randn(4000, 1, 1, 1, generator=rng(2))
    objective = PairObjective(
        lambda n: ConsistencyFunction(n, NOISE),
        pseudo_huber_with(100.0),
        grid_pairs(NOISE, lambda _: 80, -1.1, 2.0),
    )  # c so large that the distance is squared l2

    def slope(network: nn.Module) -> float:
        objective.loss(network, x, None, 0, rng()).mean().backward()
        return abs(float(network.unused.grad))

    assert slope(ExactConsistency(data, NOISE)) < 0.2 * slope(ExactConsistency(Gaussian(0.5, 0.4), NOISE))
