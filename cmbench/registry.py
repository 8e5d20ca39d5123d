"""Named things (methods, data sets, extractors, protocols), found through entry points: plug-ins need no edit here."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cmbench.errors import WorkError, unknown

GROUPS = {
    "method": "cmbench.methods",
    "data set": "cmbench.datasets",
    "extractor": "cmbench.extractors",
    "protocol": "cmbench.protocols",
}


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def names(kind: str) -> list[str]:
    """The registered names of a kind, without importing what they name."""
    return sorted(_points(kind))


def load(kind: str, name: str) -> Any:
    """Import and return the object registered under ``name``.

    Raises:
        UsageError: no such name; carries the nearest known one.
        WorkError: the plug-in that registers it cannot be imported.
    """
    points = _points(kind)
    if name not in points:
        raise unknown(kind, name, points)
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise WorkError(f"{kind} '{name}' ({points[name].value}) cannot be loaded: {error}") from error
