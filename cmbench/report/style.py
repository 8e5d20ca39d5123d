"""One look for all figures: colours that colour-blind readers tell apart, markers that survive grey print."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench.paths import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which white paper swallows."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1.2), (5, 1.5, 1, 1.5), (7, 2), (3, 1, 1, 1, 1, 1))
INK = "#333333"
HOLLOW: dict[str, Any] = {
    "markerfacecolor": "none",
    "linestyle": "none",
    "markersize": 6.5,
    "markeredgewidth": 1.0,
}

FONT = "DejaVu Sans"  # ships with matplotlib: the same letters on every machine

_RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "legend.fontsize": 7.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "pdf.fonttype": 42,  # editable text
    "savefig.dpi": 300,
    "svg.hashsalt": "cmbench",
    "path.simplify": False,
}


def kind(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the ``place``-th line, for ``Axes.plot``.

    Markers move on by one each time the colours repeat, so that no two of the first 49 points look alike, and dashes
    repeat after another number of lines.
    """
    dashes = DASHES[place % len(DASHES)]
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        "linestyle": (0, dashes) if dashes else "solid",
        "markeredgecolor": COLOURS[place % len(COLOURS)],
    }


def log_axis(ax: "Axes", name: str, values: Sequence[float], *, every: bool = False) -> None:
    """A logarithmic axis with plain numbers, linear where a value is not positive.

    Args:
        ax: where it is.
        name: ``x`` or ``y``.
        values: what is drawn along it.
        every: put ticks at the values themselves, as far as there is room, rather than at round numbers.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if low <= 0:
        return
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    room = log(high / low) * (0.05 if high < 1000 else 0.1)
    ticks: list[float] = []
    for value in sorted(set(values)):
        if not ticks or log(value / ticks[-1]) > room:
            ticks.append(value)
    steps: tuple[float, ...] = (1, 2, 5)
    if high < 20 * low:
        steps = (1, 1.5, 2, 3, 5, 7)
    elif name == "x" and high > 200 * low:
        steps = (1,)
    wide = LogLocator(subs=steps) if high > 3 * low else MaxNLocator(5, steps=[1, 2, 5, 10])
    axis.set_major_locator(FixedLocator(ticks) if every else wide)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value % 1 == 0 else f"{value:.3g}")
    )


def shades(count: int) -> list[dict[str, Any]]:
    """Looks of ``count`` lines that have an order, dark to light as grey print shows it too, for ``Axes.plot``."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    places = [0.85 * place / max(count - 1, 1) for place in range(count)]
    colours = [to_hex(colormaps["viridis"](place)) for place in places]
    return [
        {**kind(place), "color": colour, "markeredgecolor": colour} for place, colour in enumerate(colours)
    ]


@contextmanager
def look() -> Iterator[None]:
    """Draw and save inside this block: the project's look over matplotlib's defaults, not the user's."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write ``stem`` as PNG, PDF and SVG without times or versions: the same figure gives the same bytes."""
    metadata = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    }
    paths = []
    for kind, entries in metadata.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        with atomic(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=entries)
        paths.append(path)
    return paths
