"""The manifest of an experiment: written, read again, and refused where it is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmbench.errors import WorkError
from cmbench.experiments import manifest
from cmbench.experiments.manifest import Arm, Manifest, Point

POINTS = (
    Point(10, 1, 0, "experiments/runs/digits-cd-nfe1-seed0-step10-0123456789abcdef.json"),
    Point(None, 2, 1, "runs/digits-cd-nfe2-seed1-fedcba9876543210.json"),
)
MADE = Manifest(
    "fig3a", "Metric functions in CD", "Figure 3 (a)", "digits", "step", "fid",
    (
        Arm("l1", "ℓ1", "cd", {"metric": "l1", "fit": {"steps": 3}}, POINTS, "a note", ("seed 1: it diverged",)),
        Arm("l2", "ℓ2", "cd"),
    ),
    {"samples": 100, "milestones": [10]},
)  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path):
    where = manifest.write(tmp_path, MADE)
    assert where == tmp_path / "experiments" / "fig3a-digits.json"
    assert manifest.read(tmp_path, "fig3a", "digits") == MADE
    assert manifest.read(tmp_path, "fig3a", "mnist") is None
    assert "ℓ1" in where.read_text()
    assert json.loads(where.read_text())["arms"][1].keys() == {
        "name",
        "label",
        "method",
        "settings",
        "points",
    }


def test_all_are_read_in_order_without_the_results_of_editing(tmp_path: Path):
    assert manifest.read_all(tmp_path) == []
    other = replace(MADE, name="fig3b")
    for one in (other, MADE):
        manifest.write(tmp_path, one)
    (tmp_path / "experiments" / "editing-digits.json").write_text("{}")
    (tmp_path / "experiments" / "runs").mkdir()
    assert manifest.read_all(tmp_path) == [MADE, other]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "{",
        lambda data: json.dumps([]),
        lambda data: json.dumps({**data, "schema": 2}),
        lambda data: json.dumps({**data, "x": "fid"}),
        lambda data: json.dumps({**data, "colour": "red"}),
        lambda data: json.dumps({**data, "arms": [{"name": "l1"}]}),
        lambda data: json.dumps({k: v for k, v in data.items() if k != "metric"}),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage):
    where = manifest.write(tmp_path, MADE)
    where.write_text(damage(MADE.to_json()))
    with pytest.raises(WorkError, match=r"fig3a-digits\.json is not a readable manifest"):
        manifest.read(tmp_path, "fig3a", "digits")
