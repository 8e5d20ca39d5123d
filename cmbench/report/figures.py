"""Figures: quality against the number of network evaluations, and samples side by side."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmbench.errors import UsageError
from cmbench.records import Record, select
from cmbench.report import published, style
from cmbench.report.aggregate import Measured, described, over_seeds, telling
from cmbench.report.grid import grid, preview_path
from cmbench.report.layout import METRICS
from cmbench.report.order import ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRIC = "fid"


Line = tuple[str, str, str]
"""Group, method, and what tells it from others of its name."""


def nfe(records: Sequence[Record], dataset: str, out: Path) -> list[Path]:
    """FID against NFE, a line a method, on logarithmic axes: ``OUT/figures/nfe-<dataset>.png`` and ``.pdf``.

    Points are means over seeds at the counted NFE; bands and bars reach from the least to the greatest seed.
    Each protocol and number of samples has a panel of its own. The paper's figures for the methods shown are
    hollow markers, only in panels of the Inception FID that they are.

    Raises:
        UsageError: no record of the data set has a FID.
    """
    rows = [row for row in over_seeds(select(records, dataset)) if _METRIC in row.metrics]
    rows = [row for row in rows if row.metrics[_METRIC].values]
    if not rows:
        raise UsageError(f"no FID measured on '{dataset}': `cmbench run --dataset {dataset}` measures it")
    paper = published.for_dataset(dataset)
    key = ranking(published.load(1))
    panels: dict[tuple[str, object], dict[Line, list[Measured]]] = {}
    for row in rows:
        panels.setdefault((row.title(_METRIC), row.conditions), {})
    for panel in panels:
        panels[panel] = _lines([row for row in rows if (row.title(_METRIC), row.conditions) == panel])
    lines = sorted(set(chain(*panels.values())), key=lambda line: (key(line[0], line[1], 0), line[2]))
    kinds = {line: style.kind(place) for place, line in enumerate(lines)}
    with style.look():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        figure = Figure(figsize=(3.3 * len(panels) + 1.3, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        hollow = False
        for ax, ((title, _), own) in zip(axes, panels.items(), strict=True):
            shown = paper if title == METRICS[_METRIC].title else []
            hollow |= _panel(ax, own, kinds, shown)
        handles = [Line2D([], [], **kinds[line]) for line in lines]
        texts = [", ".join(part for part in line[1:] if part) for line in lines]
        if hollow:
            handles.append(Line2D([], [], color=style.INK, marker="o", **style.HOLLOW))
            texts.append("published")
        figure.legend(handles, texts, loc="outside right center")
        return style.save(figure, out / "figures" / f"nfe-{dataset}")


def samples(records: Sequence[Record], dataset: str, seed: int, previews: Path, out: Path) -> list[Path]:
    """Samples of every method and NFE side by side: ``OUT/figures/samples-<dataset>.png`` and ``.pdf``.

    Args:
        records: of any data sets and seeds.
        dataset: the data set to show.
        seed: the seed to show; a column is one sample index, so one noise through all methods.
        previews: the folder of ``<record key>.png``, see :mod:`cmbench.report.grid`.
        out: the results folder.

    Raises:
        UsageError: no preview is stored for this data set and seed.
        WorkError: a preview is damaged.
    """
    own = [record for record in select(records, dataset) if record.seed == seed]
    if not any(preview_path(previews, record).exists() for record in own):
        run = f"`cmbench run --dataset {dataset} --seed {seed}` stores them"
        raise UsageError(f"no samples of '{dataset}' with seed {seed} under {previews}: {run}")
    with style.look():
        return style.save(grid(own, previews), out / "figures" / f"samples-{dataset}")


def _lines(rows: Sequence[Measured]) -> dict[Line, list[Measured]]:
    """One panel's rows as lines of ascending NFE; a method that stands twice at one NFE is several lines."""
    methods: dict[tuple[str, str, str], list[Measured]] = {}
    for row in rows:
        methods.setdefault((row.first.group, row.first.label, row.guidance), []).append(row)
    lines: dict[Line, list[Measured]] = {}
    for (group, label, guidance), own in methods.items():
        counts = {row.nfe_counted for row in own}
        names = {name for count in counts for name in telling([r for r in own if r.nfe_counted == count])}
        for row in sorted(own, key=lambda row: row.nfe_counted):
            told = ", ".join(part for part in (guidance, described(row, sorted(names))) if part)
            lines.setdefault((group, label, told), []).append(row)
    return lines


def _panel(
    ax: "Axes",
    lines: Mapping[Line, Sequence[Measured]],
    kinds: Mapping[Line, Mapping[str, Any]],
    paper: Sequence[published.PublishedRow],
) -> bool:
    """Draw one panel; True where published figures are in it."""
    x_all: list[float] = []
    y_all: list[float] = []
    hollow: set[str] = set()
    for line, rows in lines.items():
        summaries = [row.metrics[_METRIC] for row in rows]
        x = [row.nfe_counted for row in rows]
        low = [min(summary.values) for summary in summaries]
        high = [max(summary.values) for summary in summaries]
        colour = kinds[line]["color"]
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.vlines(x, low, high, color=colour, linewidth=0.9)
        ax.plot(x, [fmean(summary.values) for summary in summaries], **kinds[line], zorder=3)
        printed = [
            (row.nfe, value) for row in paper if row.method == line[1] and (value := row.value(_METRIC))
        ]
        if printed and line[1] not in hollow:
            hollow.add(line[1])
            ax.plot(*zip(*printed, strict=True), **{**kinds[line], **style.HOLLOW}, zorder=4)
        x_all += [*x, *(nfe for nfe, _ in printed)]
        y_all += [*low, *high, *(value for _, value in printed)]
    row = next(iter(lines.values()))[0]
    protocol, _, count = row.conditions
    ax.set_title(f"{published.title(row.first.dataset)}: {protocol}, {count:,} samples", loc="left")
    ax.set_xlabel("network evaluations (NFE)")
    ax.set_ylabel(f"{row.title(_METRIC)} ↓")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    style.log_axis(ax, "x", x_all, every=True)
    style.log_axis(ax, "y", y_all)
    return bool(hollow)
