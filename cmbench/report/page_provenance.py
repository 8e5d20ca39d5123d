"""Where each row of the HTML report comes from: settings, protocol, and for each seed its record, cost and machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmbench.records import Record
from cmbench.report.aggregate import Measured
from cmbench.report.layout import MISSING, number
from cmbench.report.page_data import conditions_text, flat_settings, row_id

SHOWN_ELSEWHERE = {
    "kind", "method", "revision", "recipe", "preset", "nfe", "seed", "samples", "checkpoint", "protocol", "content",
}  # fmt: skip
"""Entries of an identity that have a line or a column of their own."""

COSTS = {
    "training_seconds": "training, s",
    "sampling_seconds": "sampling, s",
    "images_per_second": "images/s",
    "pair_seconds": "of it pairs, s",
    "pair_evaluations": "evaluations for pairs",
}
"""Titles of the costs that records usually have; others stand under their own name."""


@dataclass(frozen=True)
class Provenance:
    """Of one row: named facts that its records share, and a table with a line a seed."""

    id: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    heads: tuple[str, ...]
    seeds: tuple[tuple[str, ...], ...]


def provenance(item: Measured) -> Provenance:
    """All that the records of a row say of how it was made."""
    record, identity = item.first, item.first.identity
    revision = f", revision {identity['revision']}" if "revision" in identity else ""
    own = {name: value for name, value in identity.items() if name not in SHOWN_ELSEWHERE}
    recipe = identity.get("recipe")
    settings = flat_settings(recipe) if isinstance(recipe, Mapping) else []
    preset = str(identity.get("preset", ""))
    facts = {
        "method": (f"{record.method}{revision}",),
        "reference": (record.reference,) if record.reference else (),
        "preset": (preset,) if preset else (),
        "settings": tuple(settings) or ("the method's defaults",),
        "evaluations": (f"{record.nfe} asked for, {item.nfe_counted:g} counted",),
        "protocol": (conditions_text(item),),
        "identity": tuple(flat_settings(own)),
        "versions": versions([one.environment for one in item.records]),
        "notes": tuple(dict.fromkeys(note for one in item.records for note in one.notes)),
    }
    return Provenance(
        row_id(one.key for one in item.records),
        tuple((name, lines) for name, lines in facts.items() if lines),
        *_by_seed(item),
    )


def versions(environments: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Python, packages and platform, a line for each combination."""
    found: dict[str, None] = {}
    for environment in environments:
        packages = environment.get("versions")
        named = packages.items() if isinstance(packages, Mapping) else ()
        parts = [f"Python {environment['python']}"] if environment.get("python") else []
        parts += [f"{name} {version}" for name, version in named if version]
        parts += [str(environment["platform"])] if environment.get("platform") else []
        if parts:
            found[", ".join(parts)] = None
    return tuple(found)


def _by_seed(item: Measured) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    costs = list(dict.fromkeys(name for record in item.records for name in record.cost))
    heads = ["seed", "record", "NFE", *(item.title(name) for name in item.metrics)]
    heads += [
        *(COSTS.get(name, name.replace("_", " ")) for name in costs),
        "checkpoint",
        "commit",
        "hardware",
        "time",
    ]
    return tuple(heads), tuple(_seed(record, list(item.metrics), costs) for record in item.records)


def _seed(record: Record, metrics: Sequence[str], costs: Sequence[str]) -> tuple[str, ...]:
    environment = record.environment
    cells = [str(record.seed), record.key, f"{record.nfe_counted:g}"]
    for name in metrics:
        metric = record.metrics.get(name)
        if metric is None or metric.value is None:
            cells.append(f"{MISSING} ({metric.reason})" if metric else MISSING)
        else:
            cells.append(number(name, metric.value, metric.std))
    cells += [_plain(record.cost.get(name)) for name in costs]
    cells += [(record.checkpoint or MISSING)[:16]]
    return (*cells, *(_plain(environment.get(name)) for name in ("commit", "device", "time")))


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)
