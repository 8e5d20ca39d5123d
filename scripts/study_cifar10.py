"""What the Fréchet distance does on real images: two halves of CIFAR-10, JPEG copies, and numbers of samples.

    python scripts/study_cifar10.py --data DIR [--resnet56 resnet56-4bfd9763.th] [--images 3000]

DIR holds ``cifar-10-batches-bin/``. Features are those of the shipped ``cifar10-resnet`` and, where its file is given,
of the ResNet-56 of https://github.com/akamaster/pytorch_resnet_cifar10 (BSD licence). Prints Markdown.
"""

import argparse
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cmbench.data import open_dataset
from cmbench.metrics.extractors import open_network
from cmbench.metrics.fid_infinity import fid_infinity
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.moments import Moments

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]
Extract = Callable[[Pixels], Features]

QUALITIES = (95, 75, 50, 25, 10)
COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al. 2016, section 3.3, option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        short = x
        if self.stride > 1:
            short = F.pad(x[..., ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + short)


class ResNet56(nn.Module):
    """The ResNet-56 for CIFAR-10 (He et al. 2016, section 4.2): uint8 images to features [B, 64] and logits [B, 10]."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(9)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(9)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(9)))
        self.linear = nn.Linear(64, 10)
        self.load_state_dict({name.removeprefix("module."): w for name, w in weights.items()})
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The layers ``features`` and ``logits`` of uint8 images [B, 3, 32, 32]."""
        mean, spread = (torch.tensor(values)[:, None, None] for values in COLOURS)
        x = F.relu(self.bn1(self.conv1((images / 255 - mean) / spread)))
        features = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        return {"features": features, "logits": self.linear(features)}


def resnet56(path: Path) -> ResNet56:
    """Read the network from its published file, of which only tensors are loaded."""
    return ResNet56(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


def extract(network: nn.Module, images: Pixels) -> Features:
    """Features [N, 64] of uint8 images [N, 3, 32, 32]."""
    with torch.inference_mode():
        parts = [network(batch)["features"].numpy() for batch in torch.from_numpy(images).split(100)]
    return np.concatenate(parts)


def jpeg(images: Pixels, quality: int) -> Pixels:
    """The images after JPEG compression."""
    out = np.empty_like(images)
    for place, image in enumerate(images.transpose(0, 2, 3, 1)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out[place] = np.asarray(Image.open(file)).transpose(2, 0, 1)
    return out


def moments(x: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance."""
    total = Moments(x.shape[1])
    total.update(x)
    return total.mean, total.covariance()


def distance(x: Features, y: Features) -> float:
    """Fréchet distance."""
    return frechet_distance(*moments(x), *moments(y))


@dataclass(frozen=True)
class Study:
    """The figures for one network.

    Attributes:
        halves: distance of one half to the other.
        floor: the same for two equal Gaussians with one half's moments, sampled as often: what is bias.
        compressed: JPEG quality (100: as they are) -> distance of a third of one half to the other half.
        sizes: number of samples -> (distance, distance extrapolated from as many), means over disjoint parts.
    """

    halves: float
    floor: float
    compressed: Mapping[int, float]
    sizes: Mapping[int, tuple[float, float]]


def halves(images: Pixels, count: int) -> tuple[Pixels, Pixels]:
    """Two disjoint sets of ``count`` images, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(images))
    return images[np.sort(order[:count])], images[order[count : 2 * count]]


def study(network: nn.Module, one: Pixels, other: Pixels) -> Study:
    """Measure ``other`` and its compressed copies against ``one``."""
    known, real = extract(network, one), extract(network, other)
    n, third = len(other), len(other) // 3
    mean, covariance = moments(known)
    compressed = {100: distance(known, real[:third])}
    for quality in QUALITIES:
        compressed[quality] = distance(known, extract(network, jpeg(other[:third], quality)))
    rng = np.random.default_rng(1)
    drawn = [rng.multivariate_normal(mean, covariance, (2, n)).astype(np.float32) for _ in range(5)]
    sizes = {}
    for size in (n // 4, n // 2, n):
        parts = [real[start : start + size] for start in range(0, n - size + 1, size)]
        lines = [
            fid_infinity(part, mean, covariance, points=8, smallest=size // 3, seed=seed).value
            for part in parts
            for seed in range(6)
        ]
        sizes[size] = (float(np.mean([distance(known, part) for part in parts])), float(np.mean(lines)))
    floor = float(np.mean([distance(*pair) for pair in drawn]))
    return Study(distance(known, real), floor, compressed, sizes)


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--resnet56", type=Path)
    parser.add_argument("--images", type=int, default=3000, help="images in each half")
    given = parser.parse_args()
    data = open_dataset("cifar10", given.data, download=False)
    one, other = halves(data.read(np.arange(len(data))), given.images)
    networks: dict[str, nn.Module] = {"cifar10-resnet": open_network("cifar10-resnet")}
    if given.resnet56:
        networks["ResNet-56"] = resnet56(given.resnet56)
    found = {name: study(network, one, other) for name, network in networks.items()}
    print(f"| {given.images:,} against {given.images:,} images | {' | '.join(found)} |")
    print("| :-- |" + " --: |" * len(found))
    rows = {"one half against the other": [s.halves for s in found.values()]}
    rows["two samples of one Gaussian"] = [s.floor for s in found.values()]
    for quality in (100, *QUALITIES):
        title = f"JPEG, quality {quality}" if quality < 100 else "uncompressed"
        rows[f"{given.images // 3:,} images, {title}"] = [s.compressed[quality] for s in found.values()]
    for size in next(iter(found.values())).sizes:
        for place, title in enumerate(("FD", "FD∞")):
            rows[f"{title} of {size:,} images"] = [s.sizes[size][place] for s in found.values()]
    for title, values in rows.items():
        print(f"| {title} | {' | '.join(f'{value:.4g}' for value in values)} |")


if __name__ == "__main__":
    main()
