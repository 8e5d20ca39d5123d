"""A picture of samples above the training images that they are nearest to."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmbench.paths import atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

PER_ROW = 8
LEAST = 64  # pixels of a tile's side, to which small images are enlarged by a whole number
GAP = 4


def write_pairs(path: Path, samples: "Images", neighbours: "Images") -> None:
    """Write pairs, eight a row, the sample above its neighbour, on white.

    Args:
        path: the PNG file.
        samples: uint8 [N, C, H, W], C of 1 or 3, N ≥ 1.
        neighbours: the training image of each, of the same size; grey or in colour.
    """
    import numpy as np
    from PIL import Image

    scale = max(1, -(-LEAST // samples.shape[-1]))
    colour = [images.repeat(3 // images.shape[1], axis=1) for images in (samples, neighbours)]
    pairs = np.stack(colour, 1).repeat(scale, axis=-1).repeat(scale, axis=-2)
    N, _, _, H, W = pairs.shape
    rows = -(-N // PER_ROW)
    sheet = np.full((rows * (2 * H + 3 * GAP), min(N, PER_ROW) * (W + GAP) + GAP, 3), 255, np.uint8)
    for place, pair in enumerate(pairs):
        row, column = divmod(place, PER_ROW)
        for line, image in enumerate(pair):
            top = row * (2 * H + 3 * GAP) + GAP + line * (H + GAP // 2)
            left = GAP + column * (W + GAP)
            sheet[top : top + H, left : left + W] = image.transpose(1, 2, 0)
    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
