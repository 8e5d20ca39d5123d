"""From features and statistics to figures: one short function per kind of metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cmbench.errors import WorkError
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.inception_score import (
    SplitEntropy,
    consecutive_splits,
    probabilities,
    shuffled_splits,
)
from cmbench.metrics.precision_recall import precision_recall
from cmbench.metrics.protocols import MetricSpec
from cmbench.metrics.references import Statistics
from cmbench.metrics.shards import Features, LayerState
from cmbench.records import Metric

NO_REFERENCE = frozenset({"inception-score"})
KEEPS_REFERENCE = frozenset({"kid", "precision-recall", "density-coverage", "cmmd", "authpct"})
KEEPS_SAMPLES = KEEPS_REFERENCE | {"inception-score", "fid-infinity"}


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

    def subsets(self) -> tuple[Features, Features]:
        """Features of the samples and reference images compared, drawn if fewer than all."""
        assert self.known.features is not None
        rows, known = self.samples.rows(), self.known.features
        return _drawn(rows, self.settings["sample_count"], 1), _drawn(known, self.settings["reference_count"], 0)


@dataclass(frozen=True)
class Figure:
    """A value and its standard deviation, if the metric gives one."""

    value: float
    std: float | None = None


def figures(spec: MetricSpec, case: Case, notes: tuple[str, ...] = ()) -> dict[str, Metric]:
    """The figures of one metric.

    Args:
        spec: which metric.
        case: what it is computed from.
        notes: what a reader must know.

    Raises:
        WorkError: the figures cannot be computed.
        UsageError: the settings do not fit the number of samples.
    """
    if spec.kind not in _KINDS:
        raise WorkError(f"{spec.kind} is not available yet")
    values = _KINDS[spec.kind](case)
    n, D = case.samples.count, case.samples.dimensions
    if spec.kind == "frechet" and n <= D:
        notes = (*notes, f"{n} samples in {D} dimensions: their covariance is singular")
    out = {}
    for key, figure in zip(spec.titles, values, strict=True):
        if not np.isfinite(figure.value):
            out[key] = Metric.missing(f"the result is {figure.value}")
        else:
            out[key] = Metric(float(figure.value), std=figure.std, note="; ".join(notes) or None)
    return out


def _drawn(rows: Features, count: int | None, seed: int) -> Features:
    # Neither data sets nor folders of samples are in random order, so that the first ones would not do.
    if count is None or count >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


def _frechet(case: Case) -> list[Figure]:
    moments, known = case.samples.moments(), case.known
    return [Figure(frechet_distance(known.mean, known.covariance, moments.mean, moments.covariance()))]


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
    entropy = SplitEntropy(splits, case.samples.dimensions)
    for start in range(0, N, 4096):  # probabilities in float64 of all samples at once would take room
        chunk = logits[start : start + 4096]
        entropy.update(probabilities(chunk), np.arange(start, start + len(chunk)))
    mean, std = entropy.score()
    return [Figure(mean, std if len(entropy.scores()) > 1 else None)]


def _precision_recall(case: Case) -> list[Figure]:
    samples, reference = case.subsets()
    shares = precision_recall(samples, reference, k=case.settings["k"], device=case.device)
    return [Figure(shares.precision), Figure(shares.recall)]


_KINDS: Mapping[str, Callable[[Case], list[Figure]]] = {
    "frechet": _frechet,
    "inception-score": _inception_score,
    "precision-recall": _precision_recall,
}
