"""`cmbench list`, `doctor`, `table` and `figure`: what they print and draw."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cmbench import console

ROOT = Path(__file__).parents[2]


# --- lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("methods", {"cd", "ct", "edm", "ddim", "pd"}),
        ("datasets", {"digits", "mnist", "cifar10", "imagenet64", "lsun-bedroom", "lsun-cat", "images"}),
        ("protocols", {"cm-cifar10", "adm", "edm", "torch-fidelity", "digits"}),
    ],
)
def test_lists(cmbench, what: str, wanted: set[str]):
    rows = json.loads(cmbench("list", what, "--json").out)
    assert {row["name"] for row in rows} >= wanted
    shown = cmbench("list", what).out
    assert all(name in shown for name in wanted)


def test_list_of_recipes(cmbench):
    rows = json.loads(cmbench("list", "recipes", "--json").out)
    assert {"data set": "cifar10", "method": "cd", "presets": "smoke, quick, gpu, paper, released"} in rows


def test_json_is_json_where_colours_are_forced(cmbench, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(console, "out", Console(force_terminal=True))
    json.loads(cmbench("list", "--json").out)
    json.loads(cmbench("doctor", "--json").out)


def test_doctor_says_what_is_there_and_how_to_get_the_rest(cmbench, cache):
    findings = {(f["topic"], f["item"]): f for f in json.loads(cmbench("doctor", "--json").out)}
    assert findings["package", "torch"]["state"] == "ok"
    assert findings["device", "cpu"]["state"] == "ok"
    assert findings["data set", "digits"]["state"] == "ok"
    assert findings["data set", "cifar10"]["state"] == "missing"
    assert findings["data set", "cifar10"]["detail"]
    assert str(cache) in findings["folder", "cache"]["detail"]
    assert findings["weights", "digits-cnn"]["state"] == "ok"
    assert all(f["state"] in ("ok", "missing", "note") and f["detail"] for f in findings.values())
    assert "digits" in cmbench("doctor").out


# --- tables and figures -------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "name"), [(1, "table1_cifar10.csv"), (2, "table2_imagenet64_lsun256.csv")])
def test_published_tables_are_the_files_cell_by_cell(cmbench, paper: int, name: str):
    made = cmbench("table", "--published", "--paper", str(paper), "--format", "csv")
    assert made.status == 0
    shown = list(csv.DictReader(io.StringIO(made.out)))
    with (ROOT / "results" / "published" / name).open(newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    columns = [c for c in ("method", "nfe", "fid", "is", "precision", "recall") if c in stored[0]]
    assert set(columns) <= set(shown[0])
    assert [[row[c] for c in columns] for row in shown] == [[row[c] for c in columns] for row in stored]


def test_published_tables_in_every_format(cmbench):
    for format in ("rich", "md", "csv", "latex", "html", "json"):
        made = cmbench("table", "--published", "--paper", "1", "--format", format)
        assert made.status == 0
        assert "4.67" in made.out
        if format == "json":
            json.loads(made.out)


def test_table_of_records(cmbench, done):
    made = cmbench("table", "--out", done, "--format", "csv")
    assert made.status == 0
    rows = list(csv.DictReader(io.StringIO(made.out)))
    measured = [(row["method"], row["nfe"]) for row in rows if row["method"] in ("CD", "DDIM")]
    assert sorted(measured) == [("CD", "1"), ("CD", "2"), ("DDIM", "1"), ("DDIM", "2")]  # seeds share a row
    json.loads(cmbench("table", "--out", done, "--format", "json").out)


def test_table_without_records_says_how_to_make_some_on_stderr(cmbench, tmp_path):
    made = cmbench("table", "--out", tmp_path)
    assert (made.status, made.out) == (0, "")
    assert "cmbench run" in made.err


def test_figures(cmbench, done):
    for words in (["figure", "nfe"], ["figure", "pareto"], ["figure", "samples", "--seed", "1"]):
        made = cmbench(*words, "--out", done)
        assert made.status == 0
        paths = [Path(line) for line in made.out.splitlines()]
        assert {path.suffix for path in paths} == {".png", ".pdf", ".svg"}
        for path in paths:
            assert path.stat().st_size > 1000
            if path.suffix == ".png":
                assert Image.open(path).size > (100, 100)


def test_records_are_tabled_without_torch(done):
    code = (
        "import sys\nfrom cmbench.cli import main\ntry: main(['table', '--out', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\nprint('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    made = subprocess.run([sys.executable, "-c", code, str(done)], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "LIGHT"
