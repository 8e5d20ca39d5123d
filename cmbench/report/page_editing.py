"""What the HTML report shows of editing: curves over evaluations, a table for each task, and how it was measured."""

from dataclasses import dataclass
from typing import Any

from cmbench.editing.records import (
    BASELINE,
    CONSISTENCY,
    DIFFUSION,
    METRICS,
    QUALITY,
    TRUTH,
    Editing,
    Row,
    over_seeds,
)
from cmbench.report.layout import MISSING
from cmbench.report.page_provenance import versions

Data = dict[str, Any]


@dataclass(frozen=True)
class EditingTable:
    """The rows of one task as text."""

    title: str
    setting: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def editing_data(made: Editing) -> Data:
    """The curves: for each method its points by task, and what is there without a network.

    Points are means over seeds, with the least and the greatest.
    """
    rows = {task.name: list(over_seeds(made.of(task.name))) for task in made.tasks}
    everything = [row for own in rows.values() for row in own]
    names = [name for name in QUALITY if any(row.values(name) for row in everything)]
    arms = dict.fromkeys(
        (row.first.method, row.first.label)
        for row in everything
        if row.first.kind in (CONSISTENCY, DIFFUSION)
    )
    return {
        "title": made.title,
        "from": [
            f"commit {str(made.environment.get('commit') or 'unknown')[:12]}",
            str(made.environment.get("device") or "unknown device"),
        ],
        "tasks": [{"id": task.name, "title": task.title, "setting": task.setting} for task in made.tasks],
        "metrics": [_metric(made, name) for name in names],
        "arms": [
            {
                "label": label,
                "points": {
                    task: [
                        _point(row, names, made)
                        for row in sorted(own, key=lambda row: row.first.evaluations)
                        if (row.first.method, row.first.label) == (method, label)
                    ]
                    for task, own in rows.items()
                },
            }
            for method, label in arms
        ],
        "still": {
            task: [
                {"label": row.first.label, "truth": row.first.kind == TRUTH, "metrics": _figures(row, names)}
                for row in own
                if row.first.kind in (BASELINE, TRUTH)
            ]
            for task, own in rows.items()
        },
    }


def _metric(made: Editing, name: str) -> Data:
    title, arrow = METRICS[name]
    return {
        "id": name,
        "title": made.titles.get(name, title),
        "better": "higher" if arrow == "↑" else "lower",
    }


def _point(row: Row, names: list[str], made: Editing) -> Data:
    seeds = ", ".join(str(cell.seed) for cell in row.cells)
    lines = [f"seed{'s' if len(row.cells) > 1 else ''} {seeds}; {made.originals}"]
    return {"x": row.first.evaluations, "metrics": _figures(row, names), "from": lines}


def _figures(row: Row, names: list[str]) -> Data:
    return {
        name: {"mean": row.mean(name), "low": min(values), "high": max(values), "text": row.text(name)}
        for name in names
        if (values := row.values(name))
    }


def editing_tables(made: Editing) -> list[EditingTable]:
    """A table for each task, as `cmbench edit measure` prints it."""
    there = {name for cell in made.cells for name in cell.metrics}
    columns = [name for name in METRICS if name in there]
    heads = (
        "Method",
        "NFE",
        *(f"{made.titles.get(name, METRICS[name][0])} {METRICS[name][1]}" for name in columns),
        "s",
    )
    tables = []
    for task in made.tasks:
        rows = []
        for row in over_seeds(made.of(task.name)):
            cell = row.first
            seconds = sum(one.seconds for one in row.cells) / len(row.cells)
            cost = (f"{cell.evaluations:g}", f"{seconds:.2f}") if cell.nfe else ("", "")
            rows.append((cell.label, cost[0], *(row.text(name) for name in columns), cost[1]))
        tables.append(EditingTable(task.title, task.setting, heads, tuple(rows)))
    return tables


def editing_facts(made: Editing) -> list[tuple[str, tuple[str, ...]]]:
    """How it was measured, as named lines. The machine is that of the last result."""
    environment = made.environment
    facts: dict[str, tuple[str, ...]] = {
        "images": (made.originals,),
        "identity": (made.identity,),
        "seeds": (", ".join(map(str, sorted({cell.seed for cell in made.cells if cell.nfe}))),),
        "not computed": tuple(
            f"{made.titles.get(name, name)}: {reason}" for name, reason in made.missing.items()
        ),
        **{
            title: (str(environment.get(name) or MISSING),)
            for title, name in {"commit": "commit", "hardware": "device", "time": "time"}.items()
        },
        "versions": versions([environment]),
    }
    return [(name, lines) for name, lines in facts.items() if any(lines)]
