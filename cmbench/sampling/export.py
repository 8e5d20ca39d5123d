"""Samples as files: a grid, an npz, or a folder of PNG files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cmbench.errors import UsageError
from cmbench.methods import Method
from cmbench.metrics.quantize import quantize
from cmbench.paths import atomic
from cmbench.sampling.generate import check_labels, open_source

if TYPE_CHECKING:
    from cmbench.workshop import Workshop


def export(
    workshop: "Workshop",
    method: Method,
    *,
    nfe: int,
    seed: int,
    count: int,
    to: Path,
    batch_size: int,
    quantizer: str,
    on_samples: Callable[[str, int, int], None],
    labels: tuple[int, ...] = (),
) -> Path:
    """Write samples 0..count-1 and return the path.

    ``to`` decides the form: ``*.png`` is one grid, ``*.npz`` holds ``arr_0`` (uint8 [N, H, W, C]), anything else is
    a folder of ``000000.png``, ... The uint8 values are those that the protocol's quantiser makes. ``labels`` are
    classes to cycle through; without any, they are drawn as for a record.

    Raises:
        UsageError: the method cannot do this, there is no such class, or ``to`` has another ending.
    """
    if to.suffix not in ("", ".png", ".npz"):
        raise UsageError(f"--to {to}: give a .png (grid), a .npz, or a folder without an ending")
    if reason := workshop.refusal(method, nfe):
        raise UsageError(f"{method.name} at NFE {nfe}: {reason}")
    need = workshop.need(method, nfe, seed)
    check_labels(labels, workshop.classes(need))
    checkpoint = workshop.ensure(need)
    network = checkpoint.network(workshop.device)
    source = open_source(workshop, method, checkpoint, network, nfe=nfe, seed=seed, labels=labels)

    channels, height, width = checkpoint.header.shape
    images = np.empty((count, height, width, channels), np.uint8)
    for first, batch in source.batches(0, count, batch_size):
        raw = quantize(batch, quantizer).cpu().numpy().transpose(0, 2, 3, 1)
        images[first : first + len(raw)] = raw
        on_samples(f"{method.label}, NFE {nfe}, seed {seed}", first + len(raw), count)

    if to.suffix == ".npz":
        with atomic(to) as temporary, temporary.open("wb") as stream:
            np.savez(stream, arr_0=images)
    elif to.suffix == ".png":
        with atomic(to) as temporary:
            picture(tile(images)).save(temporary, format="PNG")
    else:
        to.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            picture(image).save(to / f"{index:06d}.png")
    return to


def tile(images: np.ndarray) -> np.ndarray:
    """Lay images [N, H, W, C] out as a nearly square grid, row by row; places behind the last are black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    n, height, width, channels = images.shape
    full = np.zeros((rows * columns, height, width, channels), np.uint8)
    full[:n] = images
    grid = full.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
