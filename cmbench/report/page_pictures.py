"""The pictures inside the HTML report, as data URIs, within a budget of bytes."""

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench.records import Record
from cmbench.report.grid import MOST, PER_ROW, preview_path, read_preview

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Encode = Callable[["NDArray[np.uint8]"], str]


@dataclass(frozen=True)
class Previews:
    """Samples of records, eight a row.

    Attributes:
        samples: how many a picture holds at most.
        pictures: record key -> data URI.
        remark: what was left out or compressed, empty where nothing was.
    """

    samples: int
    pictures: dict[str, str]
    remark: str = ""


def previews(records: Sequence[Record], folder: Path, budget: int) -> Previews:
    """The stored previews of these records: as many samples, and of as many seeds, as the budget holds.

    First fewer samples a record, then JPEG instead of PNG, then only the lowest seed, then none.

    Args:
        records: of any data sets.
        folder: the folder of the previews.
        budget: characters that their data URIs may take together.

    Raises:
        WorkError: a preview is damaged.
    """
    there = [record for record in records if preview_path(folder, record).exists()]
    if not there:
        return Previews(0, {})
    lowest = min(record.seed for record in there)
    plans = [(there, encode, samples) for encode in (_png, _jpeg) for samples in (MOST, 32, 16, PER_ROW)]
    plans += [([one for one in there if one.seed == lowest], _jpeg, samples) for samples in (32, PER_ROW)]
    for own, encode, samples in plans:
        pictures = _encoded(own, folder, encode, samples, budget)
        if pictures is not None:
            left = f"only seed {lowest} is shown" if len(own) < len(there) else ""
            lossy = "compressed as JPEG" if encode is _jpeg else ""
            few = f"the first {samples} samples of each" if samples < MOST else ""
            parts = [part for part in (few, lossy, left) if part]
            return Previews(
                samples, pictures, f"To keep the page small: {', '.join(parts)}." if parts else ""
            )
    return Previews(0, {}, f"The samples of {len(there)} records are left out: too large for one page.")


def _encoded(
    records: Sequence[Record], folder: Path, encode: Encode, samples: int, budget: int
) -> dict[str, str] | None:
    """The pictures, or None as soon as they exceed the budget."""
    import numpy as np

    pictures: dict[str, str] = {}
    spent = 0
    for record in records:
        tiles = read_preview(preview_path(folder, record), record.samples)[:samples]
        empty = np.zeros((-len(tiles) % PER_ROW, *tiles.shape[1:]), np.uint8)
        full = np.concatenate([tiles, empty])
        rows, size = len(full) // PER_ROW, full.shape[1]
        sheet = full.reshape(rows, PER_ROW, *full.shape[1:]).swapaxes(1, 2)
        pictures[record.key] = encode(sheet.reshape(rows * size, PER_ROW * size, *full.shape[3:]))
        spent += len(pictures[record.key])
        if spent > budget:
            return None
    return pictures


def _png(sheet: "NDArray[np.uint8]") -> str:
    return _saved(sheet, "image/png", format="PNG", optimize=True)


def _jpeg(sheet: "NDArray[np.uint8]") -> str:
    return _saved(sheet, "image/jpeg", format="JPEG", quality=85)


def _saved(sheet: "NDArray[np.uint8]", kind: str, **options: Any) -> str:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(file, **options)
    return data_uri(file.getvalue(), kind)


def data_uri(content: bytes, kind: str) -> str:
    """``data:<kind>;base64,...``."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


@dataclass(frozen=True)
class Picture:
    """A figure of the results folder: its file name without ending, and its data URI."""

    name: str
    uri: str


def figures(folder: Path, budget: int) -> tuple[list[Picture], list[str]]:
    """The figures under a folder, PNG or SVG, whichever is smaller, by name; and the names of those left out.

    A figure that exceeds what is left of the budget, in characters, is left out; smaller ones behind it still have
    their chance.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in (".png", ".svg") and path.is_file():
            files.setdefault(path.stem, []).append(path)
    pictures, left = [], []
    for name, choices in files.items():
        path = min(choices, key=lambda one: (one.stat().st_size, one.suffix))
        uri = data_uri(path.read_bytes(), "image/svg+xml" if path.suffix == ".svg" else "image/png")
        if len(uri) > budget:
            left.append(name)
            continue
        budget -= len(uri)
        pictures.append(Picture(name, uri))
    return pictures, left
