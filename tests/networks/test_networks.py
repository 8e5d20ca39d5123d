"""What every network promises, whatever its architecture."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmbench.errors import UsageError
from cmbench.networks import build
from cmbench.networks.layers import NULL

SHAPE = (3, 16, 16)
SONG = {"kind": "song", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]}
TINY = {
    "unet": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "attention": [8]},
    "unet of patches": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "attention": [4], "patch": 2},
    "ddpm++": SONG,
    "ncsn++": {**SONG, "embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1]},
    "adm": {
        "kind": "adm",
        "channels": 64,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [8],
        "head_channels": 32,
    },
    "adm added embedding": {
        "kind": "adm",
        "channels": 64,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [8],
        "scale_shift": False,
    },
}
every_network = pytest.mark.parametrize("config", TINY.values(), ids=TINY.keys())


def perturbed(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, every parameter moved off its initial value, zero or not."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def inputs(batch: int = 3, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((batch, *shape), generator=generator)
    return x, torch.linspace(-1.5, 1.0, batch), torch.arange(batch) % 5


@every_network
def test_starts_at_zero_in_the_shape_of_its_input(config):
    x, c_noise, _ = inputs()
    out = build(config, SHAPE, 0)(x, c_noise, None)
    assert out.shape == x.shape and out.dtype == torch.float32
    # Score SDE starts "at zero" with weights of 1e-5 of the usual size; the others exactly.
    assert out.abs().max() < (1e-3 if config["kind"] == "song" else 1e-30)


@every_network
def test_a_sample_does_not_depend_on_its_batch(config):
    network = perturbed(build({**config, "class_conditional": True}, SHAPE, 5))
    x, c_noise, labels = inputs(4)
    together = network(x, c_noise, labels)
    alone = torch.cat([network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(4)])
    assert together.abs().max() > 1e-2
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@every_network
def test_noise_level_and_label_both_change_the_output(config):
    network = perturbed(build({**config, "class_conditional": True}, SHAPE, 5))
    x, c_noise, labels = inputs()
    out = network(x, c_noise, labels)
    for other in (network(x, c_noise + 0.3, labels), network(x, c_noise, labels + 1)):
        assert ((out - other).abs().amax((1, 2, 3)) > 1e-3).all()


@every_network
def test_the_null_class_is_a_label_like_no_other_and_has_no_parameters(config):
    network = perturbed(build({**config, "class_conditional": True}, SHAPE, 5))
    x, c_noise, labels = inputs()
    null = network(x, c_noise, torch.full_like(labels, NULL))
    for label in range(5):
        told = network(x, c_noise, torch.full_like(labels, label))
        assert ((null - told).abs().amax((1, 2, 3)) > 1e-3).all()
    mixed = network(x, c_noise, torch.tensor([NULL, 1, 2]))
    torch.testing.assert_close(mixed[:1], null[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1:], network(x, c_noise, labels)[1:], rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # its embedding is zero: the labels' parameters do not reach it
        for name, parameter in network.named_parameters():
            if "label" in name and "bias" not in name:
                parameter.mul_(2)
    assert torch.equal(network(x, c_noise, torch.full_like(labels, NULL)), null)


@every_network
def test_an_unconditional_network_ignores_labels_and_a_conditional_one_demands_them(config):
    x, c_noise, labels = inputs()
    unconditional = perturbed(build(config, SHAPE, 5))
    assert torch.equal(unconditional(x, c_noise, labels), unconditional(x, c_noise, None))
    with pytest.raises(UsageError, match="label"):
        build({**config, "class_conditional": True}, SHAPE, 5)(x, c_noise, None)
    with pytest.raises(UsageError, match="this one has none"):
        build({**config, "class_conditional": True}, SHAPE, 0)


@every_network
def test_attention_is_used_where_asked_for(config):
    """Silencing any one of the attentions changes the output."""
    network = perturbed(build(config, SHAPE, 0))
    x, c_noise, _ = inputs()
    out = network(x, c_noise, None)
    projections = [m for name, m in network.named_modules() if name.split(".")[-1] in ("proj", "proj_out")]
    assert projections
    for projection in projections:
        silenced = copy.deepcopy(network)
        twin = dict(silenced.named_modules())[next(n for n, m in network.named_modules() if m is projection)]
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert (silenced(x, c_noise, None) - out).abs().max() > 1e-4


@every_network
def test_gradient_reaches_every_parameter(config):
    network = perturbed(build({**config, "class_conditional": True}, SHAPE, 5))
    x, c_noise, labels = inputs()
    network(x, c_noise, labels).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@every_network
def test_bfloat16_autocast_agrees_with_float32(config):
    network = perturbed(build({**config, "class_conditional": True}, SHAPE, 5))
    x, c_noise, labels = inputs()
    out = network(x, c_noise, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, c_noise, labels)
        low.float().square().mean().backward()
    assert low.isfinite().all()
    assert (low - out).norm() / out.norm() < 0.03
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@every_network
def test_dropout_acts_in_training_only(config):
    network = perturbed(build({**config, "dropout": 0.5}, SHAPE, 0))
    x, c_noise, _ = inputs()
    assert torch.equal(network(x, c_noise, None), network(x, c_noise, None))
    network.train()
    assert not torch.equal(network(x, c_noise, None), network(x, c_noise, None))


@every_network
def test_forward_mode_derivative_is_the_adjoint_of_the_backward_one(config):
    """Continuous-time consistency training and MeanFlow differentiate forwards, through attention too."""
    network = perturbed(build(config, SHAPE, 0))
    x, c_noise, _ = inputs()
    u, v = torch.randn_like(x), torch.randn_like(x)
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # the other kernels have no forward derivative; cf. cmbench.diffusion.jvp
        _, forward = torch.func.jvp(lambda z: network(z, c_noise, None), (x,), (u,))
    _, pull_back = torch.func.vjp(lambda z: network(z, c_noise, None), x)
    torch.testing.assert_close((forward * v).sum(), (pull_back(v)[0] * u).sum(), rtol=1e-3, atol=1e-2)


@every_network
def test_channels_last_and_copies_change_nothing(config):
    network = perturbed(build(config, SHAPE, 0))
    x, c_noise, _ = inputs()
    out = network(x, c_noise, None)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        other(x.to(memory_format=torch.channels_last), c_noise, None), out, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 13)])
def test_unet_takes_any_image_size(shape):
    network = perturbed(build({"kind": "unet", "channels": 8, "attention": [-(-shape[1] // 4)]}, shape, 0))
    x, c_noise, _ = inputs(2, shape)
    assert network(x, c_noise, None).shape == x.shape


def test_checkpointing_gives_the_same_gradients():
    x, c_noise, _ = inputs()
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = perturbed(build({**TINY["adm"], "checkpointing": checkpointing}, SHAPE, 0))
        network(x, c_noise, None).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "needs a kind"),
        ({"kind": "unett"}, "did you mean 'unet'"),
        ({"kind": "unet", "chanels": 8}, "did you mean 'channels'"),
        ({"kind": "unet", "shape": (1, 2, 3)}, "unknown option"),
        ({"kind": "unet", "channels": "64"}, "'channels'.*whole number"),
        ({"kind": "unet", "channels": 7}, "even number of channels"),
        ({"kind": "unet", "blocks": 0}, "blocks >= 1"),
        ({"kind": "unet", "patch": 3}, "patch=3 must divide the 16x16"),
        ({"kind": "unet", "multipliers": []}, "multipliers"),
        ({"kind": "unet", "multipliers": [1, 0.5]}, "'multipliers'.*list of whole numbers"),
        ({"kind": "unet", "attention": [5]}, r"attention at \[5\].*\[16, 8, 4\]"),
        ({"kind": "unet", "dropout": 1.5}, "dropout"),
        ({"kind": "unet", "class_conditional": 1}, "true or false"),
        ({**SONG, "embedding": "sine"}, "'positional', 'fourier'"),
        ({**SONG, "resample_filter": [1, 2, 1]}, "even length"),
        ({**SONG, "multipliers": [1, 1, 1, 1, 1, 1]}, "cannot be halved 5 times"),
        ({**TINY["adm"], "channels": 48}, "multiple of 32"),
        ({**TINY["adm"], "head_channels": 48}, "head_channels"),
        ({**TINY["adm"], "time_scale": "fast"}, "a number"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(config, message):
    with pytest.raises(UsageError, match=message) as error:
        build(config, SHAPE, 0)
    assert "\n" not in str(error.value)


def test_importing_the_package_leaves_torch_alone():
    code = "import sys, cmbench.networks, cmbench.networks.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_skip_passes_the_noise_that_a_narrow_stream_cannot():
    def fitted(skip: bool) -> float:
        torch.manual_seed(0)
        network = build(
            {"kind": "mlp", "width": 16, "blocks": 1, "embedding": 16, "skip": skip}, (1, 8, 8), 0
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(150):
            noise, c_noise = torch.randn(64, 1, 8, 8), torch.rand(64)
            loss = (network(noise, c_noise) - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss)

    assert fitted(skip=True) < 0.05
    assert fitted(skip=False) > 0.5
