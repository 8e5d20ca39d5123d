"""The command `experiment`: lists, runs a user's own file, and shares it between two processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Commands
from tiny_experiment import records_of
from tiny_runs import SETTINGS

from cmbench.experiments import manifest

MINE = """
title = "Mine"
x = "step"
milestones = [10, 20]
settings.cd.fit.schedule = "constant"
[[arms]]
name = "l1"
label = "L1"
method = "cd"
settings.metric = "l1"
[[arms]]
name = "l2"
label = "L2"
method = "cd"
"""
BAD = """
[[arms]]
name = "bad"
label = "Bad"
method = "cd"
settings.fit.learning_rate = 1e30
"""
OPTIONS = ("--samples", 60, "--device", "cpu", "--offline", "--set", *SETTINGS)


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "100")
    return Commands(capsys)


def test_without_a_name_it_lists_what_there_is(cmbench: Commands):
    names = [entry["name"] for entry in json.loads(cmbench("experiment", "--json").out)]
    assert names == ["fig3a", "fig3b", "fig3c", "fig3d", "fig4", "table1", "table2"]
    shown = cmbench("experiment").out
    assert all(name in shown for name in names)


def test_a_typo_is_answered_in_one_line(cmbench: Commands):
    assert "did you mean 'fig3a'" in cmbench("experiment", "fig3aa").error


def test_editing_is_an_experiment_with_an_engine_of_its_own(cmbench: Commands, tmp_path: Path):
    assert "editing" in cmbench("experiment").out
    refused = cmbench("experiment", "editing", "--protocol", "digits")
    assert refused.status == 2 and "--protocol" in refused.error
    result = cmbench(
        "experiment", "editing", "--checkpoint", tmp_path / "none.safetensors", "--out", tmp_path / "out"
    )
    assert result.status and "none.safetensors" in result.error


@pytest.mark.slow
def test_a_file_of_ones_own_is_run_and_shown_and_a_failing_arm_ends_with_status_one(
    cmbench: Commands, tmp_path: Path
):
    (tmp_path / "mine.toml").write_text(MINE + BAD)
    words = ("experiment", tmp_path / "mine.toml", "--out", tmp_path / "out")
    result = cmbench(*words, *OPTIONS)
    assert result.status == 1 and result.error.startswith("1 parts of mine could not be made")
    made = manifest.read(tmp_path / "out", "mine", "digits")
    assert made and [len(arm.points) for arm in made.arms] == [2, 2, 0]
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()}
    values = [f"{point.read(tmp_path / 'out').metrics['fid'].value:.4g}" for point in made.arms[0].points]
    assert rows["L1"] == values and rows["Bad"] == ["-", "-"]
    (tmp_path / "mine.toml").write_text(MINE)
    again = cmbench(*words, *OPTIONS, "--json")
    assert again.status == 0
    assert manifest.Manifest.from_json(json.loads(again.out)).arms == made.arms[:2]


# Waits until the other process is ready too, and says what it has trained and measured; each training takes a while.
PROCESS = """
import sys, time
from pathlib import Path
from cmbench import records
from cmbench.cli import main
from cmbench.workshop import Workshop
me, others, pause, *words = sys.argv[1:]
train, write = Workshop._train, records.write
def say(what):
    with open(me + ".made", "a") as file:
        print(what, file=file)
def slow(self, need, *args, **more):
    Path(me + ".busy").touch()
    time.sleep(float(pause))
    made = train(self, need, *args, **more)  # or Busy: the other process is training its teacher
    say("train " + need.method.name + " " + need.recipe.__dict__.get("metric", ""))
    return made
def told(out, record):
    say("record " + record.key)
    return write(out, record)
Workshop._train, records.write = slow, told
Path(me).touch()
while not all(map(Path.exists, map(Path, others.split(",")))):
    time.sleep(0.01)
main(words)
"""


def start(me: Path, others: list[Path], pause: float, *words: object) -> subprocess.Popen[str]:
    given = [me, ",".join(map(str, others)), pause, *words]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, given)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def said(me: Path) -> list[str]:
    path = me.with_name(me.name + ".made")
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_two_processes_share_it_with_the_records_of_one(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE)
    words = ("experiment", tmp_path / "mine.toml", "--seed", 0, 1, *OPTIONS, "--out")
    names = [tmp_path / "one", tmp_path / "other"]
    running = [start(me, names, 1, *words, tmp_path / "out") for me in names]
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    single = start(tmp_path / "single", [tmp_path / "single"], 0, *words, tmp_path / "alone")
    assert single.wait(timeout=600) == 0
    both = [line for me in names for line in said(me)]
    assert sorted(both) == sorted(said(tmp_path / "single"))  # nothing twice, nothing left out
    assert all(any(line.startswith("train cd") for line in said(me)) for me in names)
    shared, alone = (manifest.read(tmp_path / out, "mine", "digits") for out in ("out", "alone"))
    assert shared and shared == alone
    assert records_of(shared, tmp_path / "out") == records_of(shared, tmp_path / "alone")
    assert not (tmp_path / "out" / "locks").exists()


@pytest.mark.slow
def test_what_a_killed_process_was_training_is_finished_by_the_other(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE)
    words = ("experiment", tmp_path / "mine.toml", *OPTIONS, "--out")
    single = start(tmp_path / "single", [tmp_path / "single"], 0, *words, tmp_path / "alone")
    assert single.wait(timeout=600) == 0
    stuck = start(tmp_path / "stuck", [tmp_path / "stuck"], 1000, *words, tmp_path / "out")
    while not (tmp_path / "stuck.busy").exists():
        assert stuck.poll() is None
        time.sleep(0.05)
    heir = start(tmp_path / "heir", [tmp_path / "heir"], 0, *words, tmp_path / "out")
    time.sleep(3)
    assert heir.poll() is None
    stuck.kill()
    stuck.communicate()
    assert heir.wait(timeout=600) == 0
    shared, alone = (manifest.read(tmp_path / out, "mine", "digits") for out in ("out", "alone"))
    assert shared and shared == alone
    assert records_of(shared, tmp_path / "out") == records_of(shared, tmp_path / "alone")
