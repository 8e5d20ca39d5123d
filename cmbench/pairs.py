"""Synthetic pairs: noise and what a network makes of it, made once and shared by the methods that learn from them.

A set lies in one folder as shards, NumPy files that are memory-mapped when read. A shard is written whole or not at
all, beside what it cost; pair i depends on (seed, i) alone, so neither batches nor shards nor a kill move a result.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmbench.errors import UsageError, WorkError
from cmbench.paths import atomic

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device

    from cmbench.methods import Model, Parent
    from cmbench.training.loop import Report

SHARD = 5000  # pairs; each shard of a set in use keeps a file open

Map = Callable[["Tensor", "Tensor | None"], "Tensor"]
"""``(noise [B, C, H, W] unit normal, labels [B] or None) -> what becomes of it [B, M, C, H, W]``."""


@dataclass(frozen=True)
class Pairs:
    """The pairs that a training wants.

    Attributes:
        of: whose network makes them.
        make: that network's model -> the map from noise to M images (M > 1: points of a trajectory).
        settings: plain data that determines ``make``; with ``of``, ``count`` and ``seed`` it is the set's identity.
        count: number of pairs.
        seed: of noise and labels, in streams that no evaluation draws from.
    """

    of: "Parent"
    make: "Callable[[Model], Map]"
    settings: Mapping[str, Any]
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"pairs.count {self.count}: at least one pair is needed")


class PairSet:
    """A finished set, as training reads it (see :class:`cmbench.training.batches.TrainingImages`).

    ``seconds`` and network ``evaluations`` are what the set cost.
    """

    def __init__(self, folder: Path, count: int, shard: int = SHARD) -> None:
        self._shards: list[np.ndarray] = []
        self._shard = shard
        self.seconds, self.evaluations = 0.0, 0
        for number, (start, stop) in enumerate(_ranges(count, shard)):
            path = _shard_path(folder, number)
            try:
                rows = np.load(path, mmap_mode="r")
                cost = json.loads(path.with_suffix(".json").read_text())
                self.seconds += cost["seconds"]
                self.evaluations += cost["evaluations"]
            except (OSError, ValueError, KeyError) as error:
                raise WorkError(f"{path} is damaged ({error}); delete it to make it again") from error
            if len(rows) != stop - start:
                raise WorkError(
                    f"{path} holds {len(rows)} pairs, not {stop - start}; delete it to make it again"
                )
            self._shards.append(rows)
        labelled = "label" in (self._shards[0].dtype.names or ())
        self.labels = np.concatenate([rows["label"] for rows in self._shards]) if labelled else None

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._shards)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """float32 [B, 1 + M, C, H, W] at these indices: the noise, then what the network made of it."""
        shards, rows = np.divmod(indices, self._shard)
        out = np.empty((len(indices), *self._shards[0].dtype["images"].shape), np.float32)
        for number in np.unique(shards):
            chosen = shards == number
            out[chosen] = self._shards[number]["images"][rows[chosen]]
        return out


def make(
    pairs: Pairs,
    model: "Model",
    folder: Path,
    *,
    shape: tuple[int, int, int],
    classes: int,
    batch_size: int,
    device: "Device",
    report: "Report" = lambda _: None,
    shard: int = SHARD,
) -> PairSet:
    """Make the shards that are missing from ``folder``, and open the set.

    ``shape`` is C, H, W; ``classes`` is 0 where the network is unconditional. ``batch_size`` and ``shard`` move no
    result. Raises WorkError where a pair is not finite or a shard is damaged.
    """
    import torch

    from cmbench.sampling.generate import EvaluationCounter
    from cmbench.sampling.seeds import PAIR_LABEL, PAIR_NOISE, class_labels, initial_noise
    from cmbench.training.loop import Progress

    to_images = pairs.make(model)
    for number, (start, stop) in enumerate(_ranges(pairs.count, shard)):
        path = _shard_path(folder, number)
        if path.exists():
            continue
        began, counter = time.perf_counter(), EvaluationCounter(model.network)
        rows = None
        for first in range(start, stop, batch_size):
            indices = range(first, min(first + batch_size, stop))
            noise = initial_noise(pairs.seed, indices, shape, PAIR_NOISE).to(device)
            labels = class_labels(pairs.seed, indices, classes, PAIR_LABEL).to(device) if classes else None
            with torch.no_grad():
                made = torch.cat([noise[:, None], to_images(noise, labels)], dim=1)
            if not bool(made.isfinite().all()):
                raise WorkError(f"pairs {first} to {indices[-1]}: the network's images are not finite")
            if rows is None:
                rows = np.empty(stop - start, _row(made, labels))
            part = rows[first - start : first - start + len(indices)]
            part["images"] = made.float().cpu().numpy()
            if labels is not None:
                part["label"] = labels.cpu().numpy()
            report(Progress(indices[-1] + 1, pairs.count))
        counter.close()
        assert rows is not None  # a shard has a pair
        cost = {"seconds": round(time.perf_counter() - began, 3), "evaluations": counter.rows}
        with atomic(path.with_suffix(".json")) as temporary:  # before the shard: no shard without its cost
            temporary.write_text(json.dumps(cost) + "\n")
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    return PairSet(folder, pairs.count, shard)


def _row(made: "Tensor", labels: "Tensor | None") -> np.dtype:
    fields: list[Any] = [("images", np.float32, tuple(made.shape[1:]))]
    return np.dtype(fields if labels is None else [*fields, ("label", np.int64)])


def _ranges(count: int, shard: int) -> list[tuple[int, int]]:
    return [(start, min(start + shard, count)) for start in range(0, count, shard)]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"
