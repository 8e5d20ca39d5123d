"""Figures: quality against the number of network evaluations, and samples side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmbench.errors import UsageError
from cmbench.records import Record, select
from cmbench.report import panels, published, style
from cmbench.report.aggregate import Curve, Measured, curves_of, over_seeds
from cmbench.report.grid import grid, preview_path
from cmbench.report.layout import METRICS
from cmbench.report.order import ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRIC = "fid"


MOST_LINES = len(style.COLOURS)
"""A panel with more lines than there are colours is drawn as one panel for each group of methods."""


@dataclass(frozen=True)
class _Panel:
    """The lines that share one pair of axes; ``group`` is None where they are all that was measured so."""

    metric_title: str
    conditions: tuple[str, str, int]
    group: str | None
    lines: Mapping[Curve, Sequence[Measured]]


def nfe(records: Sequence[Record], dataset: str, out: Path, *, name: str = "nfe") -> list[Path]:
    """FID against NFE, a line a method, on logarithmic axes: ``OUT/figures/<name>-<dataset>`` as PNG, PDF, SVG.

    Points are means over seeds at the counted NFE; bands and bars reach from the least to the greatest seed.
    Each protocol and number of samples has a panel of its own, or where that would hold more lines than there are
    colours one for each group of methods, with one scale of FID. The paper's figures for the methods shown are hollow
    markers, only in panels of the Inception FID that they are.

    Raises:
        UsageError: no record of the data set has a FID.
    """
    rows = [row for row in over_seeds(select(records, dataset)) if _METRIC in row.metrics]
    rows = [row for row in rows if row.metrics[_METRIC].values]
    if not rows:
        raise UsageError(f"no FID measured on '{dataset}': `cmbench run --dataset {dataset}` measures it")
    paper = published.for_dataset(dataset)
    key = ranking(published.load(1))
    drawn = _panels(rows, key)
    whole = {line for panel in drawn if not panel.group for line in panel.lines}
    everywhere = sorted(whole, key=lambda line: (key(line.group, line.label, 0), line.told))
    right = [panels.room([line.name for line in panel.lines]) for panel in drawn]
    names = []
    with style.look():
        grouped = any(panel.group for panel in drawn)
        top, size = (0.55, (2.3, 3.0)) if grouped else (0.45, (2.6, 2.2))
        figure, axes = panels.lay_out(len(drawn), 3, size=size, top=top, right=right)
        for ax, panel in zip(axes, drawn, strict=True):
            looks = panel.lines if panel.group else everywhere  # a method looks alike under all protocols
            kinds = {line: style.kind(place) for place, line in enumerate(looks)}
            inception = panel.metric_title == METRICS[_METRIC].title
            names.append(_draw(ax, panel, kinds, paper if inception else []))
        _same_scale([ax for ax, panel in zip(axes, drawn, strict=True) if panel.group])
        for ax, own in zip(axes, names, strict=True):
            panels.name_lines(ax, own)
        return style.save(figure, out / "figures" / f"{name}-{dataset}")


def _panels(rows: Sequence[Measured], key: Callable[[str, str, float], Any]) -> list[_Panel]:
    found_panels = []
    for title, conditions in dict.fromkeys((row.title(_METRIC), row.conditions) for row in rows):
        found = _lines([row for row in rows if (row.title(_METRIC), row.conditions) == (title, conditions)])
        ordered = sorted(found, key=lambda line: (key(line.group, line.label, 0), line.told))
        many = len(ordered) > MOST_LINES
        for group in dict.fromkeys(line.group for line in ordered) if many else [None]:
            own = {line: found[line] for line in ordered if group in (None, line.group)}
            found_panels.append(_Panel(title, conditions, group, own))
    return found_panels


def _same_scale(axes: Sequence["Axes"]) -> None:
    """Panels of groups are read against each other: one scale of quality for all of them."""
    limits = [limit for ax in axes for limit in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))
        style.log_axis(ax, "y", limits)


def samples(
    records: Sequence[Record], dataset: str, seed: int, previews: Path, out: Path, *, name: str = "samples"
) -> list[Path]:
    """Samples of every method and NFE side by side: ``OUT/figures/<name>-<dataset>`` as PNG, PDF and SVG.

    Args:
        records: of any data sets and seeds.
        dataset: the data set to show.
        seed: the seed to show; a column is one sample index, so one noise through all methods.
        previews: the folder of ``<record key>.png``, see :mod:`cmbench.report.grid`.
        out: the results folder.
        name: of the files, before the data set.

    Raises:
        UsageError: no preview is stored for this data set and seed.
        WorkError: a preview is damaged.
    """
    own = [record for record in select(records, dataset) if record.seed == seed]
    if not any(preview_path(previews, record).exists() for record in own):
        run = f"`cmbench run --dataset {dataset} --seed {seed}` stores them"
        raise UsageError(f"no samples of '{dataset}' with seed {seed} under {previews}: {run}")
    with style.look():
        return style.save(grid(own, previews), out / "figures" / f"{name}-{dataset}")


def _lines(rows: Sequence[Measured]) -> dict[Curve, list[Measured]]:
    """One panel's rows as lines of ascending NFE."""
    ordered = sorted(rows, key=lambda row: row.nfe_counted)
    lines: dict[Curve, list[Measured]] = {}
    for curve, row in zip(curves_of(ordered), ordered, strict=True):
        lines.setdefault(curve, []).append(row)
    return lines


def _draw(
    ax: "Axes",
    panel: _Panel,
    kinds: Mapping[Curve, Mapping[str, Any]],
    paper: Sequence[published.PublishedRow],
) -> list[panels.Name]:
    """Draw one panel; what to write at the ends of its lines."""
    x_all: list[float] = []
    y_all: list[float] = []
    hollow: set[str] = set()
    names: list[panels.Name] = []
    for line, rows in panel.lines.items():
        summaries = [row.metrics[_METRIC] for row in rows]
        x = [row.nfe_counted for row in rows]
        low = [min(summary.values) for summary in summaries]
        high = [max(summary.values) for summary in summaries]
        colour = kinds[line]["color"]
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.vlines(x, low, high, color=colour, linewidth=0.9)
        ax.plot(x, [fmean(summary.values) for summary in summaries], **kinds[line], zorder=3)
        printed = [
            (row.nfe, value) for row in paper if row.method == line.label and (value := row.value(_METRIC))
        ]
        if printed and line.label not in hollow:
            hollow.add(line.label)
            ax.plot(*zip(*printed, strict=True), **{**kinds[line], **style.HOLLOW}, zorder=4)
        names.append(panels.Name(line.name, x[-1], fmean(summaries[-1].values), kinds[line]))
        x_all += [*x, *(nfe for nfe, _ in printed)]
        y_all += [*low, *high, *(value for _, value in printed)]
    protocol, _, count = panel.conditions
    row = next(iter(panel.lines.values()))[0]
    lines = [panel.group] if panel.group else []
    lines += [f"{published.title(row.first.dataset)}: {protocol}, {count:,} samples"]
    lines += ["hollow: published"] if hollow else []
    ax.set_title("\n".join(lines), loc="left")
    ax.set_xlabel("network evaluations (NFE)")
    ax.set_ylabel(f"{panel.metric_title} ↓")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    style.log_axis(ax, "x", x_all, every=True)
    style.log_axis(ax, "y", y_all)
    return names
