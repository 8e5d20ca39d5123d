"""From features and statistics to figures: one short function per kind of metric."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cmbench.errors import WorkError
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.inception_score import (
    SplitEntropy,
    consecutive_splits,
    probabilities,
    shuffled_splits,
)
from cmbench.metrics.protocols import MetricSpec
from cmbench.metrics.references import Statistics
from cmbench.metrics.shards import LayerState
from cmbench.records import Metric

NO_REFERENCE = frozenset({"inception-score"})
KEEPS_REFERENCE = frozenset({"kid", "precision-recall", "density-coverage", "cmmd", "authpct"})
KEEPS_SAMPLES = KEEPS_REFERENCE | {"inception-score", "fid-infinity"}

Settings = Mapping[str, Any]
Figure = tuple[float, float | None]  # value, standard deviation


def figures(
    spec: MetricSpec, samples: LayerState, reference: Statistics | None, notes: tuple[str, ...] = ()
) -> dict[str, Metric]:
    """The figures of one metric.

    Args:
        spec: which, with which settings.
        samples: the features of all samples at the metric's layer, in the order of their indices.
        reference: statistics at that layer; None for metrics that need none.
        notes: what a reader must know.

    Raises:
        WorkError: the figures cannot be computed.
        UsageError: the settings do not fit the number of samples.
    """
    if spec.kind not in _KINDS:
        raise WorkError(f"{spec.kind} is not available yet")
    values, more = _KINDS[spec.kind](samples, reference, spec.settings)
    note = "; ".join((*notes, *more)) or None
    return {
        key: Metric(float(value), std=None if std is None else float(std), note=note)
        for key, (value, std) in zip(spec.titles, values, strict=True)
    }


Result = tuple[list[Figure], tuple[str, ...]]


def _frechet(samples: LayerState, reference: Statistics | None, _: Settings) -> Result:
    assert reference is not None
    moments = samples.moments()
    distance = frechet_distance(reference.mean, reference.covariance, moments.mean, moments.covariance())
    few = f"{moments.n} samples in {samples.dimensions} dimensions: a singular covariance"
    return [(distance, None)], (few,) if moments.n <= samples.dimensions else ()


def _inception_score(samples: LayerState, _: Statistics | None, settings: Settings) -> Result:
    logits = samples.rows()
    N = len(logits)
    if settings["split_size"] is not None:
        splits = consecutive_splits(N, settings["split_size"])
    elif settings["shuffle_seed"] is not None:
        splits = shuffled_splits(N, settings["splits"], settings["shuffle_seed"])
    else:
        if settings["splits"] > N:
            raise WorkError(f"{settings['splits']} splits need at least as many samples, there are {N}")
        splits = np.arange(N) * settings["splits"] // N
    entropy = SplitEntropy(splits, samples.dimensions)
    for start in range(0, N, 4096):  # probabilities in float64 of all samples at once would take room
        chunk = logits[start : start + 4096]
        entropy.update(probabilities(chunk), np.arange(start, start + len(chunk)))
    mean, std = entropy.score()
    return [(mean, std if len(entropy.scores()) > 1 else None)], ()


_KINDS: Mapping[str, Callable[[LayerState, Statistics | None, Settings], Result]] = {
    "frechet": _frechet,
    "inception-score": _inception_score,
}
