"""Networks with a time axis: every kind, starting as the plain network; the Fourier convolution itself."""

import copy

import pytest
import torch

from cmbench.errors import UsageError
from cmbench.networks import build
from cmbench.networks.trajectory import TemporalConvolution

SHAPE = (3, 8, 8)
KINDS = {
    "mlp": {"kind": "mlp", "width": 16, "blocks": 2, "embedding": 8},
    "unet": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    "song": {"kind": "song", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    "adm": {"kind": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
}
TIME = {"points": 4, "modes": 3}


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *SHAPE, generator=generator), torch.randn(batch, 4, generator=generator)


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """All weights random, where networks start with zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_plain_network_at_each_point(kind: str):
    network, plain = build({**KINDS[kind], "trajectory": TIME}, SHAPE, 0), build(KINDS[kind], SHAPE, 0)
    awake(plain)
    network.inner.load_state_dict(plain.state_dict())
    network.eval()
    x, c_noise = inputs()
    out = network(x, c_noise)
    assert out.shape == (2, 4, *SHAPE)
    for point in range(4):
        torch.testing.assert_close(out[:, point], plain(x, c_noise[:, point]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_points_see_each_other_and_samples_do_not(kind: str):
    network = awake(build({**KINDS[kind], "trajectory": TIME}, SHAPE, 0))
    x, c_noise = inputs()
    out = network(x, c_noise)
    moved = c_noise.clone()
    moved[0, 3] += 1
    other = network(x, moved)
    assert not torch.allclose(out[0, 0], other[0, 0], atol=1e-6)
    torch.testing.assert_close(out[1], other[1], rtol=1e-4, atol=1e-5)


def test_a_copy_has_convolutions_of_its_own():
    network = awake(build({**KINDS["mlp"], "trajectory": TIME}, SHAPE, 0))
    x, c_noise = inputs()
    before = network(x, c_noise)
    twin = copy.deepcopy(network)
    for parameter in twin.temporal.parameters():
        parameter.data.zero_()
    assert torch.equal(network(x, c_noise), before)
    assert not torch.allclose(twin(x, c_noise), before)


def test_weights_load_under_the_same_configuration():
    config = {**KINDS["unet"], "trajectory": TIME}
    network, other = awake(build(config, SHAPE, 0)), build(config, SHAPE, 0).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(*inputs()), other(*inputs()))


def test_labels_are_those_of_the_sample():
    network = awake(build({**KINDS["mlp"], "class_conditional": True, "trajectory": TIME}, SHAPE, 5))
    x, c_noise = inputs()
    both = network(x, c_noise, torch.tensor([1, 4]))
    one = network(x[1:], c_noise[1:], torch.tensor([4]))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("points", [1, 2, 4, 5])
def test_the_convolution_is_circular_in_time(points: int):
    """A shift in time of what goes in is a shift of what comes out, and all modes make any kernel."""
    layer = awake(TemporalConvolution(3, points, points // 2 + 1))
    h = torch.randn(2, points, 3, 5)
    out, shifted = (layer(x.flatten(0, 1)).unflatten(0, (2, points)) for x in (h, h.roll(1, dims=1)))
    torch.testing.assert_close(out.roll(1, dims=1), shifted, rtol=1e-4, atol=1e-5)


def test_the_lowest_mode_alone_adds_what_all_points_share():
    layer = awake(TemporalConvolution(3, 4, 1))
    h = torch.randn(4, 3, 5)
    change = layer(h) - h
    wanted = torch.einsum("cs,cd->ds", h.mean(0), layer.real[0])
    torch.testing.assert_close(change, wanted.expand(4, -1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "trajectory", [{"points": 4}, {"points": 4, "modes": 4}, {"points": 0, "modes": 1}, {"points": 4, "modes": "2"}, 4]
)  # fmt: skip
def test_a_wrong_time_axis_is_refused(trajectory):
    with pytest.raises(UsageError, match="trajectory"):
        build({**KINDS["mlp"], "trajectory": trajectory}, SHAPE, 0)
