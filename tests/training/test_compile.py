"""What ``compile`` runs through torch.compile, and that it changes nothing but the speed."""

import copy
from dataclasses import replace

import pytest
import torch
from gaussian import Scale
from test_training_loop import CPU, FIT, Net, consistency, images, network, run, same

from cmbench import recipes
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError
from cmbench.methods import TrainJob
from cmbench.networks import build
from cmbench.training.batches import on_device
from cmbench.training.fit import Fit

COMPILED = replace(FIT, compile=True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list:
    """The modules that are compiled, and with what; by a backend that runs the graph as it stands."""
    seen: list = []
    original = torch.compile

    def spy(call, **options):
        seen.append((call.__self__, options))
        return original(call, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", spy)
    return seen


def test_network_and_target_are_compiled_and_the_result_is_the_same(tmp_path, compiled):
    whole = run(FIT, tmp_path / "a", "consistency")
    assert compiled == []
    net = network()
    objective = consistency(net)
    assert same(whole, run(COMPILED, tmp_path / "b", objective, net=net))
    assert [module for module, _ in compiled] == [net, objective.target]


def test_a_state_serves_with_and_without(tmp_path, compiled):
    whole = run(FIT, tmp_path / "a")
    run(replace(COMPILED, steps=30), tmp_path / "b")
    assert same(whole, run(FIT, tmp_path / "b"))
    assert len(compiled) == 1


def test_the_teacher_is_compiled_too(tmp_path, compiled):
    teacher = Net()
    job = TrainJob(
        None, images(), {}, 0, NoiseRange(), 0, CPU, tmp_path / "s", lambda _: None, teacher=teacher
    )
    job.fit(network(), consistency(network()), replace(FIT, steps=2))
    assert compiled == []
    job.fit(network(), consistency(network()), replace(COMPILED, steps=4))
    assert teacher in [module for module, _ in compiled]


@pytest.mark.parametrize(("value", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_how_it_is_compiled(tmp_path, compiled, value, mode):
    run(replace(FIT, steps=1, compile=value), tmp_path / "s", net=network())
    assert [options for _, options in compiled] == [{"dynamic": False, "mode": mode}]


def test_identities_name_it_where_it_is_chosen():
    assert recipes.differences(Fit(compile=False)) == {}
    assert recipes.differences(Fit(compile=True)) == {"compile": True}
    chosen = recipes.parse(Fit, {"compile": "reduce-overhead"}, "fit")
    assert recipes.differences(chosen) == {"compile": "reduce-overhead"}
    with pytest.raises(UsageError, match=r"'faster' is not .*reduce-overhead"):
        recipes.parse(Fit, {"compile": "faster"}, "fit")


def test_the_setting_of_cudnn_is_put_back(tmp_path):
    before = torch.backends.cudnn.benchmark
    seen = []
    run(replace(FIT, steps=1), tmp_path / "s", Watching(seen), net=Scale())
    assert seen == [True]
    assert torch.backends.cudnn.benchmark is before


class Watching:
    """Looks at cuDNN's setting during a step."""

    def __init__(self, seen: list) -> None:
        self.modules, self.seen = {}, seen

    def loss(self, network, x, labels, step, rng):
        self.seen.append(torch.backends.cudnn.benchmark)
        return network.weight.expand(len(x))

    def after_step(self, network, step):
        pass


def test_moving_to_a_device_keeps_values_and_type():
    values = torch.arange(5, dtype=torch.float64)
    assert torch.equal(on_device(values, CPU), values)
    assert on_device(values, CPU).dtype == torch.float64


@pytest.mark.slow
def test_the_compiled_network_of_the_gpu_preset_computes_the_same():
    """With the real compiler: output and gradients within rounding, in the kind of network that the preset has."""
    torch.manual_seed(0)
    config = {"kind": "song", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]}
    plain = build(config, (3, 16, 16), 0).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    fast.compile(dynamic=False)
    x, c_noise = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.5])
    outs = [net(x, c_noise) for net in (plain, fast)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-3, atol=1e-8)
    for out in outs:
        out.square().sum().backward()
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4 * scale)
