"""What an experiment has measured so far: arms, points, and the record of each. What figures are drawn from.

``OUT/experiments/<experiment>-<data set>.json``; imports neither torch nor pandas.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from cmbench import records
from cmbench.errors import WorkError
from cmbench.paths import atomic
from cmbench.records import Record

SCHEMA = 1
FOLDER = (
    "experiments"  # under OUT; records of milestones lie in its `runs`, so that tables of OUT never show them
)

Axis = Literal["step", "nfe"]


@dataclass(frozen=True)
class Point:
    """One record of an arm.

    Attributes:
        step: optimiser steps behind the measured network; None for a finished checkpoint.
        nfe: evaluations asked for.
        seed: of training and sampling.
        record: path of the record, relative to OUT, with forward slashes.
    """

    step: int | None
    nfe: int
    seed: int
    record: str

    def read(self, out: Path) -> Record:
        """The record. Raises WorkError where it is missing or damaged."""
        return records.read_file(out / self.record)


@dataclass(frozen=True)
class Arm:
    """One curve, or one row: a method with settings of its own.

    ``settings`` are the differences from the method's recipe that make this arm, as ``--set`` takes them.
    ``failures`` says what could not be measured and why, a line each.
    """

    name: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    note: str | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """An experiment on a data set, as far as it has been measured.

    Attributes:
        name, title: what the command line calls it, and what a figure prints.
        paper: the figure or table that it follows, such as ``Figure 3 (a)``; empty for a user's own.
        dataset: registered name.
        x: ``step`` for curves over a training, ``nfe`` for finished checkpoints.
        metric: name of the figure of merit in the records, such as ``fid``.
        arms: in the order of the experiment file.
        setup: what all points have in common: preset, settings, samples, protocol, milestones.
    """

    name: str
    title: str
    paper: str
    dataset: str
    x: Axis
    metric: str
    arms: tuple[Arm, ...] = ()
    setup: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; arms lose their empty fields."""
        out = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for arm in out["arms"]:
            for key in ("note", "failures"):
                if not arm[key]:
                    del arm[key]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Inverse of :meth:`to_json`. Raises ValueError, TypeError or KeyError for other data."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ValueError(f"it holds no manifest of schema {SCHEMA}")
        arms = tuple(
            Arm(
                **{
                    **arm,
                    "points": tuple(Point(**point) for point in arm["points"]),
                    "failures": tuple(arm.get("failures", ())),
                }
            )
            for arm in data["arms"]
        )
        if data["x"] not in ("step", "nfe"):
            raise ValueError(f"x is 'step' or 'nfe', not {data['x']!r}")
        values = {key: value for key, value in data.items() if key != "schema"}
        return cls(**{**values, "x": cast(Axis, data["x"]), "arms": arms})


def path(out: Path, name: str, dataset: str) -> Path:
    """Where the manifest of an experiment on a data set is kept."""
    return out / FOLDER / f"{name}-{dataset}.json"


def write(out: Path, manifest: Manifest) -> Path:
    """Store a manifest atomically and return its path."""
    where = path(out, manifest.name, manifest.dataset)
    with atomic(where) as temporary:
        temporary.write_text(
            json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
    return where


def read(out: Path, name: str, dataset: str) -> Manifest | None:
    """The manifest of an experiment on a data set; None where it has not been run. Raises WorkError if damaged."""
    where = path(out, name, dataset)
    return _read_file(where) if where.exists() else None


def read_all(out: Path) -> list[Manifest]:
    """All manifests under OUT, in the order of their file names."""
    found = sorted((out / FOLDER).glob("*.json"))
    return [_read_file(where) for where in found if not where.name.startswith("editing-")]


def _read_file(where: Path) -> Manifest:
    try:
        return Manifest.from_json(json.loads(where.read_text()))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise WorkError(f"{where} is not a readable manifest of an experiment: {error}") from error
