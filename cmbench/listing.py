"""``cmbench list``: what is registered. Loads no network library."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cmbench import methods, recipes, registry
from cmbench.errors import unknown

if TYPE_CHECKING:
    from rich.table import Table


def _methods() -> list[dict[str, Any]]:
    found = [methods.get(name) for name in registry.names("method")]
    return [
        {
            "name": m.name,
            "label": m.label,
            "group": m.group,
            "reference": m.reference,
            "trains": "yes" if m.train else "no, samples with another's network",
            "deterministic": "yes" if m.deterministic else "no",
            "summary": m.summary,
            "differs from the paper": m.differs,
        }
        for m in sorted(found, key=lambda m: (m.group, m.name))
    ]


def _datasets() -> list[dict[str, Any]]:
    found = [registry.load("data set", name) for name in registry.names("data set")]
    return [
        {
            "name": d.name,
            "title": d.title,
            "shape": "x".join(map(str, d.shape)) if d.shape else "as the images",
            "classes": d.classes,
            "how to get it": d.how_to_get,
        }
        for d in found
    ]


def _protocols() -> list[dict[str, Any]]:
    from cmbench.metrics import protocols

    found = [protocols.get(name) for name in protocols.names()]
    return [
        {
            "name": p.name,
            "fingerprint": p.fingerprint,
            "quantizer": p.quantizer,
            "metrics": ", ".join(p.metric_titles.values()),
            "title": p.title,
        }
        for p in found
    ]


def _recipes() -> list[dict[str, Any]]:
    rows = []
    for dataset in registry.names("data set"):
        for name in registry.names("method"):
            method = methods.get(name)
            if presets := recipes.preset_names(method.package, dataset, name):
                rows.append({"data set": dataset, "method": name, "presets": ", ".join(presets)})
    return rows


LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "datasets": _datasets,
    "protocols": _protocols,
    "recipes": _recipes,
}


def rows(what: str) -> list[dict[str, Any]]:
    """The entries of a list. Raises UsageError for a list that does not exist."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    return LISTS[what]()


def as_json(what: str) -> str:
    """The list as JSON."""
    return json.dumps(rows(what), indent=1, ensure_ascii=False)


def as_table(what: str) -> "Table":
    """The list for a terminal."""
    from rich.table import Table
    from rich.text import Text

    entries = rows(what)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in entries[0]:
        made.add_column(name, overflow="fold")
    for entry in entries:
        made.add_row(*(Text(str(value)) for value in entry.values()))
    return made
