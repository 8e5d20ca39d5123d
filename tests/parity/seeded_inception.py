"""Weights of the right layout for Inception: seeded, with features and class scores that really vary."""

import torch
from torch import nn

from cmbench.metrics.inception import Inception2015
from cmbench.metrics.resizing import resize


def calibrated_inception() -> Inception2015:
    """An untrained FID Inception whose activations keep unit scale to the last layer.

    He's initialisation alone gives nearly constant features; here the batch normalisations take the
    statistics of a batch of varied images, and the class weights are scaled so that the probabilities differ
    by image.
    """
    torch.manual_seed(0)
    layers = Inception2015().train()
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics become those of the batches seen
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
    pools = {"Conv2d_2b_3x3", "Conv2d_4a_3x3"}
    with torch.no_grad():
        x = (resize(varied_images(12, 32), 299, "tf1-bilinear") - 128) / 128
        for name, layer in layers.named_children():
            if name != "fc":
                x = layer(x)
                x = nn.functional.max_pool2d(x, 3, 2) if name in pools else x
        spread = layers.fc(x.mean((2, 3))).std(0).mean()
        layers.fc.weight.mul_(2.0 / spread)
    return layers.eval()


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
