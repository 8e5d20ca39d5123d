"""Outputs equal to those of the public reference implementations, on weights that follow from their names."""

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmbench.networks import build

X = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 16, 16))).float()
C_NOISE = torch.tensor([-1.3, 0.4])
LABELS = torch.tensor([1, 2])

SONG = {"kind": "song", "channels": 16, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8]}
NCSNPP = {**SONG, "embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1]}
ADM = {
    "kind": "adm",
    "channels": 64,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [8],
    "head_channels": 32,
}

# (config, classes, output[0, :, 5, 9] then output[1, :, 15, 0], mean of |output|), computed in float32 after
# `fill` with SongUNet of NVlabs/edm and UNetModel of openai/consistency_models (its attention without a GPU).
CASES = {
    "ddpm++ conditional": (
        {**SONG, "class_conditional": True},
        3,
        [0.4734, -0.509272, -0.265244, 0.589292, -0.128248, -0.155146],
        0.397091,
    ),
    "ncsn++": (NCSNPP, 0, [0.470918, -0.556627, -0.292822, 0.595559, -0.106035, -0.160665], 0.406437),
    "adm scale-shift conditional": (
        {**ADM, "class_conditional": True},
        3,
        [-0.655301, -0.713926, -0.092345, -0.570096, -0.982295, 0.252525],
        0.593396,
    ),
    "adm added embedding": (
        {**ADM, "scale_shift": False},
        0,
        [-0.734377, -0.671849, -0.093227, -0.609206, -0.980993, 0.250967],
        0.580312,
    ),
}


def fill(network: nn.Module) -> None:
    """Give every entry of the state dict normal values drawn from a generator seeded by the entry's name."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(values / (np.sqrt(values[0].size) if values.ndim > 1 else 3)))


def outputs(network: nn.Module, conditional: bool) -> Tensor:
    """The output [2, 3, 16, 16] on the inputs of this module."""
    with torch.no_grad():
        out: Tensor = network.eval()(X, C_NOISE, LABELS if conditional else None)
    return out


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_same_outputs_as_the_reference_implementation(case):
    config, classes, pixels, mean = case
    network = build(config, (3, 16, 16), classes)
    fill(network)
    out = outputs(network, classes > 0)
    np.testing.assert_allclose([*out[0, :, 5, 9], *out[1, :, 15, 0]], pixels, atol=1e-5)
    assert out.abs().mean().item() == pytest.approx(mean, abs=1e-5)


def test_adm_multiplies_the_noise_level_by_a_thousand():
    config = {"kind": "adm", "channels": 32, "multipliers": [1], "blocks": 1, "attention": []}
    networks = [
        build({**config, "head_channels": 32, **extra}, (3, 8, 8), 0) for extra in ({}, {"time_scale": 1.0})
    ]
    for network in networks:
        fill(network)
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([-1.0, 0.5])
    torch.testing.assert_close(networks[0](x, c_noise), networks[1](x, 1000 * c_noise))
