"""Weights of the right layout for Inception: seeded, with features and class scores that really vary."""

from pathlib import Path

import pytest
import torch
from torch import nn


def _calibrated_inception() -> nn.Module:
    """An untrained FID Inception whose activations keep unit scale to the last layer.

    He's initialisation alone gives nearly constant features; here the batch normalisations take the
    statistics of a batch of varied images, and the class weights are scaled so that the largest probabilities
    differ by image.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    original, torch.load = torch.load, lambda *a, **k: {}
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path="unused"
        )
    finally:
        torch.load, FeatureExtractorInceptionV3.load_state_dict = original, load
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics become those of the batches seen
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
            module.train()
    with torch.no_grad():
        network(varied_images(12, 32))
        network.eval()
        features, logits = network(varied_images(8, 32, seed=1))
        spread = logits.std(0).mean()
        network.fc.weight.mul_(2.0 / spread)
        assert features.std(0).mean() > 0.01
    return network


def varied_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, size, size]: smooth random fields of varying contrast and roughness, plus noise."""
    rng = torch.Generator().manual_seed(seed)
    out = torch.zeros(count, 3, size, size)
    for cells in (2, 4, 9):
        field = torch.randn(count, 3, cells, cells, generator=rng)
        weight = torch.rand(count, 1, 1, 1, generator=rng)
        out += weight * nn.functional.interpolate(field, (size, size), mode="bicubic", align_corners=True)
    out += 0.3 * torch.rand(count, 1, 1, 1, generator=rng) * torch.randn(out.shape, generator=rng)
    return (out * 50 + 128).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in torch-fidelity's layout."""
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(_calibrated_inception().state_dict(), path)
    return path
