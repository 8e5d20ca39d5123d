"""How images reach the size that a network takes: the field's ways, which move FID by whole points."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cmbench.metrics.protocols import RESIZES


def resize(images: Tensor, size: int, mode: str) -> Tensor:
    """Bring uint8 images [B, C, H, W] to float32 [B, C, size, size] in [0, 255], on the same device.

    Modes (``cmbench.metrics.protocols.RESIZES``):
        none: no change; the images must have that size already.
        tf1-bilinear: TensorFlow 1's bilinear without half-pixel centres and without anti-aliasing, as in the
            original FID code, ADM's evaluator and torch-fidelity.
        half-pixel-bilinear: PyTorch's bilinear without anti-aliasing, as in pytorch-fid.
        half-pixel-bicubic: PyTorch's bicubic without anti-aliasing, as in CMMD's code.
        pil-bicubic: Pillow's anti-aliased bicubic of each channel in float, clipped (clean-fid).
        pil-bicubic-uint8: the same filter on 8-bit images, which rounds (dgm-eval, CLIP).

    Raises:
        ValueError: no such mode, or images of another size under ``none``.
    """
    if mode == "none":
        if images.shape[-2:] != (size, size):
            raise ValueError(f"images of {images.shape[-2]}x{images.shape[-1]}, not {size}x{size}")
        return images.float()
    if mode == "tf1-bilinear":
        return _tf1_bilinear(images, size)
    if mode == "half-pixel-bilinear":
        return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)
    if mode == "half-pixel-bicubic":
        return F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False)
    if mode in ("pil-bicubic", "pil-bicubic-uint8"):
        planes = images.flatten(0, 1).cpu().numpy()
        if mode == "pil-bicubic":
            planes = planes.astype(np.float32)  # makes Pillow filter in float and keep what it computes
        out = np.stack([np.asarray(_pillow(plane, size)) for plane in planes]).astype(np.float32)
        resized = torch.from_numpy(out.clip(0, 255)).reshape(*images.shape[:2], size, size)
        return resized.to(images.device)
    raise ValueError(f"resize '{mode}', not one of {', '.join(RESIZES)}")


def _pillow(plane: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)


def _tf1_grid(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours [size] of output pixel i, at i * length / size, and the weight of the upper one."""
    # float32 throughout, as TensorFlow computes it: the last bits decide which pixel a position falls on.
    position = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size, dtype=torch.float32)
    low = position.long()
    high = (low + 1).clamp_max(length - 1)
    return low.to(device), high.to(device), (position - low.float()).to(device)


def _tf1_bilinear(images: Tensor, size: int) -> Tensor:
    # Across first and then down, in TensorFlow's order of operations, so that results agree to the bit.
    x = images.permute(0, 2, 3, 1).contiguous()  # channels last, so that whole rows are copied
    for axis in (2, 1):
        low, high, weight = _tf1_grid(x.shape[axis], size, x.device)
        near = x.index_select(axis, low).float()
        step = x.index_select(axis, high).float().sub_(near)
        step.mul_(weight[:, None] if axis == 2 else weight[:, None, None])
        x = near.add_(step)
    return x.permute(0, 3, 1, 2)
