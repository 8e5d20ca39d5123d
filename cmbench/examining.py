"""What FID does not show: diversity, drift, distance to the teacher's end point, memorisation. Samples -> record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmbench import environment, records
from cmbench.errors import CmbenchError, UsageError, WorkError, unknown
from cmbench.metrics import perceptual
from cmbench.metrics.diversity import disjoint_pairs, diversity
from cmbench.metrics.drift import mean_distance
from cmbench.metrics.endpoint import POINTS, root_mean_square
from cmbench.metrics.memorization import memorization
from cmbench.metrics.moments import Float64
from cmbench.metrics.perceptual import Perceptual, Pixels
from cmbench.metrics.quantize import quantize
from cmbench.metrics.uncertainty import precision_interval
from cmbench.records import Metric, Record
from cmbench.report.neighbours import write_pairs
from cmbench.subjects import Ends, Samples, Subject

if TYPE_CHECKING:
    from cmbench.benchmark import Outcome
    from cmbench.data import ImageData

FIGURES = ("diversity", "drift", "endpoint", "memorization")
FOLDER = "examined"
SAMPLES = 1000
"""Samples where a user names no number."""

PAIRS = 16  # of the picture of nearest training images
LARGEST = 2**31  # bytes of pixels up to which training images are compared by them


def choose(names: Sequence[str] | None) -> tuple[str, ...]:
    """The figures of these names, in the order of :data:`FIGURES`; all where none is named.

    Raises UsageError for a name that is none of them.
    """
    for name in names or ():
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    return tuple(name for name in FIGURES if not names or name in names)


@dataclass(frozen=True)
class Examiner:
    """Computes the figures of subjects and keeps them as records below ``OUT/examined``.

    Attributes:
        images: the training images.
        figures: from :func:`choose`.
        samples: how many each subject has.
        quantizer: of the protocol; ``as stored`` for samples made elsewhere.
        device: where networks run.
        download: whether the backbone of LPIPS may be fetched.
        out: results folder.
        on_samples: called with (title, done, in all).
    """

    images: "ImageData"
    figures: tuple[str, ...]
    samples: int
    quantizer: str
    device: torch.device
    download: bool
    out: Path
    on_samples: Callable[[str, int, int], None] = field(default=lambda _title, _done, _total: None)

    def __post_init__(self) -> None:
        if self.samples < 4:
            raise UsageError(f"{self.samples} samples are too few: diversity takes two pairs")

    @property
    def folder(self) -> Path:
        """A results folder of its own: ``cmbench table --out`` prints it."""
        return self.out / FOLDER

    @cached_property
    def distances(self) -> list[Perceptual]:
        """The perceptual distances; opened when the first is needed."""
        return perceptual.open_distances(self.images.name, self.device, self.download)

    @property
    def space(self) -> str:
        """What memorisation compares: features of our classifier of this data set, else pixels."""
        return perceptual.OWN.get(self.images.name, "pixels")

    # --- records ---------------------------------------------------------------------------------

    def titles(self, subject: Subject) -> dict[str, str]:
        """The figures that a subject has: name in records -> title in tables."""
        words = {"diversity": "Diversity", "endpoint": "To ODE end"}
        if subject.drift_from is not None:
            words["drift"] = f"Drift from NFE {subject.drift_from}"
        found = {}
        for figure in self.figures:
            if figure == "endpoint":
                found["endpoint_rms"] = "To ODE end (RMS)"
            if figure == "memorization":
                found["authpct"] = f"AuthPct ({self.space})"
            elif figure in words:
                for key, title in perceptual.titles(self.images.name).items():
                    found[f"{figure}_{key}"] = f"{words[figure]} ({title})"
        return found

    def _identity(self, subject: Subject) -> dict[str, Any]:
        protocol = {
            "name": "examine",
            "quantizer": self.quantizer,
            "points": POINTS,
            "space": self.space,
            "distances": perceptual.titles(self.images.name),
        }
        return {
            "kind": "examination",
            **subject.identity,
            "samples": self.samples,
            "dataset": self.images.fingerprint,
            "protocol": {**protocol, "metric_titles": self.titles(subject)},
        }

    def run(self, subject: Subject, *, force: bool = False) -> "Outcome":
        """The record of a subject: the stored one, or computed now.

        A stored one counts only where it has every figure that can be computed here.

        Raises:
            WorkError: a training diverged, a damaged file.
        """
        from cmbench.benchmark import Outcome

        identity = self._identity(subject)
        key = records.fingerprint(identity)
        stored = None if force else records.find(self.folder, key)
        if stored is not None and not self._gained(stored, subject):
            return Outcome(stored, computed=False)
        samples = subject.samples()
        metrics: dict[str, Metric] = {}
        missing = {one.key for one in self.distances if one.distance is None}
        for figure in self.figures:
            metrics |= self._compute(figure, subject, samples, key)
        if "endpoint" in self.figures and callable(subject.ends) and metrics["endpoint_rms"].value is None:
            missing.add("teacher")
        of = subject.of
        protocol = {name: value for name, value in identity["protocol"].items() if name != "metric_titles"}
        record = Record(
            method=of.method,
            label=of.label,
            group=of.group,
            reference=of.reference,
            dataset=self.images.name,
            nfe=of.nfe,
            nfe_counted=samples.evaluations or float(of.nfe),
            seed=of.seed,
            samples=self.samples,
            metrics={name: metrics[name] for name in identity["protocol"]["metric_titles"]},
            protocol="examine",
            protocol_fingerprint=records.fingerprint(protocol),
            identity=identity,
            checkpoint=samples.checkpoint,
            environment={**environment.describe(self.device), "missing": sorted(missing)},
            notes=samples.notes,
        )
        records.write(self.folder, record)
        return Outcome(record, computed=True)

    def _gained(self, stored: Record, subject: Subject) -> bool:
        """Whether what a record lacks can be had now."""
        lacking = set(stored.environment.get("missing", ()))
        if lacking & {one.key for one in (self.distances if lacking else ()) if one.distance is not None}:
            return True
        return "teacher" in lacking and not isinstance(_ends(subject), str)

    # --- figures: Metric by name -----------------------------------------------------------------

    def _compute(self, figure: str, subject: Subject, samples: Samples, key: str) -> dict[str, Metric]:
        images = samples.images
        if figure == "diversity":
            found = self._diversity(images)
            return {
                name: replace(one, note=f"of as many training images: {self._known_diversity[name]:.4g}")
                if one.value is not None
                else one
                for name, one in found.items()
            }
        if figure == "drift":
            if subject.base is None:
                return {}
            return self._perceptual(figure, subject.base().images, images, mean_distance)
        if figure == "endpoint":
            return self._endpoint(samples, _ends(subject))
        return {"authpct": self._memorization(images, key)}

    def _perceptual(
        self, figure: str, a: Pixels, b: Pixels, aggregate: Callable[[Float64], tuple[float, float]]
    ) -> dict[str, Metric]:
        found = {}
        for one in self.distances:
            try:
                metric = Metric(*aggregate(one.between(a, b, self.device)))
            except WorkError as error:
                metric = Metric.missing(str(error))
            found[f"{figure}_{one.key}"] = metric
        return found

    def _diversity(self, images: Pixels) -> dict[str, Metric]:
        one, other = disjoint_pairs(len(images)).T
        return self._perceptual("diversity", images[one], images[other], diversity)

    @cached_property
    def _known_diversity(self) -> dict[str, float]:
        count = min(self.samples, len(self.images))
        some = np.sort(np.random.default_rng(0).choice(len(self.images), count, replace=False))
        found = self._diversity(self.images.read(some))
        return {name: one.value for name, one in found.items() if one.value is not None}

    def _endpoint(self, samples: Samples, ends: Ends | str) -> dict[str, Metric]:
        if isinstance(ends, str) or samples.floats is None:
            missing = Metric.missing(ends if isinstance(ends, str) else "these samples are no floats")
            return {"endpoint_rms": missing, **{f"endpoint_{one.key}": missing for one in self.distances}}
        found = {"endpoint_rms": Metric(*mean_distance(root_mean_square(samples.floats, ends.images)))}
        seen = quantize(torch.from_numpy(ends.images), self.quantizer).numpy()
        found |= self._perceptual("endpoint", samples.images, seen, mean_distance)
        note = f"Heun on {POINTS} points; twice as many move the end points by {ends.accuracy:.1g} RMS"
        return {name: one if one.value is None else replace(one, note=note) for name, one in found.items()}

    def _memorization(self, images: Pixels, key: str) -> Metric:
        try:
            known = self._training
            found = memorization(
                known.features(images), known.rows, train_radii=known.radii, device=self.device
            )
        except CmbenchError as error:
            return Metric.missing(str(error))
        closest = found.closeness(known.radii).argsort(kind="stable")[:PAIRS]
        write_pairs(self.picture(key), images[closest], self.images.read(found.nearest[closest]))
        interval = precision_interval(found.authentic)
        low, high = 100 * interval.low, 100 * interval.high
        fresh = self._fresh
        note = None if fresh is None else f"of one half of the training images against the other: {fresh:.4g}"
        return Metric(found.authpct, 100 * interval.std, low, high, note=note)

    @cached_property
    def _fresh(self) -> float | None:
        """AuthPct of images that are certainly no copies: it is far from 100, and depends on the data."""
        rows = self._training.rows
        if len(rows) < 8:
            return None
        order = np.random.default_rng(0).permutation(len(rows))
        one, other = np.array_split(order, 2)
        return memorization(rows[one], rows[other], device=self.device).authpct

    def picture(self, key: str) -> Path:
        """Where the samples of a record that are nearest to training images are shown above these."""
        return self.folder / "neighbours" / f"{key}.png"

    @cached_property
    def _training(self) -> "Training":
        name = perceptual.OWN.get(self.images.name)
        title = f"training images of {self.images.title}"
        progress = lambda done, total: self.on_samples(title, done, total)  # noqa: E731
        return by_classifier(name, self.images, self.device, progress) if name else by_pixels(self.images)


@dataclass(frozen=True)
class Training:
    """The training images as vectors: rows [M, D], the squared distance [M] of each to the nearest other, and a map.

    ``features`` takes uint8 images [N, C, H, W] to [N, D].
    """

    rows: NDArray[np.float32]
    radii: Float64
    features: Callable[[Pixels], NDArray[np.float32]]


def by_classifier(
    name: str, images: "ImageData", device: torch.device, progress: Callable[[int, int], None]
) -> Training:
    """Vectors are features of one of our classifiers; those of the training images are shared with `cmbench run`."""
    from cmbench.metrics import protocols
    from cmbench.metrics.engine import Engine
    from cmbench.metrics.protocols import metric

    base = next(one for one in map(protocols.get, protocols.names()) if one.extractors[0].name == name)
    spec = metric("authpct", name, "features", "AuthPct")
    engine = Engine.open(replace(base, metrics=(spec,)), device=device)
    known = engine.reference(images, progress).layers[f"{name}/features"]

    def features(pixels: Pixels) -> NDArray[np.float32]:
        shard = engine.shard()
        engine.update(shard, pixels, 0)
        engine.flush(shard)
        return shard.layers[f"{name}/features"].rows()

    return Training(known.subset(None), known.radii(None, 1, device), features)


def by_pixels(images: "ImageData") -> Training:
    """Vectors are the pixels. Raises WorkError where those of all training images are too many for the memory."""
    from cmbench.metrics.precision_recall import manifold_radii

    size = len(images) * int(np.prod(images.shape)) * 4
    if size > LARGEST:
        raise WorkError(
            f"no classifier of cmbench knows {images.title}, and its pixels take {size / 2**30:.0f} GiB"
        )
    rows = images.read(np.arange(len(images))).reshape(len(images), -1).astype(np.float32)
    return Training(
        rows, manifold_radii(rows, k=1), lambda pixels: pixels.reshape(len(pixels), -1) * np.float32(1)
    )


def _ends(subject: Subject) -> Ends | str:
    """The end points, or why there are none."""
    if isinstance(subject.ends, str):
        return subject.ends
    try:
        return subject.ends()
    except WorkError as error:
        return str(error)
