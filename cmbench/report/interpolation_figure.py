"""The figure of interpolation strips, from what `cmbench edit interpolate` has stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmbench.editing.strips import Strip, read_images
from cmbench.errors import UsageError
from cmbench.report import published, style
from cmbench.report.aggregate import described, telling
from cmbench.report.order import ranking

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

TILE, TOP, EDGE = 0.6, 0.5, 0.05  # inches; TOP is the room above each block


def draw(strips: Sequence[Strip], dataset: str, out: Path, *, name: str = "interpolation") -> list[Path]:
    """A block for each pair of samples, a row a method and NFE: ``OUT/figures/<name>-<dataset>`` as PNG, PDF and SVG.

    All rows of a block go through the same noise, from the first sample to the second.

    Args:
        strips: of any data sets.
        dataset: the data set to show.
        out: the results folder, which holds their pictures.
        name: of the files, before the data set.

    Raises:
        UsageError: there is no strip of this data set.
        WorkError: a picture is missing or damaged.
    """
    blocks = _blocks([strip for strip in strips if strip.dataset == dataset])
    if not blocks:
        run = f"`cmbench edit interpolate --dataset {dataset} --out {out}` makes them"
        raise UsageError(f"no such interpolation strips of '{dataset}' under {out}: {run}")
    lines = [line for block in blocks for label in block for line in label.splitlines()]
    left = 0.3 + 0.065 * max(map(len, lines))
    firsts = [next(iter(block.values())) for block in blocks]
    width = left + max(first.steps for first in firsts) * TILE + EDGE
    height = sum(TOP + len(block) * TILE for block in blocks) + EDGE
    with style.look():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        y = height
        for block, first in zip(blocks, firsts, strict=True):
            across, deep = first.steps * TILE, len(block) * TILE
            y -= TOP + deep
            ax = figure.add_axes((left / width, y / height, across / width, deep / height))
            _draw(ax, first, [(label, read_images(out, strip)) for label, strip in block.items()])
        return style.save(figure, out / "figures" / f"{name}-{dataset}")


def _blocks(strips: Sequence[Strip]) -> list[dict[str, Strip]]:
    """Strips between the same samples, in as many steps, together: what to call them, in the order of the tables."""
    key = ranking(published.load(1))
    found: dict[tuple[int, tuple[int, int], int], list[Strip]] = {}
    for strip in strips:
        found.setdefault((strip.seed, strip.between, strip.steps), []).append(strip)
    blocks = []
    for _, own in sorted(found.items()):
        names = zip(_names(own), own, strict=True)
        blocks.append(
            dict(
                sorted(names, key=lambda named: (key(named[1].group, named[1].label, named[1].nfe), named[0]))
            )
        )
    return blocks


def _names(block: Sequence[Strip]) -> list[str]:
    """Method and NFE; where that is not enough, a second line with what differs."""
    twins: dict[tuple[str, int], list[Strip]] = {}
    for strip in block:
        twins.setdefault((strip.label, strip.nfe), []).append(strip)
    differ: dict[str, set[str]] = {}
    for (label, _), alike in twins.items():
        differ.setdefault(label, set()).update(telling(alike))
    told = [described(strip, sorted(differ[strip.label])) for strip in block]
    return [
        "\n".join(filter(None, (f"{strip.label}, NFE {strip.evaluations:g}", what)))
        for strip, what in zip(block, told, strict=True)
    ]


def _draw(ax: "Axes", first: Strip, rows: "Sequence[tuple[str, Images]]") -> None:
    ax.set_axis_off()
    (start, end), steps = first.between, first.steps
    ax.text(0.03, -0.32, f"seed {first.seed}, from sample {start} to sample {end}", ha="left", va="bottom")
    for place in range(steps):
        ax.text(place + 0.5, -0.08, f"{place / (steps - 1):.2g}", ha="center", va="bottom", fontsize=7)
    for row, (label, images) in enumerate(rows):
        ax.text(-0.12, row + 0.5, label, ha="right", va="center")
        for place, image in enumerate(images):
            extent = (place + 0.03, place + 0.97, row + 0.97, row + 0.03)
            ax.imshow(
                image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto"
            )
    ax.set(xlim=(0, steps), ylim=(len(rows), 0))
