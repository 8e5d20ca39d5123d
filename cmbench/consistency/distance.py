"""Distances d(x, y) between images, [B, C, H, W] twice -> [B], for consistency losses."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from cmbench.errors import UsageError, WorkError, unknown

Distance = Callable[[Tensor, Tensor], Tensor]
VGG16 = "vgg16-397923af.pth"


def squared_l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference over the values of an image."""
    return (x - y).square().flatten(1).mean(1)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference over the values of an image."""
    return (x - y).abs().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """``sqrt(|x - y|^2 + c^2) - c`` with c = 0.00054 sqrt(d) (Song & Dhariwal, 2023, section 3.3)."""
    return pseudo_huber_with(0.00054 * math.sqrt(x[0].numel()))(x, y)


def pseudo_huber_with(c: float) -> Distance:
    """The pseudo-Huber distance with this constant; c = 0 is the norm |x - y|, with no gradient where x = y."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        square = (x - y).square().flatten(1).sum(1)
        if c == 0:
            return torch.where(square > 0, square, 1).sqrt() * (square > 0)
        # Expanded so that small differences do not cancel: s / (sqrt(s + c^2) + c).
        return square / (torch.sqrt(square + c * c) + c)

    return distance


def lpips_distance(device: torch.device, download: bool = True) -> Distance:
    """LPIPS with the VGG backbone (Zhang et al., 2018); images below 256 pixels are upsampled to 224.

    Raises WorkError where the backbone is neither in torch's cache nor can (or may) be downloaded.
    """
    import warnings

    import lpips

    backbone = Path(torch.hub.get_dir()) / "checkpoints" / VGG16
    if not download and not backbone.is_file():
        raise WorkError(f"LPIPS needs the VGG16 weights of torchvision: put {VGG16} into {backbone.parent}")
    try:
        with warnings.catch_warnings():  # lpips asks torchvision for weights in a deprecated way
            warnings.simplefilter("ignore")
            model = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:
        raise WorkError(
            f"LPIPS needs the VGG16 weights of torchvision, which are not in torch's cache and could not be "
            f"downloaded ({error}); put {VGG16} into {backbone.parent}"
        ) from error
    model = model.to(device).eval().requires_grad_(False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        if x.shape[1] == 1:
            x, y = x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)
        if x.shape[-1] < 256:
            x, y = (functional.interpolate(z, size=224, mode="bilinear") for z in (x, y))
        return model(x, y).flatten()  # type: ignore[no-any-return]

    return distance


def features_distance(dataset: str, device: torch.device) -> Distance:
    """The formula of LPIPS on the features of our own classifier of a data set, with all weights one.

    Raises UsageError where there is no classifier for the data set.
    """
    from cmbench.metrics.perceptual import OWN, classifier_distance

    if dataset not in OWN:
        raise UsageError(f"metric 'features' needs a classifier of ours, and there is none for {dataset}")
    between = classifier_distance(OWN[dataset], device)
    return lambda x, y: between((x + 1) * 127.5, (y + 1) * 127.5)


PLAIN: dict[str, Distance] = {"l1": l1, "l2": squared_l2, "pseudo-huber": pseudo_huber}
NAMES = (*PLAIN, "lpips", "features")


def distance(name: str, device: torch.device, dataset: str = "", download: bool = True) -> Distance:
    """The distance of this name: l1, l2 (squared), pseudo-huber, lpips or features (of a data set's classifier).

    ``download``: whether the backbone of LPIPS may be fetched.

    Raises UsageError for another name.
    """
    if name == "lpips":
        return lpips_distance(device, download)
    if name == "features":
        return features_distance(dataset, device)
    if name not in PLAIN:
        raise unknown("metric", name, NAMES)
    return PLAIN[name]
