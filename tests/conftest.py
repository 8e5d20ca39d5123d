"""Shared by all tests: nobody's real cache is read or written."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads would stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A console takes COLUMNS for good if it is there when the console is made: it is made before any test sets it.
os.environ.pop("COLUMNS", None)
import cmbench.console  # noqa: F401


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CMBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests that measure, so that the reference features are computed once."""
    return tmp_path_factory.mktemp("shared-cache")
