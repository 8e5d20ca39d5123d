"""`cmbench tune`: a search of the re-noising levels of multistep consistency sampling, where its parts meet.

Every evaluation is a record of its own below ``OUT/tuning``, made by the sweep that makes all records: in shards that
a killed run goes on from, once for every set of levels. Its samples come from streams that no report draws from; all
levels share their noise, so that differences between them are not those of other samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench import comparing, methods, recipes, registry, tuned
from cmbench.benchmark import Plan, Sweep
from cmbench.checkpoints import Checkpoint
from cmbench.consistency import tuning
from cmbench.consistency.levels import Renoising
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.methods import Method
from cmbench.records import Record
from cmbench.report.layout import METRICS
from cmbench.sampling.seeds import CONFIRMATION, SEARCH, Streams
from cmbench.tuned import Tuned
from cmbench.workshop import Workshop

if TYPE_CHECKING:
    from cmbench.metrics.engine import Engine

FOLDER = "tuning"
INTERVALS = 64
"""Least number of intervals of the grid that levels are searched on: steps of about a sixth around sigma = 1."""

DIGITS = 4
"""Significant digits of a candidate: what is printed is what was sampled with."""


@dataclass(frozen=True)
class How:
    """How levels are searched.

    Attributes:
        metric: its name in records.
        points: size of the Karras grid whose inner points are the candidates; None is the training's, each interval
            divided until there are :data:`INTERVALS`.
        scan: evaluate so many evenly spaced candidates of each level instead of a ternary search.
        own_reference: search against one half of the reference images, confirm against the other.
    """

    metric: str = "fid"
    points: int | None = None
    scan: int | None = None
    own_reference: bool = False

    def __post_init__(self) -> None:
        if self.points is not None and self.points < 3:
            raise UsageError(
                f"--points {self.points}: a grid of 3 points is the smallest with a level inside"
            )
        if self.scan is not None and self.scan < 2:
            raise UsageError(f"--scan {self.scan}: a scan has at least two places")


@dataclass(frozen=True)
class Tuning:
    """What was found for one NFE of one checkpoint.

    ``own`` is what the recipe samples at, ``setting`` what gives the levels found to any command: ``cd.taus.2=[0.6]``;
    ``metric`` is the title of what was searched by.
    """

    method: Method
    nfe: int
    seed: int
    checkpoint: Checkpoint
    own: tuple[float, ...]
    setting: str
    found: Tuned
    path: Path
    metric: str

    @property
    def sign(self) -> int:
        """1 where a lower figure is better, else -1."""
        return 1 if METRICS[self.found.by["metric"]].better == "lower" else -1

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.method.label} at NFE {self.nfe}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "method": self.method.name,
            "nfe": self.nfe,
            "seed": self.seed,
            "taus": list(self.found.taus),
            "own": list(self.own),
            "setting": self.setting,
            "by": dict(self.found.by),
            "search": list(self.found.search),
            "hill": self.found.hill,
            "confirmation": dict(self.found.confirmation),
            "path": str(self.path),
        }


def choose(name: str) -> tuple[Method, Renoising]:
    """The method of this name, if it has levels to tune. Raises UsageError where it has none."""
    method = methods.get(name)
    if method.renoising is None:
        able = [other for other in registry.names("method") if methods.get(other).renoising]
        raise UsageError(f"{name} has no re-noising levels to tune: {', '.join(able)} have")
    return method, method.renoising


def candidates(
    renoising: Renoising,
    recipe: Any,
    noise: NoiseRange,
    points: int | None = None,
) -> list[float]:
    """The levels to choose from, falling: the inner points of a Karras grid (see :class:`How`).

    Evenly spaced in sigma^(1 / rho), as trainings and samplers space their levels: dense at low noise, where images
    change with the logarithm of sigma, without spending half of the list below what can be seen.
    Each has :data:`DIGITS` digits (as the recipe's setting writes it), or is the level named in the recipe that agrees
    with it in one digit less: the recipe's own choice is then among the candidates.
    """
    count = points or _refined(renoising.points(recipe))
    named = renoising.taus(recipe, noise).values()
    short = {f"{renoising.value(level, noise):.{DIGITS - 1}g}": level for own in named for level in own}
    levels = []
    for sigma in karras_sigmas(noise, count)[1:-1].tolist():
        value = renoising.value(sigma, noise)
        rounded = renoising.level(float(f"{value:.{DIGITS}g}"), noise)
        levels.append(short.get(f"{value:.{DIGITS - 1}g}", rounded))
    inside = [level for level in dict.fromkeys(levels) if noise.sigma_min < level < noise.sigma_max]
    if not inside:
        raise UsageError(f"a grid of {count} points has no level to choose from: --points takes another")
    return inside


def _refined(points: int | None) -> int:
    """The size of a grid with every point of one of ``points`` and at least :data:`INTERVALS` intervals."""
    trained = points - 1 if points else 1
    return trained * math.ceil(INTERVALS / trained) + 1


@dataclass(frozen=True)
class Tuner:
    """Searches the levels of checkpoints.

    Attributes:
        workshop: where checkpoints come from.
        engine: the metrics of one protocol.
        how: of the search.
        samples: of each evaluation.
        batch_size: samples at a time; moves no result.
        on_samples: called with (title, samples done, samples in all).
    """

    workshop: Workshop
    engine: "Engine"
    how: How
    samples: int
    batch_size: int
    on_samples: Callable[[str, int, int], None] = field(default=lambda _title, _done, _total: None)
    _engines: dict[Streams, "Engine"] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._only(SEARCH)  # an unknown metric is an error here and now
        if self.how.metric not in METRICS:
            raise UsageError(f"--metric {self.how.metric}: which direction is better is not known")

    def check(self, name: str, nfes: Sequence[int], seeds: Sequence[int]) -> None:
        """Raise UsageError for what cannot be tuned, before any work."""
        method, _ = choose(name)
        for nfe in nfes:
            if nfe < 2:
                raise UsageError(f"--nfe {nfe}: levels are re-noised to from the second evaluation on")
            if reason := self.workshop.refusal(method, nfe):
                raise UsageError(f"{name} at NFE {nfe}: {reason}")
        self.workshop.check_given([self.workshop.need(method, max(nfes), seed) for seed in seeds])

    def tune(self, name: str, nfes: Sequence[int], seed: int) -> Iterator[Tuning]:
        """Find the levels of every NFE up to the largest; store, confirm and yield those that are asked for.

        Raises UsageError (see :meth:`check`), WorkError where an evaluation cannot be made.
        """
        method, renoising = choose(name)
        recipe, last = self.workshop.recipe(method), max(nfes)
        checkpoint = self.workshop.ensure(self.workshop.need(method, last, seed))
        noise = checkpoint.header.noise
        levels = candidates(renoising, recipe, noise, self.how.points)
        seen: dict[int, dict[tuple[float, ...], Record]] = {}

        def figure(taus: tuple[float, ...]) -> float:
            record = self.evaluate(method, taus, seed, SEARCH, noise)
            seen.setdefault(len(taus) + 1, {})[taus] = record
            value, _ = self._figure(record)
            return value if METRICS[self.how.metric].better == "lower" else -value

        search = tuning.scan(self.how.scan) if self.how.scan else tuning.ternary_search
        for taus in tuning.greedy(figure, levels, last - 1, search):
            nfe = len(taus) + 1
            if nfe not in nfes:
                continue
            own = renoising.used(recipe, nfe, noise)
            evaluated = dict(sorted(seen[nfe].items(), reverse=True))
            figures = [self._figure(record) for record in evaluated.values()]
            found = Tuned(
                taus,
                self._by(levels),
                seed,
                tuple(
                    {"taus": list(one), "value": value, "std": std}
                    for one, (value, std) in zip(evaluated, figures, strict=True)
                ),
                self._hill(evaluated),
                self.confirm(method, taus, own, seed, noise),
            )
            ((setting, values),) = renoising.settings(taus, noise).items()
            text = ", ".join(f"{value:.12g}" for value in values[str(nfe)])
            path = tuned.write(checkpoint, nfe, found)
            title = self.engine.protocol.metric_titles[self.how.metric]
            told = f"{name}.{setting}.{nfe}=[{text}]"
            yield Tuning(method, nfe, seed, checkpoint, own, told, found, path, title)

    def _by(self, levels: Sequence[float]) -> dict[str, Any]:
        """How levels were searched, for identities: nothing here depends on the seed."""
        protocol = self.engine.protocol
        by: dict[str, Any] = {
            "metric": self.how.metric,
            "protocol": protocol.name,
            "fingerprint": protocol.fingerprint,
            "samples": self.samples,
            "candidates": len(levels),
            "search": f"scan of {self.how.scan}" if self.how.scan else "ternary",
        }
        return by | ({"reference": "half"} if self.how.own_reference else {})

    # --- evaluations -----------------------------------------------------------------------------

    def evaluate(
        self, method: Method, taus: tuple[float, ...], seed: int, streams: Streams, noise: NoiseRange
    ) -> Record:
        """The record of sampling at these levels, the stored one or made now."""
        assert method.renoising is not None
        shown = ", ".join(f"{tau:.4g}" for tau in taus)
        purpose = "search" if streams == SEARCH else "confirm"
        own = {method.name: method.renoising.settings(taus, noise)}
        shop = replace(self.workshop, settings=recipes.merge(self.workshop.settings, own))
        sweep = Sweep(
            shop,
            self._only(streams),
            self.samples,
            self.batch_size,
            lambda title, done, total: self.on_samples(f"{purpose}: {title}, levels {shown}", done, total),
            folder=self.folder,
            streams=streams,
        )
        (plan,) = sweep.plans([method], [len(taus) + 1], [seed])
        if not isinstance(plan, Plan):
            raise UsageError(plan)
        return sweep.run(plan).record

    @property
    def folder(self) -> Path:
        """A results folder of its own: ``cmbench records --out`` prints every evaluation."""
        return self.workshop.out / FOLDER

    def _only(self, streams: Streams) -> "Engine":
        if streams not in self._engines:
            half = int(streams == CONFIRMATION) if self.how.own_reference else None
            self._engines[streams] = self.engine.only(self.how.metric, half)
        return self._engines[streams]

    def _figure(self, record: Record) -> tuple[float, float | None]:
        """The figure and its standard deviation. Raises WorkError where it was not computed."""
        metric = record.metrics[self.how.metric]
        if metric.value is None:
            raise WorkError(f"{self.how.metric} was not computed: {metric.reason}")
        return metric.value, metric.std

    def _hill(self, evaluated: Mapping[tuple[float, ...], Record]) -> float | None:
        """The last level of an evaluation that lies between two better ones, beyond what the samples leave open."""
        made, name = list(evaluated.values()), self.how.metric
        sign = 1 if METRICS[name].better == "lower" else -1
        if not all(self._paired(record) for record in made):
            return None
        top = tuning.hill(
            [sign * self._figure(record)[0] for record in made],
            lambda a, b: comparing.compare(self.folder, [comparing.Pair(made[a], made[b])], [name])[0].std,
        )
        return None if top is None else list(evaluated)[top][-1]

    def _paired(self, record: Record) -> bool:
        return self.how.metric in comparing.read(self.folder, record)

    def confirm(
        self,
        method: Method,
        taus: tuple[float, ...],
        own: tuple[float, ...],
        seed: int,
        noise: NoiseRange,
    ) -> dict[str, Any]:
        """The figures of the levels found and of the recipe's own on samples that the search has not seen, paired."""
        name = self.how.metric
        made = [self.evaluate(method, one, seed, CONFIRMATION, noise) for one in (taus, own)]
        (value, std), (own_value, own_std) = map(self._figure, made)
        result: dict[str, Any] = {
            "own_taus": list(own), "own": own_value, "own_std": own_std, "tuned": value, "tuned_std": std,
        }  # fmt: skip
        if all(map(self._paired, made)):
            (pair,) = comparing.compare(self.folder, [comparing.Pair(*made)], [name])
            result |= {"difference": pair.difference, "std": pair.std, "p": pair.p}
        return result


# --- in words ------------------------------------------------------------------------------------


def verdict(one: Tuning) -> str:
    """Whether the levels found are better than the recipe's own, in one line."""
    told, title = one.found.confirmation, one.metric
    if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one.found.taus, one.own, strict=True)):
        return f"{one.title}: the search found the recipe's own levels: {title} {told['own']:.4g}"
    figures = (
        f"on other samples {title} {told['tuned']:.4g} at {_levels(one.found.taus)}, "
        f"{told['own']:.4g} at the recipe's {_levels(one.own)}"
    )
    if "p" not in told:
        return f"{one.title}: {figures} ({title} has no paired test)"
    figures += f" (difference {told['difference']:.3g} ± {told['std']:.1g}, p = {told['p']:.2g})"
    if told["p"] > comparing.LEVEL:
        return f"{one.title}: no difference to the recipe shown: {figures}"
    outcome = (
        "better than the recipe" if one.sign * told["difference"] < 0 else "worse than the recipe, keep that"
    )
    return f"{one.title}: {outcome}: {figures}"


def doubt(one: Tuning) -> str | None:
    """A warning where the evaluations of a ternary search show that the figure has several valleys."""
    if one.found.hill is None or one.found.by["search"] != "ternary":
        return None
    return f"{one.title}: more than one valley, with a hill at {one.found.hill:.4g}: --scan looks at all of the range"


def _levels(taus: Sequence[float]) -> str:
    return ", ".join(f"{tau:.4g}" for tau in taus)
