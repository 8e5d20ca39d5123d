import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from report_factory import record
from rich.console import Console

from cmbench.errors import UsageError
from cmbench.records import Metric
from cmbench.report import tables
from cmbench.report.compare import compare
from cmbench.report.latex import escape
from cmbench.report.layout import Table
from cmbench.report.render import FORMATS, render

NASTY = "50% of A&B_C #1 $x$ {y} ~z^2 \\n <b>|*"


def rich_table() -> Table:
    """Seeds, mixed sample counts, missing figures, counted NFE, later methods, nasty names."""
    records = [record("cd", 1, seed, {"fid": 3.5 + seed / 10, "is": 9.4}) for seed in range(3)]
    records += [record("pd", 2, 0, {"fid": 5.6, "is": Metric.missing(NASTY)}, samples=1_000)]
    records += [record("edm", 18, counted=35), record(NASTY, 1)]
    return tables.build(records, dataset="cifar10", columns=["fid", "is", "recall"], later=True)


def text(table: Table | list[Table], format: str, **options: bool) -> str:
    out = render(table, format, **options)
    assert isinstance(out, str) and out.endswith("\n")
    return out


def printed(table: Table, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width).print(render(table, "rich"))
    return out.getvalue()


def test_csv_parses_back_with_all_digits() -> None:
    rows = list(csv.DictReader(StringIO(text(rich_table(), "csv"))))
    (cd,) = [row for row in rows if row["method"] == "CD" and row["source"] == "measured"]
    assert (float(cd["fid"]), cd["n"], cd["nfe"]) == (pytest.approx(3.6), "3", "1")
    assert float(cd["fid_std"]) == pytest.approx(0.1)
    assert cd["protocol"] == "paper" and cd["samples"] == "50000"
    (paper,) = [row for row in rows if row["method"] == "CT" and row["nfe"] == "1"]
    assert (paper["fid"], paper["fid_std"], paper["source"], paper["n"]) == ("8.70", "", "published", "")
    assert any(row["method"] == NASTY.upper() for row in rows)


def test_csv_names_columns_of_other_features() -> None:
    own = record("cd", 1, titles={"fid": "FD (digits-cnn)"}, dataset="digits")
    several = [tables.build([own], dataset="digits"), tables.build([record("cd", 1)], dataset="cifar10")]
    rows = list(csv.DictReader(StringIO(text(several, "csv"))))
    (digits,) = [row for row in rows if row["dataset"] == "digits"]
    assert digits["fd_digits_cnn"] == "3.5" and digits["fid"] == ""


def test_json_parses_back() -> None:
    table = rich_table()
    rows = json.loads(text(table, "json"))
    assert len(rows) == len(list(table.rows()))
    (pd,) = [row for row in rows if row["method"] == "PD" and row["source"] == "measured"]
    assert pd["metrics"]["is"]["reason"] == NASTY and "value" not in pd["metrics"]["is"]
    assert pd["metrics"]["fid"]["value"] == 5.6 and pd["seeds"] == [0]
    (glow,) = [row for row in rows if row["method"] == "Glow"]
    assert glow["metrics"]["fid"] == {
        "title": "FID",
        "better": "lower",
        "value": 48.9,
        "text": "48.9",
        "best": False,
    }


def test_markdown_rows_have_the_cells_of_the_header() -> None:
    lines = [line for line in text(rich_table(), "md").splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert counts == {7}  # METHOD, NFE, three metrics, SOURCE
    assert "| CD (Song et al., 2023) | 2 | **2.93** | **9.75** |  | published |" in lines
    assert lines[1] == "| :-- | --: | --: | --: | --: | :-- |"


class Cells(HTMLParser):
    """Collects rows of cell texts, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_html_parses_back() -> None:
    parser = Cells()
    parser.feed(text(rich_table(), "html"))
    assert not parser.open
    assert parser.rows[0] == ["METHOD", "NFE ↓", "FID ↓", "IS ↑", "Rec. ↑", "SOURCE"]
    assert {len(row) for row in parser.rows} == {1, 6}
    assert any(row[0].startswith(NASTY.upper()) for row in parser.rows)
    assert '<tr class="published"><th scope="row">Glow' in text(rich_table(), "html")


def test_latex_escapes_what_latex_reads() -> None:
    assert escape("Grcić & Čeh, 100% _#$") == r"Grci\'{c} \& \v{C}eh, 100\% \_\#$\mathdollar$"
    assert escape("64 × 64 † ± ↓") == r"64 $\times$ 64 $\dagger$ $\pm$ $\downarrow$"
    assert escape("漢") == "?"
    everything = text([rich_table(), tables.build_published(2)], "latex")
    assert everything.isascii()
    assert everything.count("\\begin{tabular}") == everything.count("\\end{tabular}") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    several = [rich_table(), tables.build_published(1), tables.build_published(2)]
    several += compare([record("cd", 1), record("pd", 2)], "cifar10")
    (tmp_path / "tables.tex").write_text(text(several, "latex", standalone=True), encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").exists()
    assert "Overfull" not in done.stdout  # nothing reaches past the page


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on this machine")
def test_a_latex_table_is_set_right_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "tables.tex").write_text(text(tables.build_published(2), "latex", standalone=True))
    pages = []
    for _ in range(2):  # a longtable learns its widths in the first run
        command = ["pdflatex", "-interaction=nonstopmode", "tables.tex"]
        dated = os.environ | {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=dated)
        pages.append((tmp_path / "tables.pdf").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_terminal_fits_and_loses_no_figure(width: int) -> None:
    table = rich_table()
    out = printed(table, width)
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    for _, row in table.rows():
        for cell in row.cells:
            assert all(part in out for part in cell.text.split(" ± "))
    assert out.count("published") >= sum(row.source == "published" for _, row in table.rows())


def test_terminal_shows_references_where_there_is_room() -> None:
    table = tables.build_published(1)
    assert "(Song et al., 2023)" in printed(table, 100)
    assert "Song et al., 2023)" not in printed(table, 80)


def test_the_terminal_prints_brackets_as_they_are() -> None:
    made = record("[bold]", 1, titles={"fid": "[red]FD[/red]", "is": "IS [/]"})
    out = printed(tables.build([made], dataset="cifar10", published=()), 100)
    assert all(word in out for word in ("[BOLD]", "[red]FD[/red]", "IS [/]"))


def test_unknown_format() -> None:
    assert set(FORMATS) == {"rich", "md", "csv", "latex", "html", "json"}
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        render(tables.build_published(1), "latx")
