"""Records of several seeds -> one row each, with mean and standard deviation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Protocol

from cmbench.records import Metric, Record, fingerprint
from cmbench.report.layout import METRICS


@dataclass(frozen=True)
class Summary:
    """One metric over seeds.

    ``values`` holds the figures of the seeds that have one; ``reasons`` why the others have none; ``own`` is the
    standard deviation that the metric itself gives, where there is one seed.
    """

    values: tuple[float, ...]
    reasons: tuple[str, ...]
    own: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that have a figure."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds, ddof 1; None with fewer than two figures."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Measured:
    """Records that differ in their seed alone."""

    records: tuple[Record, ...]
    metrics: Mapping[str, Summary]

    @property
    def first(self) -> Record:
        """The record of the lowest seed, for everything that the records share."""
        return self.records[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(record.seed for record in self.records)

    @property
    def nfe_counted(self) -> float:
        """Network forwards a sample, mean over seeds."""
        return fmean(record.nfe_counted for record in self.records)

    @property
    def conditions(self) -> tuple[str, str, int]:
        """Protocol, its fingerprint, and the number of samples: rows compare where all three agree."""
        return self.first.protocol, self.first.protocol_fingerprint, self.first.samples

    @property
    def guidance(self) -> str:
        """``guidance w = 1.5``, empty for unguided samples: never one line or row with them."""
        values = self.first.identity.get("guidance")
        if not isinstance(values, Mapping):
            return ""
        low, high = values.get("interval", (None, None))
        where = "" if low is None else f" for {low:g} < σ ≤ {high:g}"
        return f"guidance w = {values['weight']:g}{where}"

    @property
    def tuned(self) -> str:
        """``re-noising levels tuned by fid``, empty where they are the recipe's."""
        values = self.first.identity.get("tuned")
        if not isinstance(values, Mapping):
            return ""
        return f"re-noising levels tuned by {self.title(str(values['metric']))}"

    def title(self, metric: str) -> str:
        """The metric's column title: the protocol's ``metric_titles``, else the default, else its name."""
        protocol = self.first.identity.get("protocol")
        titles = protocol.get("metric_titles") if isinstance(protocol, Mapping) else None
        default = METRICS[metric].title if metric in METRICS else metric
        return str(titles.get(metric, default)) if isinstance(titles, Mapping) else default


class Identified(Protocol):
    """A record, or anything else that says what determined it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Entries, which may have entries."""
        ...


BY_SEED = {"seed", "checkpoint", "content", "taus"}
"""Entries of an identity that differ between runs of different seeds."""


def over_seeds(records: Iterable[Record]) -> list[Measured]:
    """Gather the records whose identity differs in nothing but the seed.

    That is its entries ``seed``, ``checkpoint`` (trained with that seed; how it was trained stands in ``training``),
    ``content`` (of samples made elsewhere) and ``taus`` (tuned for each checkpoint; how stands in ``tuned``). Anything
    else that differs (recipe, protocol, samples) makes another row, so that a mean is never taken over unlike runs; so
    do two records of one seed.
    """
    found: dict[Any, list[Record]] = {}
    for record in records:
        shared = fingerprint({key: value for key, value in record.identity.items() if key not in BY_SEED})
        key = (record.dataset, record.method, record.label, record.group, record.nfe, record.samples)
        found.setdefault((*key, record.protocol_fingerprint, shared), []).append(record)
    rows: list[Measured] = []
    for group in found.values():
        ordered = sorted(group, key=lambda record: record.seed)
        once = len({record.seed for record in group}) == len(group)
        rows += [_measured(ordered)] if once else [_measured([record]) for record in ordered]
    return rows


def _measured(records: Sequence[Record]) -> Measured:
    figures: dict[str, list[Metric]] = {}
    for record in records:
        for name, metric in record.metrics.items():
            figures.setdefault(name, []).append(metric)
    return Measured(
        tuple(records),
        {
            name: Summary(
                tuple(metric.value for metric in metrics if metric.value is not None),
                tuple(metric.reason for metric in metrics if metric.reason is not None),
                metrics[0].std if len(metrics) == 1 else None,
            )
            for name, metrics in figures.items()
        },
    )


def telling(records: Sequence[Identified], said: Collection[str] = ()) -> list[str]:
    """For records that would print alike, the entries of the identity that differ between them, at most three.

    Entries of entries are named with dots: ``recipe.steps``. The hash of the training is named only where nothing that
    a reader can tell differs; what is ``said`` anyway is not named at all.
    """
    flat = [_flatten(record.identity) for record in records]
    found = {name for entries in flat for name in entries} - set(said)
    names = sorted(found, key=lambda name: (name in BY_SEED, name))
    differ = [name for name in names if len({entries.get(name) for entries in flat}) > 1]
    told = [name for name in differ if name not in BY_SEED]
    return [name for name in told if name != "training"][:3] or told[:3] or differ[:3]


@dataclass(frozen=True)
class Curve:
    """What a row is a point of, over NFE; ``told`` is what tells it from other curves of its label, or empty."""

    group: str
    label: str
    told: str = ""

    @property
    def name(self) -> str:
        """``CD, metric l1``."""
        return f"{self.label}, {self.told}" if self.told else self.label


def curves_of(rows: Sequence[Measured]) -> list[Curve]:
    """For each row the curve that it is a point of.

    A method is one curve for each kind of guidance or tuning; where it stands twice at one NFE under one protocol, it
    is several, told apart by what differs there.
    """
    methods: dict[Curve, list[int]] = {}
    for place, row in enumerate(rows):
        curve = Curve(row.first.group, row.first.label, row.guidance or row.tuned)
        methods.setdefault(curve, []).append(place)
    found: dict[int, Curve] = {}
    for curve, places in methods.items():
        twins: dict[object, list[Record]] = {}
        for place in places:
            twins.setdefault((rows[place].nfe_counted, rows[place].conditions), []).append(rows[place].first)
        differ = sorted({name for alike in twins.values() for name in telling(alike)})
        for place in places:
            told = ", ".join(part for part in (curve.told, described(rows[place].first, differ)) if part)
            found[place] = replace(curve, told=told)
    return [found[place] for place in range(len(rows))]


def described(record: Identified, names: Sequence[str]) -> str:
    """These entries of a record's identity in words: ``checkpoint 3f02, steps 800``.

    Identities hold those settings of a recipe alone that differ from the method's defaults.
    """
    entries = _flatten(record.identity)

    def value(name: str) -> str:
        absent = "by default" if name.startswith("recipe.") else "none"
        return entries.get(name, absent)[:24]

    return ", ".join(f"{name.removeprefix('recipe.')} {value(name)}" for name in names)


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
