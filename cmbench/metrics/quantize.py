"""From float images to uint8: the step on which published numbers differ by half a grey level."""

import torch
from torch import Tensor

from cmbench.errors import UsageError, WorkError


def quantize(images: Tensor, quantizer: str) -> Tensor:
    """Float images [B, C, H, W] in [-1, 1] to uint8.

    ``truncate`` (the consistency models' samplers): floor(127.5 x + 127.5); ``round`` (EDM): floor(127.5 x + 128);
    both limited to 0 .. 255.

    Raises:
        UsageError: not floating point.
        WorkError: values that are not finite.
    """
    if not images.is_floating_point():
        raise UsageError(f"images to quantise are floats in [-1, 1], not {images.dtype}")
    levels = images.float() * 127.5 + (127.5 if quantizer == "truncate" else 128.0)
    finite = torch.isfinite(levels).flatten(1).all(1)
    if not bool(finite.all()):
        raise WorkError(
            f"{int((~finite).sum())} of {len(finite)} generated images hold values that are not finite"
        )
    return levels.clamp(0, 255).to(torch.uint8)
