"""A results folder's tables and figures, made again from its records."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from experiment_factory import experiment
from report_factory import record

from cmbench import records
from cmbench.report.grid import preview_path, write_preview
from cmbench.report.regenerate import regenerate

PROGRAM = """
import sys
from pathlib import Path
from cmbench.report.regenerate import regenerate
made, skipped = regenerate(Path(sys.argv[1]))
print(len(made), len(skipped), "torch" in sys.modules)
"""


def fill(out: Path) -> None:
    for seed in (0, 1):
        for method, nfe, fid in (("cd", 1, 0.5), ("cd", 2, 0.4), ("ddim", 10, 0.6)):
            own = record(
                method, nfe, seed, {"fid": fid + seed / 50}, dataset="digits", titles={"fid": "FD-digits"}
            )
            records.write(out, own)
            write_preview(preview_path(out / "previews", own), np.full((9, 8, 8), 9 * nfe, np.uint8))
    records.write(out, record("cd", 4, dataset="mnist"))
    experiment(out, "fig3a", seeds=2)
    experiment(out, "fig3d", seeds=1)


def digests(out: Path) -> dict[str, str]:
    files = sorted(path for folder in ("tables", "figures") for path in (out / folder).iterdir())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_records_give_the_same_bytes_without_torch(tmp_path: Path) -> None:
    fill(tmp_path)
    found = []
    for seed in ("1", "2"):
        changed = os.environ | {
            "PYTHONHASHSEED": seed,
            "SOURCE_DATE_EPOCH": seed + "000000",
            "TZ": f"UTC+{seed}",
        }
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(command, env=changed, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == "False"
        found.append(digests(tmp_path))
    assert found[0] == found[1]
    names = {name.split(".")[0] for name in found[0]}
    assert names == {
        *("tables/table1", "tables/table2", "tables/digits", "tables/digits-compare", "tables/mnist"),
        *("figures/nfe-digits", "figures/pareto-digits", "figures/samples-digits"),
        *("figures/nfe-mnist", "figures/pareto-mnist"),
        *("figures/fig3a-digits", "figures/fig3d-digits", "figures/fig3-digits"),
    }
    assert {name.split(".")[1] for name in found[0]} == {"md", "tex", "csv", "html", "png", "pdf", "svg"}


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    experiment(tmp_path, "fig3b", seeds=1)
    records.write(tmp_path, record("cd", 4, dataset="mnist"))
    _, skipped = regenerate(tmp_path)
    assert [line.split(":")[0] for line in skipped] == [
        "tables/mnist-compare",
        "figures/samples-mnist",
        "figures/fig3-digits lacks fig3a, fig3c, fig3d",
    ]
    _, skipped = regenerate(tmp_path / "empty")
    assert "no records" in skipped[0] and "no manifest" in skipped[1]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    cmbench, out = Commands(capsys), ["--out", str(tmp_path)]
    drawn = cmbench("figure", "fig3", *out)
    assert [Path(line).name for line in drawn.out.split()] == [
        f"fig3-digits.{end}" for end in ("png", "pdf", "svg")
    ]
    assert "without fig3b, fig3c" in drawn.err
    assert "fig3a-digits.svg" in cmbench("figure", "experiment", "fig3a", "-d", "digits", *out).out
    assert "pareto-digits.pdf" in cmbench("figure", "pareto", "-d", "digits", *out).out
    assert "cd-digits.png" in cmbench("figure", "nfe", "-d", "digits", "-m", "cd", "--name", "cd", *out).out
    chosen = ["-d", "digits", "--nfe", "1", "2", "--name", "few", "--seed", "1"]
    assert "few-digits.png" in cmbench("figure", "samples", *chosen, *out).out
    missing = cmbench("figure", "fig4", *out)
    assert missing.status == 2 and "cmbench experiment fig4" in missing.err
    assert cmbench("figure", "nfe", "-m", "cdd", *out).status == 2
    assert cmbench("regenerate", "--out", str(tmp_path / "nowhere")).status == 2
