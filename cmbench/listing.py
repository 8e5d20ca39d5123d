"""``cmbench list``: what is registered. Loads no network library."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cmbench import catalogue, methods, recipes, registry
from cmbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def _methods() -> list[dict[str, Any]]:
    return [asdict(one) for one in catalogue.entries()]


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


def _experiments() -> list[dict[str, Any]]:
    from cmbench.experiments import recipe

    found = [recipe.load(name) for name in recipe.names()]
    return [
        {
            "name": name,
            "title": file.title,
            "paper": file.paper,
            "arms": len(file.arms),
            "x": file.x,
            "data sets": ", ".join(file.datasets),
        }
        for name, file in found
    ]


LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "datasets": _datasets,
    "protocols": _protocols,
    "recipes": _recipes,
    "experiments": _experiments,
}


def rows(what: str) -> list[dict[str, Any]]:
    """The entries of a list. Raises UsageError for a list that does not exist."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    return LISTS[what]()


def as_json(what: str, name: str | None = None) -> str:
    """The list, or one method of it, as JSON."""
    shown = rows(what) if name is None else asdict(_method(what, name))
    return json.dumps(shown, indent=1, ensure_ascii=False)


def as_markdown(what: str) -> str:
    """The methods as a page (docs/methods.md). Raises UsageError for another list."""
    if what != "methods":
        raise UsageError(f"--format md is for methods, not for {what}")
    from cmbench import catalogue_page

    return catalogue_page.as_markdown(catalogue.entries())


def as_table(what: str) -> "Table":
    """The list for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    entries = rows(what)
    for name in entries[0]:
        made.add_column(name, overflow="fold")
    for entry in entries:
        made.add_row(*(Text(str(value)) for value in entry.values()))
    return made


def methods_by_group() -> "Group":
    """The methods for a terminal of 100 columns: a table for each of the paper's groups."""
    from rich.console import Group
    from rich.table import Table

    found = catalogue.entries()
    heads = ("name", "NFE", "network", "pairs", "det.", "paper")
    cells = {
        one.name: (
            *(one.name, one.nfe, one.network),
            *("yes" if one.pairs else "", "yes" if one.deterministic else "no", one.reference),
        )
        for one in found
    }
    widths = [max(map(len, column)) for column in zip(heads, *cells.values(), strict=True)]
    parts: list[Table | str] = []
    for group in dict.fromkeys(one.group for one in found):
        made = Table(box=None, pad_edge=False, header_style="bold")
        for head, width in zip(heads, widths, strict=True):
            made.add_column(head, overflow="fold", min_width=min(width, 20), no_wrap=head == "name")
        for one in found:
            if one.group == group:
                made.add_row(*cells[one.name])
        parts += [f"[bold]{group}[/]", made, ""]
    return Group(
        *parts,
        "network: own, from a teacher, or another's, to sample with; pairs: trains on the teacher's samples;",
        "det.: the image is a function of the noise alone. `cmbench list methods NAME` tells all about one.",
    )


def one_method(what: str, name: str) -> dict[str, Any]:
    """All about one method, as facts for a terminal."""
    one = _method(what, name)
    where = {"paper": one.link} if one.link else {}
    shown: dict[str, Any] = {
        one.label: one.summary,
        "group": one.group,
        "reference": one.reference,
        **where,
        **catalogue.facts(one),
    }
    if one.settings:
        shown["settings"] = {
            s.name: f"{s.default}  {s.meaning}".strip().replace("``", "") for s in one.settings
        }
    return shown


def _method(what: str, name: str) -> "catalogue.Entry":
    if what != "methods":
        raise UsageError(f"cmbench list {what} takes no name")
    return catalogue.entry(methods.get(name))
