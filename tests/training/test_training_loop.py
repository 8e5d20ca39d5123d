"""The training loop: exact resume, averages, rates, clipping, divergence."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian import Scale
from torch import nn

from cmbench.consistency.distance import squared_l2
from cmbench.consistency.training import ConsistencyObjective
from cmbench.data.base import ArraySource, ImageData
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.networks import build
from cmbench.training import state as states
from cmbench.training.fit import Fit, ema_decay, learning_rate
from cmbench.training.loop import make_optimizer, move_towards, step_seed, train

CPU = torch.device("cpu")
NOISE = NoiseRange()


class Killed(Exception):  # noqa: N818
    pass


def images(count: int = 50) -> ImageData:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    return ImageData("toy", "Toy", ArraySource(pixels), labels, 10)


class Net(nn.Module):
    """Small, with dropout and a buffer that training changes."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(17, 12), nn.Linear(12, 16)
        self.norm, self.dropout = nn.BatchNorm1d(12), nn.Dropout(dropout)

    def forward(self, x, c_noise, labels=None):
        hidden = self.first(torch.cat([x.flatten(1), c_noise[:, None]], 1))
        return self.last(self.dropout(torch.relu(self.norm(hidden)))).reshape(x.shape)


def network(dropout: float = 0.3) -> Net:
    torch.manual_seed(5)
    return Net(dropout)


class Denoise:
    """A plain objective without state."""

    def __init__(self) -> None:
        self.modules = {}

    def loss(self, network, x, labels, step, rng):
        noisy = x + torch.randn(x.shape, generator=rng, device=x.device)
        return (network(noisy, torch.zeros(len(x), device=x.device), labels) - x).square().flatten(1).mean(1)

    def after_step(self, network, step):
        pass


class Fixed:
    """A loss given in advance, that passes a gradient of one on to the weight of Scale."""

    def __init__(self, values) -> None:
        self.modules, self.values = {}, values

    def loss(self, network, x, labels, step, rng):
        weight = network.weight
        return (self.values(step) + weight - weight.detach()).expand(len(x))

    def after_step(self, network, step):
        pass


class Weighted(Denoise):
    """Its learnt weight, exp(w) l - w, is trained with the network."""

    def __init__(self) -> None:
        self.weight = Scale(0.0, 0.0)
        self.modules = {"weight": self.weight}

    @property
    def trained(self):
        return self.weight

    def loss(self, network, x, labels, step, rng):
        w = self.weight.bias + self.weight.weight
        return w.exp() * super().loss(network, x, labels, step, rng) - w


def consistency(net: nn.Module) -> ConsistencyObjective:
    target = copy.deepcopy(net).requires_grad_(False)
    return ConsistencyObjective(NOISE, squared_l2, lambda k: 3 + k, lambda _: 0.7, target)


def run(
    fit: Fit, path: Path, objective=None, kill_at: int | None = None, seed: int = 0, net=None
) -> nn.Module:
    def report(progress) -> None:
        if progress.step == kill_at:
            raise Killed

    net = net or network()
    if objective in ("consistency", "weighted"):
        objective = consistency(net) if objective == "consistency" else Weighted()
    chosen = objective or Denoise()
    return train(net, chosen, images(), fit, seed=seed, device=CPU, state_path=path, report=report)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


FIT = Fit(steps=60, batch_size=16, checkpoint_every=15, learning_rate=1e-2, ema=0.9, warmup_steps=7)


@pytest.mark.parametrize("objective", [None, "consistency", "weighted"])
@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_killed_run_that_is_repeated_ends_as_one_that_was_not(tmp_path, objective, optimizer, schedule):
    fit = replace(FIT, optimizer=optimizer, schedule=schedule, flip=True, clip=1.0)
    whole = run(fit, tmp_path / "a", objective)
    for kill_at in (20, 40):  # before the first report nothing is told, and states are written at 15, 30, 45
        with pytest.raises(Killed):
            run(fit, tmp_path / "b", objective, kill_at)
    torch.manual_seed(123)  # what stands in the global generator does not matter
    resumed = run(fit, tmp_path / "b", objective)
    assert same(whole, resumed)
    assert states.load(tmp_path / "b", CPU)["step"] == 60


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
def test_a_killed_run_of_a_convolutional_network_ends_as_one_that_was_not(tmp_path, optimizer):
    """Its weights lie in memory as channels_last, and fused Adam takes moments to lie as they do."""
    fit = replace(FIT, optimizer=optimizer)

    def net() -> nn.Module:
        torch.manual_seed(5)
        return build({"kind": "unet", "channels": 8, "multipliers": [1, 2]}, (1, 4, 4), 0)

    whole = run(fit, tmp_path / "a", net=net())
    with pytest.raises(Killed):
        run(fit, tmp_path / "b", kill_at=40, net=net())
    assert same(whole, run(fit, tmp_path / "b", net=net()))


def test_what_an_objective_trains_along_moves_at_the_networks_rate(tmp_path):
    fit = Fit(steps=40, batch_size=4, learning_rate=1e-2, schedule="linear", warmup_steps=8)
    objective = Weighted()
    objective.loss = lambda network, x, *_: (objective.weight.bias + network.bias).expand(len(x))
    run(fit, tmp_path / "s", objective, net=Scale())
    moved = sum(
        learning_rate(fit, k) for k in range(40)
    )  # Adam's step on a constant gradient is the rate itself
    assert float(objective.weight.bias.detach()) == pytest.approx(-moved, rel=1e-3)
    assert float(objective.weight.weight.detach()) == 0  # had no gradient


def test_a_module_that_is_only_kept_is_not_trained(tmp_path):
    objective = Weighted()
    kept = consistency(Scale())
    kept.modules = {"target": kept.target, "other": objective.weight}
    run(Fit(steps=5, batch_size=4), tmp_path / "s", kept, net=Scale())
    assert float(objective.weight.bias.detach()) == 0


def test_a_resumed_run_really_resumes(tmp_path):
    seen = []

    class Counting(Denoise):
        def loss(self, network, x, labels, step, rng):
            seen.append(step)
            return super().loss(network, x, labels, step, rng)

    with pytest.raises(Killed):
        run(FIT, tmp_path / "s", Counting(), kill_at=40)
    assert seen == list(range(40))
    seen.clear()
    run(FIT, tmp_path / "s", Counting())
    assert seen == list(range(30, 60))
    seen.clear()
    run(FIT, tmp_path / "s", Counting())
    assert seen == []


def test_how_often_states_are_saved_changes_nothing(tmp_path):
    assert same(
        run(FIT, tmp_path / "a", "consistency"),
        run(replace(FIT, checkpoint_every=7), tmp_path / "b", "consistency"),
    )


def test_the_seed_decides(tmp_path):
    first, again, other = (
        run(FIT, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(first, again)
    assert not same(first, other)


def test_seeds_of_steps_are_all_different():
    assert len({step_seed(seed, step) for seed in range(20) for step in range(500)}) == 10_000
    assert step_seed(3, 4) != step_seed(4, 3)
    assert all(0 <= step_seed(seed, 7) < 2**63 for seed in range(1000))


def test_training_learns(tmp_path):
    losses = []

    class Copy(Denoise):
        def loss(self, network, x, labels, step, rng):
            return (network(x, torch.zeros(len(x)), labels) - x).square().flatten(1).mean(1)

    train(
        network(0.0), Copy(), images(), Fit(steps=300, batch_size=50, learning_rate=1e-2),
        seed=0, device=CPU, state_path=tmp_path / "s", report=lambda p: losses.append(p.loss),
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]


# --- averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [True, False])
def test_the_evaluated_weights_are_the_average_of_all_steps(tmp_path, warmup: bool):
    weights = []

    class Watching(Fixed):
        def after_step(self, network, step):
            weights.append(float(network.weight.detach().double()))

    fit = Fit(steps=30, batch_size=4, ema=0.8, ema_warmup=warmup, learning_rate=0.05)
    made = run(fit, tmp_path / "s", Watching(lambda _: 1.0), net=Scale(0.3, 0.1))
    average = 0.3
    for step, weight in enumerate(weights):
        decay = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        average = decay * average + (1 - decay) * weight
    assert float(made.weight) == pytest.approx(average, rel=1e-5)
    assert len(weights) == 30
    assert abs(average - weights[-1]) > 0.01
    assert not made.training
    assert not made.weight.requires_grad


def test_without_average_the_current_weights_are_evaluated(tmp_path):
    net = network()
    made = run(replace(FIT, ema=0.0, ema_warmup=False), tmp_path / "s", net=net)
    assert same(made, net)
    assert made is not net


def test_move_towards_is_linear_and_copies_buffers():
    average, current = network(), Net()
    current.norm.running_mean.fill_(3.0)
    before = copy.deepcopy(average)
    move_towards(average, current, 0.75)
    for old, new, now in zip(before.parameters(), current.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new)
    assert bool((average.norm.running_mean == 3).all())
    move_towards(average, current, 0.0)
    assert same(average, current)


def test_average_warms_up_to_its_decay():
    fit = Fit(ema=0.99)
    assert ema_decay(fit, 0) == pytest.approx(1 / 10)
    assert ema_decay(fit, 90) == pytest.approx(91 / 100)
    assert ema_decay(fit, 10**6) == 0.99
    assert ema_decay(replace(fit, ema_warmup=False), 0) == 0.99


# --- rate and clipping -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_rate_warms_up_and_ends_where_its_schedule_says(schedule: str):
    fit = Fit(steps=110, warmup_steps=10, learning_rate=2.0, schedule=schedule)
    assert [learning_rate(fit, k) for k in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate(fit, 10) == pytest.approx(2.0)
    middle, end = {"constant": (2.0, 2.0), "cosine": (1.0, 0.0), "linear": (1.0, 0.0)}[schedule]
    assert learning_rate(fit, 60) == pytest.approx(middle)
    assert learning_rate(fit, 110) == pytest.approx(end, abs=1e-12)
    quarter = {"constant": 2.0, "cosine": 1 + math.cos(math.pi / 4), "linear": 1.5}[schedule]
    assert learning_rate(fit, 35) == pytest.approx(quarter)


def test_the_optimizer_takes_the_rate_of_the_schedule(tmp_path):
    """Adam's step on a constant gradient is the rate itself."""
    weights = [0.3]

    class Watching(Fixed):
        def after_step(self, network, step):
            weights.append(float(network.weight.detach()))

    fit = Fit(steps=40, batch_size=2, learning_rate=1e-2, schedule="linear", warmup_steps=8)
    run(fit, tmp_path / "s", Watching(lambda _: 1.0), net=Scale())
    made = -np.diff(weights)
    assert made == pytest.approx([learning_rate(fit, k) for k in range(40)], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 500.0), (0.5, 0.5), (1000.0, 500.0)])
def test_clipping_bounds_the_gradient(tmp_path, monkeypatch, clip: float, norm: float):
    norms = []

    class Plain(torch.optim.SGD):
        def step(self, closure=None):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in self.param_groups[0]["params"])))

    monkeypatch.setattr(
        "cmbench.training.loop.make_optimizer", lambda net, fit: Plain(net.parameters(), lr=fit.learning_rate)
    )

    class Steep(Denoise):
        def loss(self, network, x, labels, step, rng):
            return (300 * network.weight + 400 * network.bias).expand(len(x))

    run(Fit(steps=3, batch_size=2, clip=clip, ema=0.0), tmp_path / "s", Steep(), net=Scale())
    assert norms == pytest.approx([norm] * 3, rel=1e-4)


def test_bf16_trains_and_differs_from_float32(tmp_path):
    exact = run(FIT, tmp_path / "a")
    rounded = run(replace(FIT, autocast="bf16"), tmp_path / "b")
    assert not same(exact, rounded)
    for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.2, atol=0.2)
    with pytest.raises(Killed):
        run(replace(FIT, autocast="bf16"), tmp_path / "c", kill_at=40)
    assert same(rounded, run(replace(FIT, autocast="bf16"), tmp_path / "c"))


# --- divergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_a_loss_that_breaks_stops_the_run_and_leaves_the_last_good_state(tmp_path, bad: float):
    path = tmp_path / "s"
    fit = Fit(steps=50, batch_size=2, checkpoint_every=10, learning_rate=1e-3)
    objective = Fixed(lambda step: bad if step >= 33 else 1.0)
    with pytest.raises(WorkError) as caught:
        run(fit, path, objective, net=Scale())
    message = str(caught.value)
    assert "diverged before step 40" in message
    assert f"last good state is {path}" in message
    assert "\n" not in message
    saved = states.load(path, CPU)
    assert saved["step"] == 30
    assert all(bool(t.isfinite().all()) for t in saved["network"].values())
    run(fit, path, Fixed(lambda _: 1.0), net=Scale())  # and it can be continued
    assert states.load(path, CPU)["step"] == 50


def test_a_loss_that_breaks_at_once_leaves_no_state(tmp_path):
    with pytest.raises(WorkError, match="no state had been saved"):
        run(replace(FIT, checkpoint_every=10), tmp_path / "s", Fixed(lambda _: math.nan), net=Scale())
    assert list(tmp_path.iterdir()) == []


def test_an_explosion_is_noticed_by_a_resumed_run_too(tmp_path):
    fit = Fit(steps=50, batch_size=2, checkpoint_every=10)
    with pytest.raises(Killed):
        run(fit, tmp_path / "s", Fixed(lambda _: 1.0), kill_at=20, net=Scale())
    with pytest.raises(WorkError, match="diverged"):
        run(fit, tmp_path / "s", Fixed(lambda step: 1.0 if step < 10 else 1e5), net=Scale())


@pytest.mark.parametrize("values", [lambda k: -1.0 - k, lambda k: 2.0 - k, lambda k: 0.0 if k < 20 else 1.0])
def test_losses_that_are_negative_or_zero_are_no_divergence(tmp_path, values):
    fit = Fit(steps=40, batch_size=2, checkpoint_every=10)
    run(fit, tmp_path / "s", Fixed(values), net=Scale())
    assert states.load(tmp_path / "s", CPU)["step"] == 40


# --- the state file --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign"])
def test_a_damaged_state_is_one_clear_error(tmp_path, damage: str):
    path = tmp_path / "s"
    run(replace(FIT, steps=15), path)
    whole = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "garbage": b"\x00not a state" * 40, "empty": b""}[damage]
        )
    with pytest.raises(WorkError, match="delete it to train from the start") as caught:
        run(FIT, path)
    assert str(path) in str(caught.value)


def test_state_round_trip(tmp_path):
    shared = torch.randn(3)
    tree = {
        "step": 7,
        "best": 0.25,
        "network": {"a.0.weight": shared, "b": shared, "scalar": torch.tensor(3.0)},
        "optimizer": {0: {"step": torch.tensor(2.0), "exp_avg": torch.randn(2, 2).t()}, 11: {"flag": True}},
        "objective": {"target": {"w": torch.arange(3)}},
    }
    states.save(tmp_path / "s", tree)
    back = states.load(tmp_path / "s", CPU)
    assert back["step"] == 7
    assert back["best"] == 0.25
    assert set(back["optimizer"]) == {0, 11}
    assert back["optimizer"][11]["flag"] is True
    assert torch.equal(back["optimizer"][0]["exp_avg"], tree["optimizer"][0]["exp_avg"])
    for name, value in tree["network"].items():
        assert torch.equal(back["network"][name], value)
    assert torch.equal(back["objective"]["target"]["w"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0}, {"batch_size": 0}, {"checkpoint_every": 0}, {"ema": 1.0}, {"ema": -0.1},
        {"learning_rate": 0.0}, {"clip": -1.0}, {"warmup_steps": -1},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(UsageError):
        Fit(**values)


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
def test_the_optimizer_has_the_moments_of_the_settings(optimizer: str):
    made = make_optimizer(Scale(), Fit(optimizer=optimizer, beta1=0.3, beta2=0.8))
    assert made.param_groups[0]["betas"] == (0.3, 0.8)
