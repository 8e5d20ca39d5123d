"""What editing has measured on a data set: ``OUT/experiments/editing-<data set>.json``, with pictures beside it.

Figures and tables are made from these alone; this module imports neither torch nor numpy.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cmbench.errors import WorkError
from cmbench.paths import atomic

SCHEMA = 1
FOLDER = "experiments"
CONSISTENCY, DIFFUSION, BASELINE, TRUTH = "consistency", "diffusion", "baseline", "truth"
METRICS = {
    "psnr": ("PSNR", "↑"),
    "lpips": ("LPIPS", "↓"),
    "features": ("features", "↓"),
    "frechet": ("FD", "↓"),
    "given_max": ("given max", "↓"),
    "given_mean": ("mean", "↓"),
}
"""Name in records -> title and direction. The titles of ``features`` and ``frechet`` are in :attr:`Editing.titles`."""

QUALITY = ("psnr", "lpips", "features", "frechet")
"""Those that have curves, in this order."""


@dataclass(frozen=True)
class Cell:
    """One task by one method, with one number of evaluations and one seed.

    Attributes:
        key: fingerprint of all that determined it.
        task: name of the task.
        kind: CONSISTENCY, DIFFUSION, BASELINE (no network) or TRUTH (the originals themselves).
        method, label: of the method or baseline.
        nfe: evaluations asked for, 0 without a network.
        evaluations: network evaluations an image, counted.
        seed: of training and of all noise.
        seconds: of editing all images.
        metrics: ``psnr`` in dB, of the mean squared error over all images; ``lpips`` and ``features``, mean distances
            to the originals; ``frechet``, distance of the edited images to the data set; ``given_max`` and
            ``given_mean``, errors of the given part in grey levels of the 8-bit images. What could not be had is
            absent; so is the error of a given part that does not exist.
        picture: the first images side by side, a path relative to ``OUT/experiments``.
    """

    key: str
    task: str
    kind: str
    method: str
    label: str
    nfe: int
    evaluations: float
    seed: int
    seconds: float
    metrics: Mapping[str, float]
    picture: str

    @property
    def place(self) -> tuple[str, str, str, int, int]:
        """Which cell of the results it is; a file holds one cell for each."""
        return self.task, self.kind, self.method, self.nfe, self.seed


@dataclass(frozen=True)
class Task:
    """A task as it was set: ``setting`` in words, ``input`` the picture of what the methods were given."""

    name: str
    title: str
    setting: str
    input: str
    truth: str


@dataclass(frozen=True)
class Editing:
    """All that was measured on a data set.

    Attributes:
        dataset, title: registered name, and as tables print it.
        images: how many were edited.
        originals: which images, in words.
        identity: fingerprint of the images.
        titles: name of a metric -> its title here, as ``features`` -> ``digits-cnn``.
        missing: name of a metric -> why it could not be had.
        tasks: in the order asked for.
        cells: what is finished.
        environment: versions, commit, device and time of the last cell.
    """

    dataset: str
    title: str
    images: int
    originals: str
    identity: str
    titles: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    cells: tuple[Cell, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def of(self, task: str) -> list[Cell]:
        """The cells of a task."""
        return [cell for cell in self.cells if cell.task == task]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        head = {"schema": SCHEMA, "name": "editing", "paper": "Algorithm 4"}
        return {**head, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Editing":
        """Inverse of :meth:`to_json`. Raises ValueError, TypeError or KeyError for other data."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA or data.get("name") != "editing":
            raise ValueError(f"it holds no editing results of schema {SCHEMA}")
        values = {key: value for key, value in data.items() if key not in ("schema", "name", "paper")}
        return cls(
            **{
                **values,
                "tasks": tuple(Task(**task) for task in data["tasks"]),
                "cells": tuple(Cell(**cell) for cell in data["cells"]),
            }
        )


def path(out: Path, dataset: str) -> Path:
    """Where the results of a data set are kept."""
    return out / FOLDER / f"editing-{dataset}.json"


def pictures(out: Path, dataset: str) -> Path:
    """The folder of its pictures."""
    return out / FOLDER / f"editing-{dataset}"


def write(out: Path, made: Editing) -> Path:
    """Store the results atomically and return the path."""
    where = path(out, made.dataset)
    with atomic(where) as temporary:
        temporary.write_text(
            json.dumps(made.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
    return where


def read(out: Path, dataset: str) -> Editing | None:
    """The results of a data set, None where there are none. Raises WorkError where the file is damaged."""
    where = path(out, dataset)
    if not where.exists():
        return None
    try:
        return Editing.from_json(json.loads(where.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise WorkError(f"{where} holds no readable results of editing: {error}") from error


def datasets(out: Path) -> list[str]:
    """The data sets with results, sorted."""
    return sorted(one.stem.removeprefix("editing-") for one in (out / FOLDER).glob("editing-*.json"))


@dataclass(frozen=True)
class Row:
    """The cells of one task, method and number of evaluations, over seeds."""

    cells: tuple[Cell, ...]

    @property
    def first(self) -> Cell:
        """Any of them, for what they share."""
        return self.cells[0]

    def values(self, metric: str) -> list[float]:
        """The metric of each seed that has it."""
        return [cell.metrics[metric] for cell in self.cells if metric in cell.metrics]

    def mean(self, metric: str) -> float | None:
        """Over seeds."""
        found = self.values(metric)
        return fmean(found) if found else None

    def std(self, metric: str) -> float | None:
        """Sample standard deviation over seeds, None for fewer than two."""
        found = self.values(metric)
        return stdev(found) if len(found) > 1 else None

    def text(self, metric: str) -> str:
        """As tables print it: ``0.452 ± 0.006``; empty where there is none."""
        value, std = self.mean(metric), self.std(metric)
        if value is None:
            return ""
        if metric.startswith("given"):  # how exact, not how good: the worst of the seeds
            return f"{max(self.values(metric)):.2g}"
        return f"{value:.3g}" if std is None else f"{value:.3g} ± {std:.1g}"


def over_seeds(cells: Sequence[Cell]) -> Iterator[Row]:
    """The rows, in the order in which they first appear."""
    found: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.task, cell.kind, cell.method, cell.nfe), []).append(cell)
    for group in found.values():
        yield Row(tuple(sorted(group, key=lambda cell: cell.seed)))
