"""Figures of editing, from what `cmbench edit measure` has stored: panels of images, quality against evaluations."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from cmbench.editing import records
from cmbench.editing.records import (
    BASELINE,
    CONSISTENCY,
    DIFFUSION,
    METRICS,
    QUALITY,
    TRUTH,
    Cell,
    Editing,
    Row,
    over_seeds,
)
from cmbench.errors import UsageError
from cmbench.report import style
from cmbench.report.grid import read_preview

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

SHOWN = 17  # evaluations of the results in the panels, where they were measured


def panels(made: Editing, out: Path, *, nfe: int | None = None, rows: int = 4) -> list[Path]:
    """A panel a task: each row one image, from left to right the input, the results and the original.

    ``OUT/figures/editing-<data set>``, as the paper's figure of zero-shot editing. Results are those of the first seed.

    Args:
        made: the results.
        out: the results folder.
        nfe: evaluations of the results shown; without, 17, or the nearest number that a method has.
        rows: images in a panel, at most 8.

    Raises:
        UsageError: nothing was measured with this number of evaluations.
        WorkError: a picture is missing or damaged.
    """
    folder = out / records.FOLDER
    drawn = []
    for task in made.tasks:
        cells = _chosen(made.of(task.name), nfe)
        strips = [
            ("input", read_preview(folder / task.input)),
            *((_heading(cell), read_preview(folder / cell.picture)) for cell in cells),
            ("original", read_preview(folder / task.truth)),
        ]
        drawn.append((task.title, task.setting, strips))
    if not any(len(strips) > 2 for _, _, strips in drawn):
        raise UsageError(f"no editing of '{made.dataset}' was measured" + (f" with NFE {nfe}" if nfe else ""))
    rows = min(rows, made.images)
    tile, gap, top, edge = 0.62, 0.3, 0.78, 0.08  # inches
    across = min(len(drawn), 2 if max(len(strips) for *_, strips in drawn) > 4 else 3)
    deep = -(-len(drawn) // across)
    columns = max(len(strips) for *_, strips in drawn)
    wide, tall = columns * tile, rows * tile
    width = 2 * edge + across * wide + (across - 1) * gap
    height = edge + deep * (tall + top)
    with style.look():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        for place, (title, setting, strips) in enumerate(drawn):
            line, column = divmod(place, across)
            left, above = edge + column * (wide + gap), line * (tall + top) + top
            area = (left / width, 1 - (above + tall) / height, len(strips) * tile / width, tall / height)
            _panel(figure.add_axes(area), f"({chr(97 + place)}) {title}: {setting}", strips, rows)
        return style.save(figure, out / "figures" / f"editing-{made.dataset}")


def _chosen(cells: Sequence[Cell], nfe: int | None) -> list[Cell]:
    """One cell of each method with a network: of the first seed, at the number of evaluations to be shown."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.kind in (CONSISTENCY, DIFFUSION):
            found.setdefault((cell.kind, cell.method), []).append(cell)
    chosen = []
    for own in found.values():
        first = min(cell.seed for cell in own)
        of_seed = [cell for cell in own if cell.seed == first and nfe in (None, cell.nfe)]
        if of_seed:
            chosen.append(min(of_seed, key=lambda cell: (abs(cell.nfe - (nfe or SHOWN)), cell.nfe)))
    return chosen


def _heading(cell: Cell) -> str:
    name = cell.label.removeprefix("EDM, ").removesuffix(" steps")
    return f"{name}\nNFE {cell.evaluations:g}"


def _panel(ax: "Axes", title: str, strips: "Sequence[tuple[str, Images]]", rows: int) -> None:
    ax.set_axis_off()
    ax.text(0.02, -0.62, title, ha="left", va="bottom")
    for column, (heading, images) in enumerate(strips):
        ax.text(column + 0.5, -0.06, heading, ha="center", va="bottom", fontsize=6.5)
        for row, image in enumerate(images[:rows]):
            extent = (column + 0.03, column + 0.97, row + 0.97, row + 0.03)
            ax.imshow(
                image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto"
            )
    ax.set(xlim=(0, len(strips)), ylim=(rows, 0))


def quality(made: Editing, out: Path) -> list[Path]:
    """The figures of merit against counted evaluations: ``OUT/figures/editing-nfe-<data set>``.

    A column a task, a row a metric. Points are means over seeds, bands reach from the least to the greatest; the grey
    line is the best of what is there without a network, and a second one, of the Fréchet distance, the originals' own.
    """
    metrics = [name for name in QUALITY if any(name in cell.metrics for cell in made.cells)]
    kinds = _kinds(made)
    with style.look():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        figure = Figure(
            figsize=(2.1 * len(made.tasks) + 0.4, 1.65 * len(metrics) + 0.75), layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(metrics), len(made.tasks), squeeze=False, sharex=True)
        for column, task in enumerate(made.tasks):
            rows = list(over_seeds(made.of(task.name)))
            axes[0, column].set_title(task.title, loc="left")
            axes[-1, column].set_xlabel("network evaluations")
            for line, metric in enumerate(metrics):
                _lines(axes[line, column], rows, metric, kinds)
        for line, metric in enumerate(metrics):
            title, arrow = METRICS[metric]
            axes[line, 0].set_ylabel(f"{made.titles.get(metric, title)} {arrow}")
        handles = [Line2D([], [], **style.kind(place)) for place in kinds.values()]
        handles.append(Line2D([], [], color=_GREY, linewidth=0.9, linestyle=(0, (2, 2))))
        labels = [label for _, label in kinds]
        figure.legend(handles, [*labels, "without a network"], loc="outside lower center", ncols=5)
        return style.save(figure, out / "figures" / f"editing-nfe-{made.dataset}")


_GREY = "#888888"


def _kinds(made: Editing) -> dict[tuple[str, str], int]:
    """(method, label) of each line -> its look."""
    found = dict.fromkeys(
        (cell.method, cell.label) for cell in made.cells if cell.kind in (CONSISTENCY, DIFFUSION)
    )
    return {line: place for place, line in enumerate(found)}


def _lines(ax: "Axes", rows: Sequence[Row], metric: str, kinds: dict[tuple[str, str], int]) -> None:
    x_all: list[float] = []
    for (method, label), place in kinds.items():
        own = [row for row in rows if (row.first.method, row.first.label) == (method, label)]
        own = sorted((row for row in own if row.values(metric)), key=lambda row: row.first.evaluations)
        if not own:
            continue
        x = [row.first.evaluations for row in own]
        values = [row.values(metric) for row in own]
        look = style.kind(place)
        low, high = [min(each) for each in values], [max(each) for each in values]
        ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
        ax.plot(x, [fmean(each) for each in values], **{**look, "markersize": 3.2, "linewidth": 1.0})
        x_all += x
    still = [row for row in rows if row.first.kind in (BASELINE, TRUTH) and row.values(metric)]
    without = [row for row in still if row.first.kind == BASELINE]
    if without:  # the best of them
        sign = -1 if METRICS[metric][1] == "↑" else 1
        best = min(without, key=lambda row: sign * fmean(row.values(metric)))
        for row in [best, *(row for row in still if row.first.kind == TRUTH)]:
            value = fmean(row.values(metric))
            ax.axhline(value, color=_GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
            text = "originals" if row.first.kind == TRUTH else row.first.label
            ax.annotate(
                text, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                fontsize=5.5, color=_GREY,
            )  # fmt: skip
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    if x_all:
        style.log_axis(ax, "x", x_all, every=True)
    if metric == "frechet":
        ax.set_yscale("log")
