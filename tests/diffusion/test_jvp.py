"""Forward-mode derivatives of every kind of network against finite differences in float64."""

import pytest
import torch
from torch import nn

from cmbench.diffusion.jvp import network_jvp
from cmbench.networks import build

KINDS = {
    "mlp": {"kind": "mlp", "width": 16, "blocks": 2, "embedding": 16},
    "unet": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    "song": {
        "kind": "song", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
        "embedding": "fourier", "fourier_scale": 0.5, "encoder": "residual", "resample_filter": [1, 3, 3, 1],
    },
    "adm": {
        "kind": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4], "scale_shift": True,
    },
}  # fmt: skip


def float64(monkeypatch, kind: str) -> nn.Module:
    """A network with all weights random (many start as zero), in float64 throughout."""
    torch.manual_seed(3)
    network = build(KINDS[kind], (1, 8, 8), 0).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.15)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda self: self.double()
    )  # the norms' and embeddings' float32
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_derivative_is_that_of_finite_differences(monkeypatch, kind: str):
    network = float64(monkeypatch, kind)
    draws = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(3, 1, 8, 8, generator=draws, dtype=torch.float64) for _ in range(2))
    c, dc = (0.5 * torch.randn(3, generator=draws, dtype=torch.float64) for _ in range(2))
    value, slope = network_jvp(network, x, c, None, dx, dc)
    with torch.no_grad():
        torch.testing.assert_close(value, network(x, c, None))
        h = 1e-7  # the ADM network multiplies c_noise by a thousand
        wanted = (network(x + h * dx, c + h * dc, None) - network(x - h * dx, c - h * dc, None)) / (2 * h)
    assert float(wanted.abs().max()) > 0.01
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_value_carries_the_gradient_of_a_usual_call(monkeypatch, kind: str):
    network = float64(monkeypatch, kind)
    x, c = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    value, _ = network_jvp(network, x, c, None, torch.randn_like(x), torch.ones_like(c))
    made = torch.autograd.grad(value.square().sum(), list(network.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(
        network(x, c, None).square().sum(), list(network.parameters()), allow_unused=True
    )
    for a, b in zip(made, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
