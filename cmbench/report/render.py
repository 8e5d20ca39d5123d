"""Tables in the formats people read, paste and parse: rich, md, csv, latex, html, json."""

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cmbench.errors import unknown
from cmbench.report.latex import latex
from cmbench.report.layout import MARKS, Cell, Row, Table

if TYPE_CHECKING:
    from cmbench.report.terminal import Terminal


def render(tables: Table | Sequence[Table], format: str, *, standalone: bool = False) -> "str | Terminal":
    """The tables in one format: a text that ends in a newline, or for ``rich`` a renderable.

    ``csv`` and ``json`` are one document for all tables; the others follow each other. A table without
    measured rows has in ``csv`` the columns ``group, method, reference, nfe`` and its metrics, as printed;
    one with measured rows also ``dataset, source, nfe_asked, n, samples, protocol, fingerprint`` and, behind
    each metric (the mean over ``n`` seeds, all digits), its standard deviation ``<metric>_std``.

    Args:
        tables: one table or several.
        format: one of :data:`FORMATS`.
        standalone: for ``latex``, a whole document, which breaks long tables over pages, instead of tabulars; for
            ``html``, a whole page instead of figures.

    Raises:
        UsageError: there is no such format.
    """
    several = [tables] if isinstance(tables, Table) else list(tables)
    if format == "rich":
        from cmbench.report.terminal import Terminal

        return Terminal(several)
    if format == "latex":
        return latex(several, standalone=standalone)
    if format == "html" and standalone:
        return _PAGE.format(title=html.escape(several[0].title if several else ""), body=_html(several))
    if format not in _TEXT:
        raise unknown("format", format, FORMATS)
    return _TEXT[format](several)


def _csv(tables: Sequence[Table]) -> str:
    measured = any(table.measured for table in tables)
    keys = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    names = ["group", "method", "reference", "nfe"]
    if measured:
        names = ["dataset", "group", "method", "reference", "source", "nfe"]
        names += ["nfe_asked", "n", "samples", "protocol", "fingerprint"]
    derived = {column.key for table in tables for column in table.columns if column.derived}
    pairs = ([key, f"{key}_std"] if measured and key not in derived else [key] for key in keys)
    metrics = [name for pair in pairs for name in pair]
    out = io.StringIO()
    writer = csv.DictWriter(out, names + metrics, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for group, row in table.rows():
            writer.writerow(_facts(group, row) | _figures(table, row))
    return out.getvalue()


def _facts(group: str, row: Row) -> dict[str, Any]:
    """What identifies a row, under the names that CSV and JSON use."""
    return {
        "dataset": row.dataset,
        "group": group,
        "method": row.method.text,
        "reference": row.reference,
        "source": row.source,
        "nfe": float(row.nfe.text) if "." in row.nfe.text else int(row.nfe.text),
        "nfe_asked": row.nfe_asked,
        "n": len(row.seeds) or None,
        "samples": row.samples,
        "protocol": row.protocol or None,
        "fingerprint": row.fingerprint or None,
    }


def _figures(table: Table, row: Row) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for column, cell in zip(table.columns, row.cells, strict=True):
        figures[column.key] = cell.text if row.source == "published" else cell.value
        figures[f"{column.key}_std"] = cell.std
    return figures


def _json(tables: Sequence[Table]) -> str:
    rows = []
    for table in tables:
        for group, row in table.rows():
            metrics = {
                column.key: _filled(
                    title=column.title,
                    better=column.better,
                    value=cell.value,
                    std=cell.std,
                    n=cell.n or None,
                    text=cell.text,
                    best=cell.bold,
                    reason=cell.reason,
                )
                for column, cell in zip(table.columns, row.cells, strict=True)
                if cell.text
            }
            notes = [note for cell in (row.method, row.nfe) for note in cell.notes]
            facts = _facts(group, row) | {"seeds": row.seeds or None, "mark": row.mark or None}
            rows.append({"table": table.title, **_filled(**facts, notes=notes or None), "metrics": metrics})
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _filled(**entries: Any) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


def _markdown(tables: Sequence[Table]) -> str:
    return "\n".join(_markdown_table(table) for table in tables)


def _markdown_table(table: Table) -> str:
    letters = table.letters

    def shown(cell: Cell, mark: str = "", tail: str = "") -> str:
        text = _escape_markdown(cell.text) + _escape_markdown(mark)
        text = f"**{text}**" if cell.bold else text
        return text + "".join(f"<sup>{letters[note]}</sup>" for note in cell.notes) + _escape_markdown(tail)

    head = table.headers
    lines = [f"### {_escape_markdown(table.title)}", ""]
    lines.append(_markdown_line([_escape_markdown(text) for text in head]))
    lines.append(_markdown_line([":--"] + ["--:"] * (1 + len(table.columns)) + [":--"] * bool(table.origins)))
    for group in table.groups:
        lines.append(_markdown_line([f"**{_escape_markdown(group.title)}**"] + [""] * (len(head) - 1)))
        for row in group.rows:
            reference = f" ({row.reference})" if row.reference else ""
            cells = [shown(row.method, MARKS[row.mark][0] if row.mark else "", reference), shown(row.nfe)]
            cells += [shown(cell) for cell in row.cells]
            cells += [table.origin(row)] if table.origins else []
            lines.append(_markdown_line(cells))
    for note in table.footnotes:
        sign = f"<sup>{_escape_markdown(note.mark)}</sup> " if note.mark else ""
        lines += ["", sign + _escape_markdown(note.text)]
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape_markdown(text: str) -> str:
    return "".join("\\" + sign if sign in "\\`*_[]<>|" else sign for sign in text)


def _html(tables: Sequence[Table]) -> str:
    return "".join(_html_table(table) for table in tables)


def _html_table(table: Table) -> str:
    letters = table.letters

    def shown(cell: Cell) -> str:
        text = f"<strong>{html.escape(cell.text)}</strong>" if cell.bold else html.escape(cell.text)
        return text + "".join(f"<sup>{letters[note]}</sup>" for note in cell.notes)

    def figure(cell: Cell) -> str:
        return f'<td class="{"figure best" if cell.bold else "figure"}">{shown(cell)}</td>'

    head = table.headers
    lines = ['<figure class="cmbench-table">', "<table>", f"<caption>{html.escape(table.title)}</caption>"]
    lines += ["<thead><tr>" + "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)]
    lines[-1] += "</tr></thead>"
    for group in table.groups:
        lines += ["<tbody>", f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">']
        lines[-1] += f"{html.escape(group.title)}</th></tr>"
        for row in group.rows:
            mark = f"<sup>{MARKS[row.mark][0]}</sup>" if row.mark else ""
            cite = f' <cite class="reference">({html.escape(row.reference)})</cite>' if row.reference else ""
            line = f'<tr class="{row.source}"><th scope="row">{shown(row.method)}{mark}{cite}</th>'
            line += "".join(figure(cell) for cell in (row.nfe, *row.cells))
            if table.origins:
                line += f'<td class="source">{table.origin(row)}</td>'
            lines.append(line + "</tr>")
        lines.append("</tbody>")
    lines.append("</table>")
    if table.footnotes:
        lines.append('<figcaption class="notes">')
        for note in table.footnotes:
            sign = f"<sup>{note.mark}</sup> " if note.mark else ""
            lines.append(f"<p>{sign}{html.escape(note.text)}</p>")
        lines.append("</figcaption>")
    return "\n".join([*lines, "</figure>", ""])


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; padding: 0 1em; max-width: 72em; color: #222; }}
.cmbench-table {{ margin: 0 0 3em; overflow-x: auto; }}
table {{ border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; }}
caption {{ text-align: left; font-weight: bold; padding-bottom: .4em; }}
th, td {{ padding: .15em .7em; text-align: left; font-weight: normal; white-space: nowrap; }}
thead th, tbody .group th {{ font-weight: bold; }}
tbody {{ border-top: 1px solid; }}
.figure, thead th:nth-child(n + 2) {{ text-align: right; font-variant-numeric: tabular-nums; }}
sup {{ line-height: 0; }}
cite {{ font-style: normal; color: #666; }}
.notes p {{ margin: .2em 0; font-size: .9em; }}
</style>
</head>
<body>
{body}</body>
</html>
"""

_TEXT: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": _markdown,
    "csv": _csv,
    "html": _html,
    "json": _json,
}
FORMATS = ("rich", "md", "csv", "latex", "html", "json")
"""The formats that :func:`render` knows."""
