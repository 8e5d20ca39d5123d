"""Image and mask files for editing: read, checked against the network's size, written."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmbench.data.files import DAMAGED
from cmbench.data.resize import fit
from cmbench.errors import UsageError, WorkError
from cmbench.paths import atomic
from cmbench.sampling.export import picture, tile

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Shape = tuple[int, int, int]


def read_image(path: Path, shape: Shape, *, fitted: bool = False, smaller: int = 1) -> Pixels:
    """One image as the network takes it, uint8 [C, H, W].

    Args:
        path: an image file.
        shape: C, H, W of the network's images.
        fitted: scale and cut it to the size, and turn colour into grey where the network's images are grey; otherwise
            an image of another size, or in colour, is an error.
        smaller: an image whose sides are those of the network's over this is taken too, each of its pixels as a block.

    Raises:
        UsageError: no such file, another size, an alpha channel, more than 8 bits, colour where there can be none.
        WorkError: a file that is no image.
    """
    image = _open(path)
    channels, height, width = shape
    if "A" in image.mode or "transparency" in image.info:
        raise UsageError(f"{path} has an alpha channel: flatten it to RGB or grey first")
    if image.mode.startswith(("I", "F")):
        raise UsageError(f"{path} has more than 8 bits a channel: convert it to 8")
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode not in ("L", "RGB"):
        raise UsageError(f"{path} is of mode {image.mode}: convert it to RGB or grey")
    image = _sized(path, image, (width, height), fitted, smaller)
    if channels == 1 and image.mode == "RGB":
        values = np.asarray(image)
        if not fitted and (values != values[..., :1]).any():
            raise UsageError(f"{path} is in colour, the network's images are grey: --fit turns it grey")
        image = image.convert("L") if (values != values[..., :1]).any() else Image.fromarray(values[..., 0])
    if channels == 3 and image.mode == "L":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _sized(path: Path, image: Image.Image, size: tuple[int, int], fitted: bool, smaller: int) -> Image.Image:
    low = size[0] // smaller, size[1] // smaller
    if image.size == size:
        return image
    if image.size == low:
        return image.resize(size, Image.Resampling.NEAREST)
    if fitted and size[0] == size[1]:
        return fit(image, size[0])
    wanted = _by(size) + (f", or {_by(low)}" if smaller > 1 else "")
    raise UsageError(
        f"{path} is {_by(image.size)}, the network's images are {wanted}: resize it, or let --fit cut and scale it"
    )


def read_mask(path: Path, shape: Shape, *, fitted: bool = False) -> Mask:
    """The pixels to be made, bool [H, W]: those that are white in the file (128 and above).

    Raises:
        UsageError: another size, an alpha channel, or a mask that leaves nothing to make, or nothing given.
    """
    image = _open(path)
    if "A" in image.mode or "transparency" in image.info:
        raise UsageError(
            f"{path} has an alpha channel: a mask is white where the image is to be made, else black"
        )
    size = shape[2], shape[1]
    if image.size != size and not fitted:
        raise UsageError(
            f"the mask {path} is {_by(image.size)}, the network's images are {_by(size)}: "
            f"make it of that size, or let --fit cut and scale it"
        )
    mask = np.asarray(fit(image.convert("L"), size[0]) if image.size != size else image.convert("L")) >= 128
    if not mask.any():
        raise UsageError(f"the mask {path} has no white pixel: white is what is to be made")
    if mask.all():
        raise UsageError(
            f"the mask {path} is all white: nothing is given (`cmbench sample` makes whole images)"
        )
    return mask


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise UsageError(f"no image at {path}")
    try:
        image = Image.open(path)
        image.load()
    except DAMAGED as error:
        raise WorkError(f"{path} is damaged or no image: {error}") from error
    return image


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def write(images: Pixels, names: Sequence[str], to: Path, columns: int | None = None) -> list[Path]:
    """Write uint8 [N, C, H, W]: to one PNG (several images as a grid), or into a folder by name.

    Args:
        images: what to write.
        names: file names without ending, for a folder; unlike each other.
        to: ``*.png``, or a folder.
        columns: of the grid; a nearly square one where None.

    Raises:
        UsageError: another ending.
    """
    check_target(to)
    hwc = images.transpose(0, 2, 3, 1)
    if to.suffix == ".png":
        if columns is not None:
            rows = [
                np.concatenate(list(hwc[at : at + columns]), axis=1) for at in range(0, len(hwc), columns)
            ]
            sheet = np.concatenate(rows, axis=0)
        else:
            sheet = tile(hwc)
        _save(sheet, to)
        return [to]
    paths = [to / f"{name}.png" for name in names]
    for image, path in zip(hwc, paths, strict=True):
        _save(image, path)
    return paths


def check_target(to: Path) -> None:
    """Raise UsageError unless this is a PNG file or a folder."""
    if to.suffix not in ("", ".png") and not to.is_dir():
        raise UsageError(f"--to {to}: give a .png, or a folder without an ending")


def _save(image: Pixels, path: Path) -> None:
    with atomic(path) as temporary:
        picture(image).save(temporary, format="PNG")


def unique_names(paths: Sequence[Path], task: str, count: int) -> list[str]:
    """Names for the results: ``stem-task``, with the place in the list where two stems are one, and ``-k`` of count."""
    stems = [path.stem for path in paths]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    made = []
    for place, stem in enumerate(stems):
        base = f"{stem}-{place}" if stem in twice else stem
        made += [f"{base}-{task}" + (f"-{k}" if count > 1 else "") for k in range(count)]
    return made


def is_folder(to: Path) -> bool:
    """Whether results go into a folder."""
    return to.suffix != ".png" or os.path.isdir(to)  # noqa: PTH112
