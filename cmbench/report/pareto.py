"""Quality against cost: network evaluations, seconds an image, minutes of training; the best for their cost marked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmbench.errors import UsageError
from cmbench.records import Record, select
from cmbench.report import panels, published, style
from cmbench.report.aggregate import Measured, over_seeds
from cmbench.report.order import ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRIC = "fid"


@dataclass(frozen=True)
class Cost:
    """What a panel has along its axis: a title, and a row's cost, None where the records do not have it."""

    title: str
    of: Callable[[Measured], float | None]


@dataclass(frozen=True)
class Place:
    """A row in a panel."""

    cost: float
    quality: float
    group: str
    label: str
    nfe: float

    @property
    def text(self) -> str:
        """``CD, NFE 2``."""
        return f"{self.label}, NFE {self.nfe:.4g}"


def _mean_cost(row: Measured, name: str) -> float | None:
    values = [record.cost.get(name) for record in row.records]
    known = [float(value) for value in values if value]
    return fmean(known) if len(known) == len(values) else None


def _seconds_an_image(row: Measured) -> float | None:
    rates = [record.cost.get("images_per_second") for record in row.records]
    return fmean(1 / float(rate) for rate in rates if rate) if all(rates) else None


def _training_minutes(row: Measured) -> float | None:
    seconds = _mean_cost(row, "training_seconds")
    return None if seconds is None else seconds / 60


COSTS = {
    "nfe": Cost("network evaluations (NFE)", lambda row: row.nfe_counted),
    "seconds": Cost("milliseconds an image", lambda row: (cost := _seconds_an_image(row)) and 1e3 * cost),
    "training": Cost("minutes of training, teachers included", _training_minutes),
}


def front(places: Sequence[Place]) -> list[Place]:
    """The places that none beats: no other has less cost and at least its quality, or better quality at its cost.

    Ascending in cost; lower figures are better. Of equal places the first stays.
    """
    best: list[Place] = []
    for place in sorted(places, key=lambda place: (place.cost, place.quality)):
        if not best or place.quality < best[-1].quality:
            best.append(place)
    return best


def pareto(records: Sequence[Record], dataset: str, out: Path, *, name: str = "pareto") -> list[Path]:
    """FID against each of :data:`COSTS`, a mark a row: ``OUT/figures/<name>-<dataset>`` as PNG, PDF and SVG.

    Marks are means over seeds, in the colour and shape of the row's group. The line joins the rows of the Pareto
    front, which are named. Times are those of the machines that the records name, which a line below repeats. A
    protocol or number of samples has a line of panels of its own. Costs that no record has are left out.

    Raises:
        UsageError: no record of the data set has a FID.
    """
    rows = [row for row in over_seeds(select(records, dataset)) if _METRIC in row.metrics]
    rows = [row for row in rows if row.metrics[_METRIC].values]
    if not rows:
        raise UsageError(f"no FID measured on '{dataset}': `cmbench run --dataset {dataset}` measures it")
    key = ranking(published.load(1))
    groups = sorted({row.first.group for row in rows}, key=lambda group: key(group, "", 0))
    looks = {group: style.kind(place) for place, group in enumerate(groups)}
    alike = dict.fromkeys((row.title(_METRIC), row.conditions) for row in rows)
    kinds = [[row for row in rows if (row.title(_METRIC), row.conditions) == kind] for kind in alike]
    made = [(own, cost, _places(own, cost)) for own in kinds for cost in COSTS.values()]
    made = [(own, cost, places) for own, cost, places in made if places]
    columns = max(sum(own is kind for own, *_ in made) for kind in kinds)
    right = [panels.room([place.text for place in front(places)]) for *_, places in made]
    with style.look():
        from matplotlib.lines import Line2D

        machines = _machines(rows)
        foot = 0.5 if machines else 0.32
        figure, axes = panels.lay_out(len(made), columns, size=(2.3, 2.6), right=right, foot=foot)
        for ax, (own, cost, places) in zip(axes, made, strict=True):
            _draw(ax, own[0], cost, places, looks)
        handles = [Line2D([], [], **{**looks[group], "linestyle": "none"}) for group in groups]
        handles.append(Line2D([], [], color=style.INK, linewidth=0.8))
        texts = [*groups, "Pareto front, named"]
        height = float(figure.get_size_inches()[1])
        figure.legend(
            handles, texts, ncols=len(texts), loc="lower left", bbox_to_anchor=(0.01, (foot - 0.3) / height),
            borderaxespad=0, handlelength=1.6,
        )  # fmt: skip
        figure.text(0.012, 0.06 / height, machines, fontsize=6)
        return style.save(figure, out / "figures" / f"{name}-{dataset}")


def _places(rows: Sequence[Measured], cost: Cost) -> list[Place]:
    places = []
    for row in rows:
        value = cost.of(row)
        if value:
            quality = fmean(row.metrics[_METRIC].values)
            places.append(Place(value, quality, row.first.group, row.first.label, row.nfe_counted))
    return places


def _machines(rows: Sequence[Measured]) -> str:
    """What the times were measured on, as far as the records say."""
    names = sorted(
        {str(record.environment.get("device", "")) for row in rows for record in row.records} - {""}
    )
    return f"times measured on: {'; '.join(names)}" if names else ""


def _draw(
    ax: "Axes", row: Measured, cost: Cost, places: Sequence[Place], looks: dict[str, dict[str, Any]]
) -> None:
    best = front(places)
    for group, look in looks.items():
        own = [place for place in places if place.group == group]
        mark = {**look, "linestyle": "none"}
        for alpha, some in ((0.35, [p for p in own if p not in best]), (1.0, [p for p in own if p in best])):
            ax.plot([p.cost for p in some], [p.quality for p in some], **mark, alpha=alpha, zorder=2 + alpha)
    steps = [(place.cost, place.quality) for place in best]
    ax.plot(*zip(*steps, strict=True), color=style.INK, linewidth=0.8, zorder=2.5)
    style.log_axis(ax, "x", [place.cost for place in places])
    style.log_axis(ax, "y", [place.quality for place in places])
    protocol, _, count = row.conditions
    ax.set_title(f"{published.title(row.first.dataset)}: {protocol}, {count:,} samples", loc="left")
    ax.set_xlabel(cost.title)
    ax.set_ylabel(f"{row.title(_METRIC)} ↓")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    panels.name_lines(ax, [panels.Name(p.text, p.cost, p.quality, looks[p.group]) for p in best])
