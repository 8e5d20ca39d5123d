"""What the charts of the HTML report draw, as plain data: rows of a data set, curves of an experiment."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cmbench.experiments.manifest import Arm, Manifest
from cmbench.records import Record
from cmbench.report import published
from cmbench.report.aggregate import Measured, Summary, curves_of, over_seeds
from cmbench.report.layout import METRICS, number
from cmbench.report.order import ranking

Data = dict[str, Any]


def row_id(keys: Iterable[str]) -> str:
    """The fragment under which a row and its provenance stand in the page: the key of its first record."""
    return f"row-{next(iter(keys))}"


def dataset_data(name: str, measured: Sequence[Measured]) -> Data:
    """The rows of one data set, measured and published.

    A metric stands under ``<name>|<title>``, so that figures of other features than Inception's never share an axis
    with published ones; rows of different protocols or sample counts have different ``conditions``.
    """
    paper = published.for_dataset(name)
    key = ranking(paper or published.load(1))
    ordered = sorted(measured, key=lambda item: key(item.first.group, item.first.label, item.nfe_counted))
    rows = [measured_row(item, curve.name) for item, curve in zip(ordered, curves_of(ordered), strict=True)]
    metrics = _metrics(ordered)
    return {
        "name": name,
        "title": published.title(name),
        "metrics": metrics,
        "conditions": {_conditions_id(item): conditions_text(item) for item in ordered},
        "rows": rows,
        "published": [
            row for one in paper if (row := _published_row(one, {m["id"] for m in metrics}))["metrics"]
        ],
    }


def conditions_text(item: Measured) -> str:
    """Protocol, its fingerprint and the number of samples, as a person reads them."""
    protocol, mark, samples = item.conditions
    return f"{protocol} ({mark[:8]}), {samples:,} samples"


def _conditions_id(item: Measured) -> str:
    return "|".join(map(str, item.conditions))


def _metrics(rows: Sequence[Measured]) -> list[Data]:
    """The metrics that any row has a figure of, those of the paper's tables first."""
    found = {
        (name, row.title(name)): None
        for row in rows
        for name, one in row.metrics.items()
        if one.mean is not None
    }
    known = list(METRICS)
    ordered = sorted(found, key=lambda pair: known.index(pair[0]) if pair[0] in known else len(known))
    return [metric_data(name, title) for name, title in ordered]


def metric_data(name: str, title: str) -> Data:
    """How a metric is named, and which direction is better."""
    better = METRICS[name].better if name in METRICS else None
    return {"id": f"{name}|{title}", "title": title, "better": better}


def summary_data(name: str, summary: Summary) -> Data | None:
    """Mean, least and greatest over seeds, and the text of the tables; None where there is no figure."""
    if summary.mean is None:
        return None
    spread = summary.std if summary.own is None else summary.own
    return {
        "mean": summary.mean,
        "low": min(summary.values),
        "high": max(summary.values),
        "n": len(summary.values),
        "text": number(name, summary.mean, spread),
    }


def measured_row(item: Measured, line: str) -> Data:
    """One point of the quality-against-cost chart. Costs are means over the records that have them."""
    record = item.first
    figures = {f"{name}|{item.title(name)}": summary_data(name, one) for name, one in item.metrics.items()}
    speeds = [1 / speed for one in item.records if (speed := one.cost.get("images_per_second"))]
    trained = [spent for one in item.records if (spent := one.cost.get("training_seconds")) is not None]
    return {
        "id": row_id(one.key for one in item.records),
        "group": record.group,
        "method": record.method,
        "line": line,
        "nfe": record.nfe,
        "conditions": _conditions_id(item),
        "seeds": list(item.seeds),
        "keys": [one.key for one in item.records],
        "metrics": {name: figure for name, figure in figures.items() if figure},
        "costs": {
            "evaluations": item.nfe_counted,
            "seconds": fmean(speeds) if speeds else None,
            "training": fmean(trained) if trained else None,
        },
        "from": _origin(item),
    }


def _origin(item: Measured) -> list[str]:
    """The lines of a tooltip that say where a row comes from."""
    commits = dict.fromkeys(str(one.environment.get("commit") or "unknown")[:12] for one in item.records)
    devices = dict.fromkeys(str(one.environment.get("device") or "unknown device") for one in item.records)
    seeds = f"seed{'s' if len(item.seeds) > 1 else ''} {', '.join(map(str, item.seeds))}"
    return [
        f"{seeds}; {conditions_text(item)}",
        f"commit {', '.join(commits)}",
        ", ".join(devices),
    ]


def _published_row(row: published.PublishedRow, known: set[str]) -> Data:
    figures = {}
    for name, text in row.texts.items():
        value, key = row.value(name), f"{name}|{METRICS[name].title}"
        if value is not None and key in known:
            figures[key] = {"mean": value, "low": value, "high": value, "n": 1, "text": text}
    return {
        "group": row.group,
        "line": row.method,
        "nfe": row.nfe,
        "metrics": figures,
        "costs": {"evaluations": row.nfe, "seconds": None, "training": None},
        "from": [f"published: {row.source}", *([row.reference] if row.reference else [])],
    }


def experiment_data(manifest: Manifest, out: Path) -> Data:
    """The curves of an experiment.

    Raises:
        WorkError: a record that the manifest names is missing or damaged.
    """
    curves: list[Data] = []
    notes: list[str] = []
    titles: dict[str, Data] = {}
    for arm in manifest.arms:
        curves += _curves(manifest, arm, out, titles, notes)
        notes += [f"{arm.label}: {failure}" for failure in arm.failures]
    ordered = sorted(titles.values(), key=lambda one: one["id"].partition("|")[0] != manifest.metric)
    return {
        "name": f"{manifest.name}-{manifest.dataset}",
        "title": manifest.title,
        "paper": manifest.paper,
        "dataset": published.title(manifest.dataset),
        "x": manifest.x,
        "metrics": ordered,
        "arms": curves,
        "setup": flat_settings(manifest.setup),
        "notes": notes,
    }


def _curves(manifest: Manifest, arm: Arm, out: Path, titles: dict[str, Data], notes: list[str]) -> list[Data]:
    """One curve; for x = ``step`` one for each NFE."""
    found: dict[int, dict[float, list[Record]]] = {}
    loose = 0
    for point in arm.points:
        record = point.read(out)
        step = point.step if point.step is not None else record.identity.get("step")
        x = record.nfe_counted if manifest.x == "nfe" else step
        if x is None:
            loose += 1
            continue
        found.setdefault(point.nfe if manifest.x == "step" else 0, {}).setdefault(float(x), []).append(record)
    if loose:
        notes.append(f"{arm.label}: {loose} finished checkpoints have no step and are not drawn")
    curves = []
    for nfe, places in found.items():
        points = []
        for x, records in sorted(places.items()):
            for item in over_seeds(records):
                figures = {}
                for name, summary in item.metrics.items():
                    one = metric_data(name, item.title(name))
                    if figure := summary_data(name, summary):
                        titles.setdefault(one["id"], one)
                        figures[one["id"]] = figure
                id = row_id(one.key for one in item.records)
                points.append({"id": id, "x": x, "metrics": figures, "from": _origin(item)})
        curves.append(
            {
                "label": f"{arm.label}, NFE {nfe}" if len(found) > 1 else arm.label,
                "method": arm.method,
                "note": arm.note or "",
                "settings": flat_settings(arm.settings),
                "points": points,
            }
        )
    return curves


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as ``--set`` takes them: ``cd.points=18``."""
    lines: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            lines += flat_settings(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name}={value}")
    return lines
