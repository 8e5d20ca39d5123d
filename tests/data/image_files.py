"""Small image files, made by the tests that read them."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from cmbench.data import ImageData

N, H, W = 7, 10, 12
IMAGES = np.random.default_rng(3).integers(0, 256, (N, 3, H, W), np.uint8)


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] -> an image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    picture(pixels).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, images: np.ndarray = IMAGES, names: list[str] | None = None) -> Path:
    for index, pixels in enumerate(images):
        path = folder / (names[index] if names else f"{index:05d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return folder


def pack(folder: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in folder.rglob("*"):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def everything(data: ImageData) -> np.ndarray:
    return data.read(np.arange(len(data)))
