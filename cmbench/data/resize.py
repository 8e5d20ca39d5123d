"""The one way in which images change their size here, and only where the user asks for it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmbench.data.base import Indices, Pixels, Shape, Source


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size``, then cut the centre size x size.

    Shrinks with PIL's BOX filter, as guided-diffusion prepares the LSUN images on which ADM and consistency
    models are trained and evaluated, and enlarges with BICUBIC. An image of size x size is returned as it is.
    """
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize(shape, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True, eq=False)
class Resized:
    """The images of another source, cropped and resized to size x size when they are read."""

    source: Source
    size: int

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""
        return self.source.shape[0], self.size, self.size

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        for row, pixels in zip(out, self.source.read(indices), strict=True):
            image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            row[:] = np.asarray(fit(image, self.size)).reshape(self.size, self.size, -1).transpose(2, 0, 1)
        return out

    def digest(self) -> bytes:
        """That of the source, and the size."""
        return self.source.digest() + f" resized {self.size}".encode()
