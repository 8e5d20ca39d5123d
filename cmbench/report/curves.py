"""Figures of experiments: a figure of merit over training or over evaluations, a line an arm."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmbench.errors import UsageError
from cmbench.experiments import manifest
from cmbench.experiments.manifest import Arm, Manifest
from cmbench.records import Record
from cmbench.report import panels, published, style
from cmbench.report.aggregate import Measured, over_seeds
from cmbench.report.layout import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG = 4.0  # figures that reach over more than this ratio are drawn on a logarithmic axis
_DENSE = 14  # more points of a line than this have a marker at some of them only


PANELS = {"fig3": ("fig3a", "fig3b", "fig3c", "fig3d")}
"""Figures of several experiments. Any other figure is the experiment of its name."""


def measured(out: Path, name: str, dataset: str) -> tuple[list[Manifest], list[str]]:
    """The manifests of a figure's experiments on a data set, and the names of those that have not been run."""
    parts = PANELS.get(name, (name,))
    found = {part: manifest.read(out, part, dataset) for part in parts}
    return [made for made in found.values() if made], [part for part, made in found.items() if not made]


@dataclass(frozen=True)
class Curve:
    """An arm's line: at each ``x`` the figures of all seeds that have one, ``x`` ascending."""

    label: str
    x: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> list[float]:
        """Mean over seeds at each place."""
        return [fmean(own) for own in self.values]


def draw(manifests: Sequence[Manifest], out: Path, name: str) -> list[Path]:
    """One panel an experiment, in the order given: ``OUT/figures/<name>-<data set>`` as PNG, PDF and SVG.

    Lines are means over seeds, bands reach from the least to the greatest seed. The horizontal axis is training
    iterations, or the number of evaluations counted. An arm without a figure is named below, with the reason.

    Args:
        manifests: of one data set, at least one.
        out: the results folder, where the records lie.
        name: of the figure.

    Raises:
        UsageError: nothing is measured yet.
        WorkError: a record is missing or damaged.
    """
    found = [(made, [(arm, _curve(made, arm, out)) for arm in made.arms]) for made in manifests]
    drawn = [(made, arms) for made, arms in found if any(curve.x for _, curve in arms)]
    if not drawn:
        one = manifests[0]
        run = f"`cmbench experiment {one.name} --dataset {one.dataset}` measures it"
        raise UsageError(f"experiment '{one.name}' has no figure on '{one.dataset}' yet: {run}")
    right = [panels.room([curve.label for _, curve in arms if curve.x]) for _, arms in drawn]
    notes = [_missing(arms) for _, arms in drawn]
    with style.look():
        bottom = 0.45 + 0.13 * max(map(len, notes))
        figure, axes = panels.lay_out(len(drawn), 2, right=right, bottom=bottom)
        for place, (ax, (made, arms), note) in enumerate(zip(axes, drawn, notes, strict=True)):
            _panel(ax, made, arms, _first(made, out))
            letter = f"{_letter(made, place)} " if len(drawn) > 1 else ""
            where = published.title(made.dataset)
            ax.set_title(f"{letter}{made.title}\n{where}{_seeds(made)}", loc="left")
            for line, text in enumerate(note):
                ax.annotate(
                    text, (0, 0), (0, -34 - 9 * line), xycoords="axes fraction", textcoords="offset points",
                    fontsize=6, va="top", annotation_clip=False,
                )  # fmt: skip
        return style.save(figure, out / "figures" / f"{name}-{manifests[0].dataset}")


def _records(arm: Arm, out: Path) -> Iterator[tuple[int | None, Record]]:
    for point in arm.points:
        yield point.step, point.read(out)


def _first(made: Manifest, out: Path) -> Measured:
    """Any record of an experiment that has the figure of merit, for what all share."""
    for arm in made.arms:
        for _, record in _records(arm, out):
            if made.metric in record.metrics:
                return over_seeds([record])[0]
    raise ValueError(f"no record of {made.name} has {made.metric}")


def _curve(made: Manifest, arm: Arm, out: Path) -> Curve:
    """The arm's figures by place; a mean is over all records at one step and one NFE asked for."""
    places: dict[tuple[float, int], list[Record]] = {}
    for step, record in _records(arm, out):
        metric = record.metrics.get(made.metric)
        if metric is not None and metric.value is not None:
            places.setdefault((step or 0, record.nfe), []).append(record)
    along: dict[float, list[float]] = {}
    for (after, _), own in places.items():
        x = after if made.x == "step" else fmean(record.nfe_counted for record in own)
        along.setdefault(x, []).extend(float(record.metrics[made.metric].value or 0.0) for record in own)
    ordered = sorted(along)
    return Curve(arm.label, tuple(ordered), tuple(tuple(along[x]) for x in ordered))


def _letter(made: Manifest, place: int) -> str:
    """The panel's letter in the paper, else the one of its place."""
    letter = re.search(r"\([a-z]\)", made.paper)
    return letter[0] if letter else f"({chr(ord('a') + place)})"


def _missing(arms: Sequence[tuple[Arm, Curve]]) -> list[str]:
    lines = []
    for arm, curve in arms:
        if not curve.x:
            reason = arm.failures[0] if arm.failures else "not measured yet"
            lines.append(f"{arm.label}: {reason}"[:90])
    return lines


def _seeds(made: Manifest) -> str:
    counts = {len({point.seed for point in arm.points}) for arm in made.arms if arm.points}
    if counts == {1}:
        return ", one seed"
    return f", {counts.pop()} seeds" if len(counts) == 1 else f", {min(counts)} to {max(counts)} seeds"


def _panel(ax: "Axes", made: Manifest, arms: Sequence[tuple[Arm, Curve]], first: Measured) -> None:
    looks = arm_looks([arm for arm, _ in arms])
    scale = 1.0
    if made.x == "step":
        scale = 1e3 if max(x for _, curve in arms for x in curve.x) >= 2000 else 1.0
    names = []
    for (_, curve), look in zip(arms, looks, strict=True):
        if not curve.x:
            continue
        x = [place / scale for place in curve.x]
        low, high = [min(own) for own in curve.values], [max(own) for own in curve.values]
        ax.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0)
        ax.plot(x, curve.mean, **look, markevery=-(-len(x) // _DENSE), zorder=3)
        names.append(panels.Name(curve.label, x[-1], curve.mean[-1], look))
    values = [value for _, curve in arms for own in curve.values for value in own]
    if min(values) > 0 and max(values) > _LOG * min(values):
        style.log_axis(ax, "y", values)
    asked = {point.nfe for arm, _ in arms for point in arm.points}
    if made.x == "nfe":
        style.log_axis(ax, "x", [x for _, curve in arms for x in curve.x], every=True)
        ax.set_xlabel("network evaluations (NFE)")
    else:
        ax.set_xlabel("training iterations" + (" (thousands)" if scale > 1 else ""))
    of = f" at NFE {asked.pop()}" if made.x == "step" and len(asked) == 1 else ""
    better = METRICS[made.metric].better if made.metric in METRICS else None
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}[better]
    ax.set_ylabel(f"{first.title(made.metric)}{of}{arrow}")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    panels.name_lines(ax, names)


def arm_looks(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A look for each arm, by what its settings vary.

    One number that differs between at least four arms: shades in its order. A word and a number: a colour and
    dashes for each word, a marker for each number. Anything else: colours, markers and dashes in turn.
    """
    flat = [dict(_flatten(arm.settings)) for arm in arms]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    varying = [key for key in keys if len({str(settings.get(key)) for settings in flat}) > 1]
    numeric = [key for key in varying if all(_is_number(settings.get(key)) for settings in flat)]
    worded = [key for key in varying if all(isinstance(settings.get(key), str) for settings in flat)]
    if len(varying) == 1 and numeric and len(arms) > 3:
        values = [settings[numeric[0]] for settings in flat]
        ranks = [sorted(values).index(value) for value in values]
        shades = style.shades(len(arms))
        return [shades[rank] for rank in ranks]
    if len(varying) == 2 and numeric and worded:
        words = list(dict.fromkeys(settings[worded[0]] for settings in flat))
        numbers = sorted({settings[numeric[0]] for settings in flat})
        looks = []
        for settings in flat:
            look = style.kind(words.index(settings[worded[0]]))
            marker = style.MARKERS[numbers.index(settings[numeric[0]]) % len(style.MARKERS)]
            looks.append({**look, "marker": marker})
        return looks
    return [style.kind(place) for place in range(len(arms))]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
