"""From features and statistics to figures: one short function per kind of metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmbench.errors import WorkError
from cmbench.metrics.cmmd import cmmd
from cmbench.metrics.density_coverage import density_coverage
from cmbench.metrics.diversity import disjoint_pairs, diversity, feature_distances
from cmbench.metrics.fid_infinity import fid_infinity
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.inception_score import (
    consecutive_splits,
    inception_score,
    probabilities,
    shuffled_splits,
)
from cmbench.metrics.kid import kid
from cmbench.metrics.memorization import memorization
from cmbench.metrics.precision_recall import precision_recall
from cmbench.metrics.protocols import MetricSpec
from cmbench.metrics.references import Float64, Statistics, drawn
from cmbench.metrics.shards import Features, LayerState
from cmbench.metrics.uncertainty import (
    Interval,
    fid_influence,
    inception_score_influence,
    normal_interval,
    precision_interval,
    recall_interval,
)
from cmbench.records import Metric

NO_REFERENCE = frozenset({"inception-score", "diversity"})
KEEPS_REFERENCE = frozenset({"kid", "precision-recall", "density-coverage", "cmmd", "authpct"})
# A Fréchet distance alone would need moments only; its uncertainty takes the features of every sample.
KEEPS_SAMPLES = KEEPS_REFERENCE | {"frechet", "inception-score", "fid-infinity", "diversity"}

Influences = Mapping[str, NDArray[Any]]
"""What paired comparison needs of each figure (see :mod:`cmbench.metrics.paired`): influence values float32 [N]
of the Fréchet distance and the Inception Score, flags bool [N] of precision and [M] of recall."""


@dataclass(frozen=True)
class Case:
    """What a metric is computed from.

    Attributes:
        samples: the features of all samples at the metric's layer, in the order of their indices.
        reference: statistics at that layer; None for metrics that need none.
        settings: of the metric, complete.
        device: where distances are computed; it does not change them.
    """

    samples: LayerState
    reference: Statistics | None
    settings: Mapping[str, Any]
    device: torch.device

    @property
    def known(self) -> Statistics:
        """The reference."""
        assert self.reference is not None
        return self.reference

    def compared(self) -> tuple[Features, Features, Float64]:
        """Features of samples and of reference images (drawn, if fewer than all), and radii of the latter."""
        samples = drawn(self.samples.rows(), self.settings["sample_count"], seed=1)
        count, k = self.settings["reference_count"], self.settings["k"]
        return samples, self.known.subset(count), self.known.radii(count, k, self.device)


@dataclass(frozen=True)
class Figure:
    """A value, its standard deviation if the metric gives one, and a 95 % interval if one can be had.

    ``influence``: see :data:`Influences`; None for figures without.
    """

    value: float
    std: float | None = None
    interval: Interval | None = None
    influence: NDArray[Any] | None = None


@dataclass(frozen=True)
class Measurement:
    """Figures by their names in records, and the influences of the samples on those that have them."""

    metrics: Mapping[str, Metric]
    influences: Influences = field(default_factory=dict)


def figures(spec: MetricSpec, case: Case, notes: tuple[str, ...] = ()) -> Measurement:
    """The figures of one metric.

    Args:
        spec: which metric.
        case: what it is computed from.
        notes: what a reader must know.

    Raises:
        WorkError: the figures cannot be computed.
        UsageError: the settings do not fit the number of samples.
    """
    n, D = case.samples.count, case.samples.dimensions
    if spec.kind == "frechet" and n <= D:
        notes = (*notes, f"{n} samples in {D} dimensions: their covariance is singular")
    note = "; ".join(notes) or None
    metrics, influences = {}, {}
    for key, figure in zip(spec.titles, _KINDS[spec.kind](case), strict=True):
        if not np.isfinite(figure.value):
            raise WorkError(f"the result is {figure.value}")
        interval = figure.interval
        std = figure.std if figure.std is not None or interval is None else interval.std
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        metrics[key] = Metric(float(figure.value), std, low, high, note=note)
        if figure.influence is not None:
            influences[key] = figure.influence
    return Measurement(metrics, influences)


def _frechet(case: Case) -> list[Figure]:
    moments, known = case.samples.moments(), case.known
    distance = frechet_distance(known.mean, known.covariance, moments.mean, moments.covariance())
    rows = case.samples.rows()
    if len(rows) < moments.n:  # some are folded into the moments
        return [Figure(distance)]
    try:
        influence = fid_influence(rows, known.mean, known.covariance)
    except WorkError:  # the distance of collapsed samples exists and its derivative does not
        return [Figure(distance)]
    free = normal_interval(distance, influence)
    interval = Interval(free.std, max(free.low, 0.0), free.high)
    return [Figure(distance, interval=interval, influence=influence.astype(np.float32))]


def _inception_score(case: Case) -> list[Figure]:
    logits, settings = case.samples.rows(), case.settings
    N, count = len(logits), settings["splits"]
    if settings["split_size"] is not None:
        splits = consecutive_splits(N, settings["split_size"])
    elif settings["shuffle_seed"] is not None:
        splits = shuffled_splits(N, count, settings["shuffle_seed"])
    elif count <= N:
        splits = np.arange(N) * count // N
    else:
        raise WorkError(f"{count} splits need at least as many samples, there are {N}")
    p = probabilities(logits)
    mean, std = inception_score(p, splits)
    influence = inception_score_influence(p, splits)
    interval = normal_interval(mean, influence)
    return [Figure(mean, std if splits.max() > 0 else None, interval, influence.astype(np.float32))]


def _kid(case: Case) -> list[Figure]:
    settings = case.settings
    mean, std = kid(
        case.samples.rows(),
        case.known.features,
        subsets=settings["subsets"],
        size=settings["subset_size"],
        seed=settings["seed"],
    )
    return [Figure(mean, std)]


def _precision_recall(case: Case) -> list[Figure]:
    samples, reference, radii = case.compared()
    k = case.settings["k"]
    flags = precision_recall(samples, reference, k=k, reference_radii=radii, device=case.device)
    return [
        Figure(flags.precision, None, precision_interval(flags.precise), flags.precise),
        Figure(flags.recall, None, recall_interval(flags.recalled, len(samples)), flags.recalled),
    ]


def _density_coverage(case: Case) -> list[Figure]:
    samples, reference, radii = case.compared()
    k = case.settings["k"]
    shares = density_coverage(samples, reference, k=k, reference_radii=radii, device=case.device)
    return [Figure(shares.density), Figure(shares.coverage)]


def _fid_infinity(case: Case) -> list[Figure]:
    known = case.known
    return [Figure(fid_infinity(case.samples.rows(), known.mean, known.covariance, **case.settings).value)]


def _cmmd(case: Case) -> list[Figure]:
    return [Figure(cmmd(case.samples.rows(), case.known.features, **case.settings))]


def _authpct(case: Case) -> list[Figure]:
    known, device = case.known, case.device
    train = known.radii(None, 1, device)
    result = memorization(case.samples.rows(), known.features, train_radii=train, device=device)
    return [Figure(result.authpct)]


def _diversity(case: Case) -> list[Figure]:
    rows = case.samples.rows()
    result = diversity(feature_distances(rows, disjoint_pairs(len(rows), case.settings["seed"])))
    return [Figure(result.mean, result.error)]


_KINDS: Mapping[str, Callable[[Case], list[Figure]]] = {
    "frechet": _frechet,
    "inception-score": _inception_score,
    "kid": _kid,
    "precision-recall": _precision_recall,
    "density-coverage": _density_coverage,
    "fid-infinity": _fid_infinity,
    "cmmd": _cmmd,
    "authpct": _authpct,
    "diversity": _diversity,
}
