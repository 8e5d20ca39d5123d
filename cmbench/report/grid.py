"""Previews (a few samples of a run in one PNG) and the grid that lays those of many runs side by side.

A preview is ``OUT/previews/<record key>.png``: the samples of index 0, 1, ..., at most 64, left to right and
top to bottom, eight a row, without gaps. A tile has the size of the image, which is square; the picture is
always eight tiles wide, and places behind the last sample are black. Mode ``L`` for grey, else ``RGB``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmbench.errors import WorkError
from cmbench.paths import atomic
from cmbench.records import Record
from cmbench.report import published
from cmbench.report.order import ranking

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

PER_ROW = 8
MOST = 64
TALL = 24
"""A grid of more rows is cut into a block for each group of methods."""


def preview_path(previews: Path, record: Record) -> Path:
    """Where the preview of a record lies in the folder ``previews``."""
    return previews / f"{record.key}.png"


def write_preview(path: Path, images: "Images") -> None:
    """Write the first 64 images as a preview.

    Args:
        path: the file to write.
        images: uint8 [N, S, S] or [N, S, S, 1] (grey) or [N, S, S, 3] (RGB), sample i at index i, N ≥ 1.

    Raises:
        ValueError: another shape or type.
    """
    import numpy as np
    from PIL import Image

    tiles = images[:MOST]
    if tiles.ndim == 4 and tiles.shape[3] == 1:
        tiles = tiles[..., 0]
    grey_or_rgb = tiles.ndim == 3 or (tiles.ndim == 4 and tiles.shape[3] == 3)
    if not grey_or_rgb or tiles.dtype != np.uint8 or not len(tiles) or tiles.shape[1] != tiles.shape[2]:
        raise ValueError(
            f"a preview is made of square uint8 images [N, S, S, C], not {images.dtype} {images.shape}"
        )
    rows, size = -(-len(tiles) // PER_ROW), tiles.shape[1]
    empty = np.zeros((rows * PER_ROW - len(tiles), *tiles.shape[1:]), np.uint8)
    full = np.concatenate([tiles, empty]).reshape(rows, PER_ROW, *tiles.shape[1:])
    sheet = full.swapaxes(1, 2).reshape(rows * size, PER_ROW * size, *tiles.shape[3:])
    with atomic(path) as temporary:
        Image.fromarray(np.ascontiguousarray(sheet)).save(temporary, format="PNG")


def read_preview(path: Path, samples: int = MOST) -> "Images":
    """The images of a preview: uint8 [N, S, S] or [N, S, S, 3], N = min(samples, places in the preview).

    Args:
        path: the file.
        samples: how many samples the run has, which tells black images from empty places.

    Raises:
        WorkError: the file cannot be read or is not eight square tiles wide.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            sheet = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    except OSError as error:
        raise WorkError(f"{path} is not a readable preview: {error}") from error
    size, odd = divmod(sheet.shape[1], PER_ROW)
    if odd or not size or sheet.shape[0] % size:
        raise WorkError(
            f"{path} is no preview: {sheet.shape[1]} × {sheet.shape[0]} is not eight square tiles wide"
        )
    rows = sheet.shape[0] // size
    tiles = sheet.reshape(rows, size, PER_ROW, size, *sheet.shape[2:]).swapaxes(1, 2)
    return tiles.reshape(rows * PER_ROW, size, size, *sheet.shape[2:])[:samples]


def grid(records: Sequence[Record], previews: Path, *, columns: int = PER_ROW) -> "Figure":
    """One row a record (method and NFE at its left), one column a sample index; pixels stay sharp.

    For records of one seed a column shows what each method makes of one noise. Rows stand in the order of the
    tables; where they are more than :data:`TALL`, each group of methods is a block of its own, side by side, with
    half as many samples. A record without a preview keeps its row, which says so.

    Args:
        records: at least one, of one data set.
        previews: the folder of the previews.
        columns: samples 0 ... columns - 1 are shown, fewer where no preview has as many.

    Raises:
        WorkError: a preview is damaged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key = ranking(published.load(1))
    ordered = sorted(records, key=lambda record: (key(record.group, record.label, record.nfe), record.key))
    blocks = [ordered]
    if len(ordered) > TALL:
        groups = dict.fromkeys(record.group for record in ordered)
        blocks = [[record for record in ordered if record.group == group] for group in groups]
        columns = -(-columns // 2)
    paths = {record.key: preview_path(previews, record) for record in ordered}
    images = {
        record.key: read_preview(paths[record.key], record.samples)[:columns]
        for record in ordered
        if paths[record.key].exists()
    }
    count = max((len(own) for own in images.values()), default=columns)
    labels = {record.key: _label(record, ordered) for record in ordered}
    tile, top, edge = 0.6, 0.3, 0.05  # inches
    lefts = [
        0.3 + 0.065 * max(len(line) for record in block for line in labels[record.key].splitlines())
        for block in blocks
    ]
    width = sum(lefts) + len(blocks) * (count * tile + edge)
    height = top + max(map(len, blocks)) * tile + edge
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    x = 0.0
    for block, left in zip(blocks, lefts, strict=True):
        deep = len(block) * tile
        area = ((x + left) / width, 1 - (top + deep) / height, count * tile / width, deep / height)
        _draw(
            figure.add_axes(area), [(labels[record.key], images.get(record.key)) for record in block], count
        )
        x += left + count * tile + edge
    return figure


def _draw(ax: "Axes", rows: "Sequence[tuple[str, Images | None]]", count: int) -> None:
    ax.set_axis_off()
    for index in range(count):
        ax.text(index + 0.5, -0.08, str(index), ha="center", va="bottom", fontsize=7)
    ax.text(-0.12, -0.08, "sample", ha="right", va="bottom", fontsize=7)
    for row, (label, own) in enumerate(rows):
        ax.text(-0.12, row + 0.5, label, ha="right", va="center")
        if own is None:
            ax.text(0.1, row + 0.5, "no preview stored", va="center", style="italic")
            continue
        for index, image in enumerate(own):
            extent = (index + 0.03, index + 0.97, row + 0.97, row + 0.03)
            ax.imshow(
                image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto"
            )
    ax.set(xlim=(0, count), ylim=(len(rows), 0))


def _label(record: Record, shown: Sequence[Record]) -> str:
    twins = [other for other in shown if (other.label, other.nfe) == (record.label, record.nfe)]
    return f"{record.label}, NFE {record.nfe}" + (f"\n{record.key[:8]}" if len(twins) > 1 else "")
