"""Is one run better than another? Paired tests over stored runs whose samples share seeds."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmbench.errors import UsageError, WorkError, unknown
from cmbench.paths import atomic
from cmbench.records import Record
from cmbench.report.aggregate import described, over_seeds, telling
from cmbench.report.layout import METRICS

if TYPE_CHECKING:
    from cmbench.metrics.paired import Comparison

OF_REFERENCE = "recall"
"""The metric whose flags belong to the reference images, not to the samples."""

DEFAULT = "default"
"""The value that stands for a method's own in a selector."""

LEVEL = 0.05
"""A p-value above this shows no difference."""


# --- what a record leaves behind for it ----------------------------------------------------------


def path(out: Path, key: str) -> Path:
    """Where the influences of a record's samples lie: ``OUT/samples/<record key>.npz``."""
    return out / "samples" / f"{key}.npz"


def write(out: Path, key: str, influences: Mapping[str, NDArray[Any]]) -> None:
    """Store what paired tests need of a record: some bytes a sample (``cmbench.metrics.figures.Influences``)."""
    with atomic(path(out, key)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **influences)  # type: ignore[arg-type]


def read(out: Path, record: Record) -> dict[str, NDArray[Any]]:
    """The stored influences of a record, by metric.

    Raises:
        UsageError: nothing is stored for it.
        WorkError: the file is damaged.
    """
    place = path(out, record.key)
    if not place.exists():
        raise UsageError(
            f"{named(record)} (seed {record.seed}) has no values by sample at {place}: "
            "measure it again with --force"
        )
    try:
        with np.load(place, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkError(f"{place} is damaged: {error}") from error


# --- which records are meant ---------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two records that compare: one data set, protocol, number of samples and seed."""

    a: Record
    b: Record

    @property
    def conditions(self) -> tuple[str, int]:
        """What all pairs of one comparison share, the data set aside."""
        return self.a.protocol_fingerprint, self.a.samples


def named(record: Record) -> str:
    """``CD at NFE 2``."""
    return f"{record.label} at NFE {record.nfe}"


def names(pair: Pair) -> tuple[str, str]:
    """What to call the two: :func:`named`, and where their labels are one, what else tells them apart.

    ``CD at NFE 2 (metric features)`` and ``CD at NFE 2 (metric by default)``.
    """
    a, b = pair.a, pair.b
    differ = telling([a, b], said=["nfe"]) if a.label == b.label else []
    if not differ:
        return named(a), named(b)
    return f"{named(a)} ({described(a, differ)})", f"{named(b)} ({described(b, differ)})"


def pairs(
    records: Iterable[Record],
    a: str,
    b: str,
    *,
    dataset: str,
    seeds: Sequence[int] | None = None,
    samples: int | None = None,
    protocol: str | None = None,
) -> list[Pair]:
    """The records that two selectors mean, paired by seed.

    Args:
        records: all there are.
        a: ``method:nfe``, ``method:nfe:setting=value`` (of the recipe; ``default`` where it is the method's), or the
            first digits of a record's key.
        b: likewise.
        dataset: of records named by method.
        seeds: those to use; by default all that both have.
        samples: number of samples, where records with several numbers pair up.
        protocol: its name, where records of several protocols pair up.

    Raises:
        UsageError: a selector that fits no record, records that do not pair up, or in more than one way.
    """
    stored = list(records)
    left, right = (_selected(stored, word, dataset) for word in (a, b))
    found = [
        Pair(x, y)
        for x in left
        for y in right
        if (x.dataset, x.protocol_fingerprint, x.samples, x.seed)
        == (y.dataset, y.protocol_fingerprint, y.samples, y.seed)
        and (seeds is None or x.seed in seeds)
        and samples in (None, x.samples)
        and protocol in (None, x.protocol)
    ]
    if not found:
        raise UsageError(f"{a} and {b} do not pair up: {_why_not(left, right, seeds)}")
    if len({pair.conditions for pair in found}) > 1:
        ways = sorted({f"{pair.a.samples} samples by {pair.a.protocol}" for pair in found})
        raise UsageError(
            f"{a} and {b} pair up in several ways ({'; '.join(ways)}): choose --samples, --protocol"
        )
    by_seed = {pair.a.seed: pair for pair in found}
    if len(by_seed) < len(found):
        keys = sorted({record.key[:8] for pair in found for record in (pair.a, pair.b)})
        raise UsageError(
            f"several runs of one seed fit {a} or {b}: name a setting that tells them, as {a}:metric={DEFAULT}, "
            f"or their keys ({', '.join(keys)})"
        )
    for word, side in ((a, [pair.a for pair in found]), (b, [pair.b for pair in found])):
        unlike = [row.first for row in over_seeds(side)]
        if len(unlike) > 1:
            differ = telling(unlike, said=["seed"])
            each = "; ".join(f"seed {record.seed}: {described(record, differ)}" for record in unlike)
            raise UsageError(
                f"{word} fits runs that differ in more than their seed ({each}): choose --seed, or settings"
            )
    lacking = sorted(set(seeds or ()) - set(by_seed))
    if lacking:
        raise UsageError(f"{a} and {b} have no pair of seed {', '.join(map(str, lacking))}")
    return [by_seed[seed] for seed in sorted(by_seed)]


def _selected(records: Sequence[Record], selector: str, dataset: str) -> list[Record]:
    method, *rest = selector.split(":")
    if not rest:
        found = [record for record in records if record.key.startswith(selector)]
        if len(selector) < 4 or not found:
            raise UsageError(
                f"'{selector}' is neither method:nfe, as cd:2, nor the beginning of a record's key"
            )
        return found
    nfe, settings = rest[0], rest[1:]
    own = [record for record in records if record.dataset == dataset]
    found = [record for record in own if (record.method, str(record.nfe)) == (method, nfe)]
    if not found:
        known = {f"{record.method}:{record.nfe}" for record in own}
        raise unknown(f"run on {dataset}", f"{method}:{nfe}", known)
    for setting in settings:
        name, _, value = setting.partition("=")
        found = [record for record in found if _value(record, name) == value]
        if not found:
            raise UsageError(f"{selector}: no record has {name}={value}")
    return found


def _value(record: Record, name: str) -> str:
    """A setting of the recipe, ``default`` where it is the method's: identities hold only what differs."""
    entry: Any = record.identity.get("recipe", {})
    for part in name.split("."):
        entry = entry.get(part, DEFAULT) if isinstance(entry, Mapping) else DEFAULT
    return str(entry)


def _why_not(left: Sequence[Record], right: Sequence[Record], seeds: Sequence[int] | None) -> str:
    """The first thing that none of the records share."""
    for what, of in (
        ("data set", lambda r: r.dataset),
        ("protocol", lambda r: f"{r.protocol} ({r.protocol_fingerprint[:8]})"),
        ("number of samples", lambda r: r.samples),
        ("seed", lambda r: r.seed),
    ):
        mine, theirs = (sorted({str(of(record)) for record in side}) for side in (left, right))
        if not set(mine) & set(theirs):
            return f"they differ in {what}, {', '.join(mine)} against {', '.join(theirs)}"
    return "no record of one has data set, protocol, samples" + (
        f" and one of the seeds {', '.join(map(str, seeds))} of the other"
        if seeds
        else " and seed of the other"
    )


Stored = tuple[Pair, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]
"""A pair, and the influences of both its records."""


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Two methods on one metric.

    Attributes:
        metric: its name in records.
        title: as tables print it.
        a: first method, as ``CD at NFE 2``, see :func:`names`.
        b: second method.
        value_a: mean over the seeds.
        value_b: likewise.
        difference: ``value_a - value_b``.
        std: standard error of the difference, from the pairs of samples.
        p: two-sided p-value, the chance of a difference this large between equally good generators; of these
            networks, not of what another training would give.
        seeds: that were combined.
        samples: in each run.
    """

    metric: str
    title: str
    a: str
    b: str
    value_a: float
    value_b: float
    difference: float
    std: float
    p: float
    seeds: tuple[int, ...]
    samples: int

    @property
    def better(self) -> str | None:
        """Which of the two is better; None where the difference may be chance or the metric has no direction."""
        if self.p > LEVEL or self.metric not in METRICS or self.difference == 0:
            return None
        lower_is_better = METRICS[self.metric].better == "lower"
        return self.a if (self.difference < 0) == lower_is_better else self.b

    def sentence(self) -> str:
        """The result in words."""
        size = f"{abs(self.difference):.3g} ± {self.std:.1g}"
        values = f"{self.value_a:.4g} against {self.value_b:.4g}, p = {self.p:.2g}"
        if self.better is None:
            return f"{self.title}: no difference shown between {self.a} and {self.b}: {size} ({values})"
        swap = self.better == self.b
        winner, loser = (self.b, self.a) if swap else (self.a, self.b)
        if swap:
            values = f"{self.value_b:.4g} against {self.value_a:.4g}, p = {self.p:.2g}"
        return f"{self.title}: {winner} is better than {loser} by {size} ({values})"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "better": self.better}


def compare(out: Path, chosen: Sequence[Pair], metrics: Sequence[str] | None = None) -> list[Result]:
    """Compare on every metric that both have, or on the chosen ones.

    Several seeds are combined: the mean of their differences, whose error is that of independent runs.

    Args:
        out: results folder.
        chosen: from :func:`pairs`.
        metrics: names of metrics in records; by default all that can be compared.

    Raises:
        UsageError: a metric that cannot be compared, runs without stored influences.
        WorkError: damaged influences.
    """
    stored = [(pair, read(out, pair.a), read(out, pair.b)) for pair in chosen]
    able = [
        name
        for name in chosen[0].a.metrics
        if all(name in mine and name in theirs for _, mine, theirs in stored)
    ]
    for name in metrics or ():
        if name not in able:
            reasons = {pair_record.metrics[name].reason for pair, *_ in stored
                       for pair_record in (pair.a, pair.b) if name in pair_record.metrics}  # fmt: skip
            if reason := next(filter(None, reasons), None):
                raise UsageError(f"{name} was not computed for every run: {reason}")
            raise unknown("metric that can be compared", name, able)
    return [_result(name, stored) for name in metrics or able]


def _result(name: str, stored: Sequence[Stored]) -> Result:
    from scipy.stats import norm

    if name == OF_REFERENCE:
        each = [_of_reference(name, stored)]
    else:
        each = [_one(pair, name, mine[name], theirs[name]) for pair, mine, theirs in stored]
    difference = float(np.mean([one.difference for one in each]))
    std = float(np.sqrt(np.sum([one.std**2 for one in each]))) / len(each)
    p = float(2 * norm.sf(abs(difference) / std)) if std else float(difference == 0)
    first = stored[0][0]
    titles = first.a.identity.get("protocol", {}).get("metric_titles", {})
    a, b = names(first)
    return Result(
        metric=name,
        title=titles.get(name, name),
        a=a,
        b=b,
        value_a=_mean(name, [pair.a for pair, *_ in stored]),
        value_b=_mean(name, [pair.b for pair, *_ in stored]),
        difference=difference,
        std=std,
        p=p,
        seeds=tuple(pair.a.seed for pair, *_ in stored),
        samples=first.a.samples,
    )


def _of_reference(name: str, stored: Sequence[Stored]) -> "Comparison":
    """Recall: its pairs are the reference images, which all seeds share, so that each has one mean difference."""
    from cmbench.metrics.paired import compare as test

    sides = ([mine[name] for _, mine, _ in stored], [theirs[name] for *_, theirs in stored])
    shares = [np.mean(flags, axis=0) for flags in sides]
    means = [float(share.mean()) for share in shares]
    return test(means[0], shares[0] - means[0], means[1], shares[1] - means[1])


def _one(pair: Pair, name: str, mine: NDArray[Any], theirs: NDArray[Any]) -> "Comparison":
    from cmbench.metrics.paired import compare as test
    from cmbench.metrics.paired import compare_flags

    if mine.dtype == np.bool_:
        return compare_flags(mine, theirs)
    values = [_mean(name, [record]) for record in (pair.a, pair.b)]
    return test(values[0], mine.astype(np.float64), values[1], theirs.astype(np.float64))


def _mean(name: str, records: Sequence[Record]) -> float:
    return float(np.mean([record.metrics[name].value for record in records]))
