"""The HTML report: one file that holds its tables, charts, pictures, scripts and styles, and loads nothing."""

import hashlib
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cmbench import __version__
from cmbench.editing.records import Editing
from cmbench.errors import UsageError
from cmbench.experiments.manifest import Manifest
from cmbench.records import Record, select
from cmbench.report import style, tables
from cmbench.report.aggregate import Measured, over_seeds
from cmbench.report.layout import MARKS, Table
from cmbench.report.page_data import Data, dataset_data, experiment_data, row_id
from cmbench.report.page_editing import editing_data, editing_facts, editing_tables
from cmbench.report.page_pictures import Picture, Previews, figures, previews
from cmbench.report.page_provenance import Provenance, provenance

SCRIPTS = ("plot.js", "cost.js", "experiments.js", "editing.js", "samples.js", "page.js")
"""Our own, in the order in which they run, behind the charting library."""

BUDGETS = (1, 2, 4, 10, inf)

MOST_BYTES = 5_800_000
"""What pictures may fill the page up to: it stays under 6 MB, unless the rows alone are more."""
PREVIEW_SHARE = 0.55
"""Of the room for pictures; figures have what previews leave."""


@dataclass(frozen=True)
class Best:
    """The best row of a data set at no more than this many evaluations."""

    budget: str
    line: str
    evaluations: str
    text: str
    id: str


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set outside its charts."""

    name: str
    table: Table
    provenance: dict[str, Provenance]
    metric: str
    best: tuple[Best, ...]


def write_page(
    records: Sequence[Record],
    manifests: Sequence[Manifest],
    out: Path,
    title: str,
    edited: Sequence[Editing] = (),
) -> str:
    """The whole page. The same records, manifests, results of editing, previews and figures give the same text.

    Args:
        records: those to show, at least one.
        manifests: of experiments, whose records lie under ``out``.
        out: the results folder: ``out/previews`` and ``out/figures`` are shown where they are there.
        title: of the page.
        edited: results of editing.

    Raises:
        UsageError: there is neither a record nor an experiment nor editing.
        WorkError: a preview, or a record that a manifest names, is missing or damaged.
    """
    if not records and not manifests and not edited:
        raise UsageError(
            f"no records under {out}/runs: `cmbench run --method cd --nfe 1 2 --out {out}` makes some"
        )
    shown = tables.build_all(records)
    names = [next(row.dataset for _, row in table.rows()) for table in shown]
    measured = {name: over_seeds(select(records, name)) for name in names}
    data = {name: dataset_data(name, measured[name]) for name in names}
    curves = [experiment_data(manifest, out) for manifest in manifests]
    sections = [
        Section(
            name,
            table,
            {one.id: one for one in map(provenance, measured[name])},
            data[name]["metrics"][0]["title"] if data[name]["metrics"] else "",
            _best(data[name]),
        )
        for name, table in zip(names, shown, strict=True)
    ]
    text = {
        "title": title,
        "facts": _facts(records, measured, manifests),
        "sections": sections,
        "protocols": _protocols(records),
        "experiments": curves,
        "editing": [
            {
                "title": one.title,
                "data": editing_data(one),
                "tables": editing_tables(one),
                "facts": editing_facts(one),
            }
            for one in edited
        ],
    }

    def filled(samples: Previews, pictures: Sequence[Picture] = (), left_out: Sequence[str] = ()) -> str:
        datasets = [
            {**data[name], "samples": _sample_rows(measured[name], data[name], samples.pictures)}
            for name in names
        ]
        return _render(text, datasets, samples, pictures, left_out)

    room = max(0, MOST_BYTES - len(filled(Previews(0, {})).encode()))
    samples = previews(records, out / "previews", int(PREVIEW_SHARE * room))
    room -= sum(map(len, samples.pictures.values()))
    return filled(samples, *figures(out / "figures", room))


def _render(
    text: dict[str, Any],
    datasets: Sequence[Data],
    samples: Previews,
    pictures: Sequence[Picture],
    left_out: Sequence[str],
) -> str:
    content = {
        "datasets": datasets,
        "experiments": text["experiments"],
        "editing": [one["data"] for one in text["editing"]],
        "pictures": samples.pictures,
        "pictureSamples": samples.samples,
        "colours": style.COLOURS,
    }
    scripts = [_asset("vendor/chart.umd.min.js").rpartition("//# sourceMappingURL")[0]]
    scripts += [_asset(name) for name in SCRIPTS]
    css = _asset("report.css")
    return str(
        _template().render(
            text,
            version=__version__,
            figures=pictures,
            left_out=left_out,
            samples=samples,
            marks=MARKS,
            row_id=row_id,
            data=_script_json(content),
            css=Markup(css),
            scripts=[Markup(script) for script in scripts],
            policy=_policy([*scripts, _EARLY], css),
            early=Markup(_EARLY),
            vendored=_vendored(),
        )
    )


_EARLY = 'document.documentElement.classList.add("js");'
"""Runs before anything is drawn: without scripts every row's provenance stays open."""


def _asset(name: str) -> str:
    return (files("cmbench") / "assets" / "report" / name).read_text(encoding="utf-8")


def _vendored() -> list[dict[str, str]]:
    """What was written by others: name, version, licence and its text."""
    entries = json.loads(_asset("vendor/index.json")).values()
    return [{**entry, "text": _asset(f"vendor/{entry['licence_file']}")} for entry in entries]


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html"))


def _policy(scripts: Sequence[str], css: str) -> str:
    """A content security policy under which the browser runs these scripts alone, and loads nothing at all."""

    def hashed(text: str) -> str:
        return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    run = " ".join(hashed(script) for script in scripts)
    return f"default-src 'none'; img-src data:; script-src {run}; style-src {hashed(css)}; base-uri 'none'"


def _script_json(content: Any) -> Markup:
    """JSON that no label can end early: inside a script element, `<` alone is special."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _facts(
    records: Sequence[Record], measured: dict[str, list[Measured]], manifests: Sequence[Manifest]
) -> list[tuple[str, str]]:
    """The line under the title."""
    if not records:
        return [("experiments", str(len(manifests)))]
    times = sorted(
        str(record.environment["time"])[:10] for record in records if record.environment.get("time")
    )
    facts = [
        ("records", f"{len(records):,}"),
        ("rows", f"{sum(map(len, measured.values())):,}"),
        ("methods", f"{len({(record.method, record.label) for record in records}):,}"),
        ("data sets", f"{len(measured):,}"),
        ("seeds", ", ".join(map(str, sorted({record.seed for record in records})[:6]))),
    ]
    if manifests:
        facts.append(("experiments", f"{len(manifests):,}"))
    if times:
        facts.append(("measured", times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"))
    return facts


def _protocols(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Name, fingerprint and JSON of each protocol that any record was measured under."""
    found = {
        (record.protocol, record.protocol_fingerprint): record.identity.get("protocol") for record in records
    }
    return [
        (name, mark, json.dumps(content, indent=1, ensure_ascii=False))
        for (name, mark), content in sorted(found.items(), key=lambda entry: entry[0])
    ]


def _best(data: Data) -> tuple[Best, ...]:
    """The best rows in the first metric, at up to 1, 2, 4, 10 and any number of evaluations.

    Among the rows of the conditions that most rows share; a budget that nothing was measured within has none, and so
    does one whose best is that of the budget before.
    """
    metric = next(iter(data["metrics"]), None)
    if metric is None or metric["better"] is None:
        return ()
    rows = [row for row in data["rows"] if metric["id"] in row["metrics"]]
    usual = Counter(row["conditions"] for row in rows).most_common(1)[0][0]
    sign = 1 if metric["better"] == "lower" else -1
    found: dict[str, Best] = {}
    for budget in BUDGETS:
        own = [r for r in rows if r["conditions"] == usual and r["costs"]["evaluations"] <= budget]
        if not own:
            continue
        row = min(own, key=lambda row: sign * row["metrics"][metric["id"]]["mean"])
        name = (
            "any number of evaluations"
            if budget == inf
            else f"{budget} evaluation{'s' if budget > 1 else ''}"
        )
        title = name if budget in (1, inf) else f"up to {name}"
        text = row["metrics"][metric["id"]]["text"]
        found.setdefault(
            row["id"], Best(title, row["line"], f"{row['costs']['evaluations']:.4g}", text, row["id"])
        )
    return tuple(found.values())


def _sample_rows(measured: Sequence[Measured], data: Data, pictures: dict[str, str]) -> list[Data]:
    """The rows of the sample grids, in the order of the tables, for records whose picture the page holds."""
    rows = {row["id"]: row for row in data["rows"]}
    found = []
    for item in measured:
        row = rows[row_id(one.key for one in item.records)]
        own = {str(one.seed): one.key for one in item.records if one.key in pictures}
        if own:
            found.append(
                (list(rows).index(row["id"]), {**_shared(row), "count": item.first.samples, "keys": own})
            )
    return [sample for _, sample in sorted(found, key=lambda entry: entry[0])]


def _shared(row: Data) -> Data:
    return {name: row[name] for name in ("id", "group", "line", "nfe")}
