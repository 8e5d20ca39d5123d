"""Shards: what one pass over a range of samples leaves behind, saved atomically and merged in index order."""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.moments import Moments
from cmbench.paths import atomic

Features = NDArray[np.float32]


class LayerState:
    """The features of one layer over consecutive samples: rows, moments, or both.

    Rows are kept for good where ``keep`` says so. Elsewhere they are folded into float64 moments as soon as
    there
    are more of them than moments are worth: below that they take less room, and cost no rounding.
    """

    def __init__(self, dimensions: int, keep: bool) -> None:
        self.dimensions = dimensions
        self.keep = keep
        self.failure: str | None = None  # the first reason why no statistics can be had
        self._rows: list[Features] = []
        self._folded = Moments(dimensions)

    @property
    def count(self) -> int:
        """Samples seen."""
        return self._folded.n + sum(map(len, self._rows))

    def update(self, rows: Features, first_index: int) -> None:
        """Add features [B, D] of the samples from ``first_index`` on; remember values that are not finite."""
        if self.failure is None and not np.isfinite(rows).all():
            bad = first_index + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            self.failure = f"the features of sample {bad} are not finite"
        self._rows.append(rows)
        if not self.keep and sum(map(len, self._rows)) >= 2 * self.dimensions:
            self._fold()

    def _fold(self) -> None:
        if self.failure is None:
            self._folded.update(self.rows())
        self._rows = []

    def rows(self) -> Features:
        """The rows held, [N, D] (all of them where ``keep``)."""
        if len(self._rows) != 1:
            empty = np.zeros((0, self.dimensions), np.float32)
            self._rows = [np.concatenate(self._rows) if self._rows else empty]
        return self._rows[0]

    def moments(self) -> Moments:
        """Mean and covariance of all samples; rows enter in runs of one length, so batches do not show."""
        total = Moments.from_state(self._folded.state())
        rows = self.rows()
        for start in range(0, len(rows), 4096):
            total.update(rows[start : start + 4096])
        return total

    def append(self, other: "LayerState") -> None:
        """Add the samples that follow."""
        self.failure = self.failure or other.failure
        self._folded.merge(other._folded)
        self._rows.extend(other._rows)
        if not self.keep and sum(map(len, self._rows)) >= 2 * self.dimensions:
            self._fold()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        out: dict[str, NDArray[Any]] = {"rows": self.rows()}
        return out if self._folded.n == 0 else {**out, **self._folded.state()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], keep: bool, failure: str | None) -> "LayerState":
        """Inverse of :meth:`arrays`."""
        rows = arrays["rows"]
        state = cls(rows.shape[1], keep)
        state.failure = failure
        state._rows = [rows]
        if "n" in arrays:
            state._folded = Moments.from_state(arrays)
        return state


@dataclass
class Shard:
    """What a contiguous range of samples left behind under one protocol.

    Attributes:
        identity: what must agree for two shards to be merged: protocol fingerprint, weights, batch size.
        layers: ``extractor/layer`` -> its features.
        first: index of the first sample; None while there is none.
        count: samples seen.
        waiting: images seen and not yet run through the extractors, which take whole batches.
        evaluations: network evaluations that its samples took, all together; 0 for samples made elsewhere.
    """

    identity: dict[str, Any]
    layers: dict[str, LayerState]
    first: int | None = None
    count: int = 0
    waiting: list[Tensor] = field(default_factory=list)
    evaluations: int = 0

    @property
    def stop(self) -> int:
        """Index after the last sample."""
        return (self.first or 0) + self.count


def save(shard: Shard, path: Path) -> None:
    """Write a shard whose images have all been run."""
    header = {
        "identity": shard.identity,
        "first": shard.first,
        "count": shard.count,
        "evaluations": shard.evaluations,
        "failures": {name: layer.failure for name, layer in shard.layers.items()},
    }
    arrays: dict[str, NDArray[Any]] = {"header": np.array(json.dumps(header))}
    for name, layer in shard.layers.items():
        arrays |= {f"{name}/{key}": array for key, array in layer.arrays().items()}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: Path, empty: Shard) -> Shard:
    """Read a shard into the shape of ``empty``.

    Raises:
        WorkError: the file is damaged.
        UsageError: it is of another protocol, other weights or another batch size.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            found = header["identity"]
            for key, value in empty.identity.items():
                if found.get(key) != value:
                    raise UsageError(f"{path} is of another {key}: {found.get(key)}, not {value}")
            layers = {}
            for name, layer in empty.layers.items():
                keys = [key for key in file if key.rpartition("/")[0] == name]
                arrays = {key.rpartition("/")[2]: file[key] for key in keys}
                layers[name] = LayerState.from_arrays(arrays, layer.keep, header["failures"][name])
            return Shard(
                found, layers, header["first"], header["count"], evaluations=header.get("evaluations", 0)
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkError(f"{path} is no readable shard: {error}") from error


def merge(shards: Iterable[Shard], empty: Shard) -> Shard:
    """Join shards, in the order of their indices, into ``empty``.

    Raises:
        UsageError: shards of another identity.
        WorkError: they leave samples out, or hold some twice.
    """
    ordered = sorted((shard for shard in shards if shard.count), key=lambda shard: shard.first or 0)
    for shard in ordered:
        if shard.identity != empty.identity:
            raise UsageError("the shards are of different protocols, weights or batch sizes")
        if empty.first is None:
            empty.first = shard.first
        elif shard.first != empty.stop:
            problem = "are missing" if (shard.first or 0) > empty.stop else "come twice"
            low, high = sorted((empty.stop, shard.first or 0))
            raise WorkError(f"samples {low} to {high - 1} {problem}")
        for name, layer in shard.layers.items():
            empty.layers[name].append(layer)
        empty.count += shard.count
        empty.evaluations += shard.evaluations
    return empty
