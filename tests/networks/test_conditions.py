"""Networks with a second condition: what they share with those of one, and how a student takes over its teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmbench.data.base import ArraySource, ImageData
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.methods import TrainJob
from cmbench.networks import build

SHAPE = (3, 16, 16)
TINY = {
    "mlp": {"kind": "mlp", "width": 16, "blocks": 1, "embedding": 16},
    "unet": {"kind": "unet", "channels": 16, "multipliers": [1, 2]},
    "song": {"kind": "song", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "ncsn++": {
        "kind": "song", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [], "embedding": "fourier",
    },
    "adm": {
        "kind": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [8], "head_channels": 32,
    },
}  # fmt: skip
every_network = pytest.mark.parametrize("config", TINY.values(), ids=TINY.keys())


def made(config, conditions: int) -> nn.Module:
    torch.manual_seed(3)
    return build({**config, "conditions": conditions} if conditions > 1 else config, SHAPE, 0)


def shaken(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def job(config, teacher: nn.Module | None, conditions: int = 2) -> TrainJob:
    images = ImageData("toy", "Toy", ArraySource(np.zeros((4, *SHAPE), np.uint8)))
    return TrainJob(
        None, images, {**config, "conditions": conditions}, 0, NoiseRange(), 5, torch.device("cpu"), Path("s"),
        lambda _: None, teacher=teacher,
    )  # fmt: skip


@every_network
def test_all_but_the_second_embedding_is_the_network_of_one_condition(config):
    one, two = made(config, 1).state_dict(), made(config, 2).state_dict()
    assert not [name for name in one if "more" in name]
    assert {name for name in two if name not in one} == {n for n in two if n.startswith("more_conditions.0.")}
    assert len(two) > len(one)
    for name, value in one.items():
        assert torch.equal(two[name], value), name


@every_network
def test_a_student_starts_as_its_teacher_and_learns_the_second_condition(config):
    teacher = shaken(made(config, 1))
    student = job(config, teacher).student().eval()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    t, s = torch.linspace(-1.5, 1, 3), torch.linspace(0.2, -1, 3)
    torch.testing.assert_close(student(x, torch.stack([t, s], 1)), teacher(x, t), rtol=1e-5, atol=1e-5)
    student(x, torch.stack([t, s], 1)).square().sum().backward()
    assert any(
        p.grad is not None and bool(p.grad.abs().sum() > 0)
        for n, p in student.named_parameters()
        if n.startswith("more_conditions.")
    )
    moved = shaken(student)
    out = moved(x, torch.stack([t, s], 1))
    assert ((moved(x, torch.stack([t, s + 0.5], 1)) - out).abs().amax((1, 2, 3)) > 1e-4).all()
    assert ((moved(x, torch.stack([t + 0.5, s], 1)) - out).abs().amax((1, 2, 3)) > 1e-4).all()


def test_a_student_may_lack_nothing_else():
    config = TINY["mlp"]
    wider = build({**config, "width": 24}, SHAPE, 0)
    deeper = build({**config, "blocks": 2}, SHAPE, 0)
    shallower = build({**config, "blocks": 1}, SHAPE, 0)
    for teacher, student in ((wider, config), (deeper, config), (shallower, {**config, "blocks": 2})):
        with pytest.raises(WorkError, match="do not fit the student"):
            job(student, teacher).student()
    with pytest.raises(WorkError, match="more_conditions"):
        job(config, made(config, 2), conditions=1).student()


@every_network
def test_another_number_of_conditions_is_one_clear_line(config):
    x, t = torch.zeros(2, *SHAPE), torch.zeros(2)
    with pytest.raises(UsageError, match="takes 2 conditions, got 1"):
        made(config, 2)(x, t)
    with pytest.raises(UsageError, match="takes 1 conditions, got 2"):
        made(config, 1)(x, torch.stack([t, t], 1))
    with pytest.raises(UsageError, match="conditions=0"):
        build({**config, "conditions": 0}, SHAPE, 0)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_forward_mode_derivatives_follow_both_conditions(kind):
    """MeanFlow's total derivative, against central differences."""
    network = shaken(made(TINY[kind], 2)).requires_grad_(False)
    x, dx = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    times, direction, h = torch.tensor([[0.7, 0.3], [0.9, 0.1]]), torch.tensor([[1.0, 1.0], [1.0, 2.0]]), 1e-3
    _, slope = torch.func.jvp(network, (x, times), (dx, direction))
    ends = [network(x + sign * h * dx, times + sign * h * direction) for sign in (1, -1)]
    wanted = (ends[0] - ends[1]) / (2 * h)
    assert float((slope - wanted).norm() / wanted.norm()) < 0.01
    _, frozen = torch.func.jvp(network, (x, times), (dx, 0 * direction))
    assert float((frozen - wanted).norm() / wanted.norm()) > 0.05
