"""Is one run better than another? Paired tests over stored runs whose samples share seeds."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmbench.errors import WorkError
from cmbench.paths import atomic


def path(out: Path, key: str) -> Path:
    """Where the influences of a record's samples lie: ``OUT/samples/<record key>.npz``."""
    return out / "samples" / f"{key}.npz"


def write(out: Path, key: str, influences: Mapping[str, NDArray[Any]]) -> None:
    """Store what paired tests need of a record: some bytes a sample (``cmbench.metrics.figures.Influences``)."""
    with atomic(path(out, key)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **influences)  # type: ignore[arg-type]


def read(out: Path, key: str) -> dict[str, NDArray[Any]]:
    """The stored influences of a record, by metric; empty where nothing is stored.

    Raises:
        WorkError: the file is damaged.
    """
    place = path(out, key)
    if not place.exists():
        return {}
    try:
        with np.load(place, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkError(f"{place} is damaged: {error}") from error
