"""Perceptual distances between images: LPIPS, and the same formula on one of our own classifiers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmbench.errors import WorkError
from cmbench.metrics.classifiers import Classifier
from cmbench.metrics.moments import Float64

OWN = {"digits": "digits-cnn", "mnist": "mnist-cnn", "cifar10": "cifar10-resnet"}
"""Data set -> our classifier of its images."""

Pixels = NDArray[np.uint8]
BATCH = 64


@dataclass(frozen=True)
class Perceptual:
    """A distance, or why it cannot be had.

    Attributes:
        key: short name, in records: ``lpips`` or ``features``.
        title: what tables print: ``LPIPS``, or the name of the classifier.
        distance: uint8 [B, C, H, W] twice -> [B]; None where it is missing.
        reason: why it is missing.
    """

    key: str
    title: str
    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    reason: str | None = None

    def between(self, a: Pixels, b: Pixels, device: torch.device) -> Float64:
        """Distances [N] of the images of one index, uint8 [N, C, H, W] twice. Raises WorkError where it is missing."""
        if self.distance is None:
            raise WorkError(self.reason or f"{self.title} is missing")
        parts = []
        with torch.inference_mode():
            for start in range(0, len(a), BATCH):
                x, y = (torch.from_numpy(z[start : start + BATCH]).to(device) for z in (a, b))
                parts.append(self.distance(x, y).double().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0)


def titles(dataset: str) -> dict[str, str]:
    """The distances for the images of a data set, key -> title, whether or not they can be had here."""
    own = {"features": OWN[dataset]} if dataset in OWN else {}
    return {"lpips": "LPIPS", **own}


def open_distances(dataset: str, device: torch.device, download: bool = True) -> list[Perceptual]:
    """The distances of :func:`titles`, those that cannot be had with the reason.

    Args:
        dataset: registered name.
        device: where they run.
        download: whether the backbone of LPIPS may be fetched.
    """
    return [
        _lpips(device, download) if key == "lpips" else _classifier(title, device)
        for key, title in titles(dataset).items()
    ]


def _lpips(device: torch.device, download: bool) -> Perceptual:
    from cmbench.consistency.distance import lpips_distance

    try:
        distance = lpips_distance(device, download)
    except WorkError as error:
        return Perceptual("lpips", "LPIPS", reason=str(error))
    return Perceptual("lpips", "LPIPS", lambda x, y: distance(x / 127.5 - 1, y / 127.5 - 1))


def _classifier(name: str, device: torch.device) -> Perceptual:
    return Perceptual("features", name, classifier_distance(name, device))


def classifier_distance(name: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The formula of LPIPS on the stages of one of our classifiers, of images [B, C, H, W] in [0, 255]: [B].

    Images may be floats, and then have gradients.
    """
    from cmbench.metrics import classifiers

    network = classifiers.load(classifiers.ASSETS / f"{name}.safetensors").to(device)
    return lambda x, y: layers_distance(_stages(network, x), _stages(network, y))


def _stages(network: Classifier, images: Tensor) -> list[Tensor]:
    if images.shape[1] < network.architecture.channels:
        images = images.expand(-1, network.architecture.channels, -1, -1)
    return network.stage_outputs(images)


def layers_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The formula of LPIPS with all weights one, [B] (Zhang et al. 2018, arXiv 1801.03924, equation 1).

    The activations [B, C, H, W] of each layer are scaled to unit length over the channels; the squared differences
    are summed over channels, averaged over places, and summed over layers.
    """
    return torch.stack([_layer(x, y) for x, y in zip(a, b, strict=True)]).sum(0)


def _layer(x: Tensor, y: Tensor) -> Tensor:
    x, y = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (x, y))
    return (x - y).square().sum(1).mean((1, 2))
