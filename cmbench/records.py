"""Records: what was measured, how, and at what cost. One JSON file each, under ``OUT/runs/``.

Reports are made from these alone; this module imports neither torch nor pandas.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmbench.errors import WorkError
from cmbench.paths import atomic

SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """One measured figure, or the reason why there is none.

    ``value`` is None exactly when ``reason`` says why it was not computed. ``std`` is the uncertainty that the
    metric itself gives (over splits, subsets or bootstrap resamples), ``low`` and ``high`` a 95 % interval.
    """

    value: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a metric has a value or a reason, never both or neither")

    @classmethod
    def missing(cls, reason: str) -> "Metric":
        """A metric that could not be computed, and why."""
        return cls(value=None, reason=reason)


@dataclass(frozen=True)
class Record:
    """One row: a method on a data set, at one NFE and one seed, under one evaluation protocol.

    ``nfe`` is what was asked for, ``nfe_counted`` the network forwards that each sample really took.
    ``metrics`` maps metric names (``fid``, ``is``, ``precision``, ``recall``, ...) to figures.
    ``identity`` holds everything that determines the result; its hash is ``key``. ``cost`` (seconds,
    images per second, peak memory, device) and ``environment`` (versions, commit, time) do not.
    """

    method: str
    label: str
    group: str
    reference: str
    dataset: str
    nfe: int
    nfe_counted: float
    seed: int
    samples: int
    metrics: Mapping[str, Metric]
    protocol: str
    protocol_fingerprint: str
    identity: Mapping[str, Any]
    checkpoint: str | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """Sixteen hex digits that name this record's file and its shards."""
        return fingerprint(self.identity)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; metrics lose their empty fields."""
        out = dataclasses.asdict(self)
        out["metrics"] = {
            name: {k: v for k, v in dataclasses.asdict(metric).items() if v is not None}
            for name, metric in self.metrics.items()
        }
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Record":
        """Inverse of :meth:`to_json`. Raises ValueError, TypeError or KeyError for other data."""
        if not isinstance(data, Mapping) or not isinstance(data.get("metrics", {}), Mapping):
            raise TypeError("it holds no record")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r}, this version reads {SCHEMA}")
        metrics = {name: Metric(**{"value": None, **value}) for name, value in data["metrics"].items()}
        return cls(**{**data, "metrics": metrics, "notes": tuple(data.get("notes", ()))})


def fingerprint(content: Any) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of ``content``."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_path(out: Path, record: Record) -> Path:
    """Where a record is kept; see :func:`path_of`."""
    step = record.identity.get("step")
    return path_of(out, record.dataset, record.method, record.nfe, record.seed, record.key, step)


def path_of(
    out: Path, dataset: str, method: str, nfe: int, seed: int, key: str, step: int | None = None
) -> Path:
    """``OUT/runs/<dataset>-<method>-nfe<NFE>-seed<seed>-<key>.json``: readable, and unique by its key.

    A network along a training has its step before the key.
    """
    along = "" if step is None else f"-step{step}"
    name = f"{dataset}-{method}-nfe{nfe}-seed{seed}{along}-{key}.json"
    return out / "runs" / name.replace("/", "_")


def write(out: Path, record: Record) -> Path:
    """Store a record atomically and return its path."""
    path = record_path(out, record)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record.to_json(), indent=1, allow_nan=False) + "\n")
    return path


def find(out: Path, key: str) -> Record | None:
    """The stored record of this identity hash, if there is one."""
    matches = sorted((out / "runs").glob(f"*-{key}.json"))
    return read_file(matches[0]) if matches else None


def read_file(path: Path) -> Record:
    """Read one record. Raises WorkError, naming the file, where it is damaged or of another schema."""
    try:
        return Record.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise WorkError(f"{path} is not a readable record: {error}") from error


def read(out: Path) -> list[Record]:
    """All records under ``OUT/runs``, in the order of their file names; an empty list where there are none."""
    return [read_file(path) for path in sorted((out / "runs").glob("*.json"))]


def select(records: Iterable[Record], dataset: str) -> list[Record]:
    """The records of one data set."""
    return [record for record in records if record.dataset == dataset]
