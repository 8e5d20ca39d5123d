"""Axes of a size in inches, and the names of lines at their ends: what figures of curves share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cmbench.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = 7.0  # points of a name's letters
_LINE = 9.0  # points from a name to the next


@dataclass(frozen=True)
class Name:
    """What to write at the end of a line: its name, the last point in data coordinates, its look."""

    text: str
    x: float
    y: float
    look: Mapping[str, Any]


def room(texts: Sequence[str]) -> float:
    """Inches to the right of a panel of the usual width that names of lines take."""
    return 0.42 + max((width(text, _SIZE) for text in texts), default=0.0)


def width(text: str, size: float) -> float:
    """Inches of a text in letters of ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return (
        float(TextPath((0, 0), text, size=size, prop=FontProperties(family=style.FONT)).get_extents().width)
        / 72
    )


def lay_out(
    count: int,
    columns: int,
    *,
    size: tuple[float, float] = (2.3, 1.9),
    left: float = 0.55,
    right: Sequence[float] = (0.15,),
    top: float = 0.42,
    bottom: float = 0.45,
    foot: float = 0.0,
) -> "tuple[Figure, list[Axes]]":
    """A figure of ``count`` axes in rows of at most ``columns``; all lengths in inches.

    ``left``, ``top`` and ``bottom`` are free around each of the axes, ``right`` too, for each of them (the last value
    for all that follow), a column as much as its widest; ``foot`` is free below all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    margins = [right[min(place, len(right) - 1)] for place in range(count)]
    wide = [left + size[0] + max(margins[column::columns]) for column in range(columns)]
    high = top + size[1] + bottom
    figure = Figure(figsize=(sum(wide), rows * high + foot))
    FigureCanvasAgg(figure)
    whole_x, whole_y = figure.get_size_inches()
    made = []
    for place in range(count):
        row, column = divmod(place, columns)
        x, y = sum(wide[:column]) + left, foot + (rows - row) * high - top - size[1]
        made.append(figure.add_axes((x / whole_x, y / whole_y, size[0] / whole_x, size[1] / whole_y)))
    return figure, made


def name_lines(ax: "Axes", names: Sequence[Name]) -> None:
    """Write each line's name right of the panel, at the height of its last point or as near as there is room.

    A hairline leads from the point to the name, and the line's marker stands before it, so that a name is found
    without its colour. Call it when scales and limits are final.
    """
    from matplotlib.transforms import blended_transform_factory

    height = float(ax.get_window_extent().height) / ax.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [to_axes.transform((name.x, name.y)) for name in names]
    heights = spread([float(y) for _, y in ends], _LINE / height)
    across = blended_transform_factory(ax.transAxes, ax.transAxes)
    for name, (x, y), at in zip(names, ends, heights, strict=True):
        colour = name.look["color"]
        elbow = [max(float(x), 1.0) + 0.01, 1.045]
        ax.plot(
            [float(x), *elbow], [float(y), float(y) if x > 0.97 else at, at], transform=across, color=colour,
            linewidth=0.4, alpha=0.55, clip_on=False, zorder=1, scalex=False, scaley=False,
        )  # fmt: skip
        sign = {key: name.look[key] for key in ("marker", "markeredgecolor", "color")}
        ax.plot([1.07], [at], transform=across, clip_on=False, scalex=False, scaley=False, **sign)
        ax.annotate(
            name.text, (1.07, at), (5, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=_SIZE, color=style.INK, annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights as near to those wanted (least squares) as leaves ``gap`` between any two, in the same order.

    Heights that would leave [0, 1] are moved inside as a whole, as far as they fit.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[
        tuple[float, int]
    ] = []  # mean of (height - place · gap) and number of labels: isotonic regression
    for rank, place in enumerate(order):
        blocks.append((wanted[place] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    bases = [base for base, count in blocks for _ in range(count)]
    last = (len(wanted) - 1) * gap
    bases = [min(max(base, 0.0), max(1.0 - last, 0.0)) for base in bases]
    placed = [0.0] * len(wanted)
    for rank, place in enumerate(order):
        placed[place] = bases[rank] + rank * gap
    return placed
