"""Two processes at one piece of work: no shard is made twice, none is left out, and the result is that of one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import SETTINGS

from cmbench import records
from cmbench.data.digits import DIGITS
from cmbench.sharing import claim, share

# Waits until the other process is ready too, then runs a command whose shards take a while, and says which it made.
PROCESS = """
import sys, time
from pathlib import Path
from cmbench import benchmark, scoring
from cmbench.cli import main
from cmbench.metrics.engine import Engine
me, others, pause, *words = sys.argv[1:]
save = Engine.save
def slow(self, shard, path):
    Path(me + ".busy").touch()
    time.sleep(float(pause))
    save(self, shard, path)
    if path.parent.parent.name == "shards":
        with open(me + ".made", "a") as file:
            print(path.name, file=file)
Engine.save = slow
scoring.SHARD = 64
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


def made(me: Path) -> list[str]:
    path = me.with_name(me.name + ".made")
    return path.read_text().split() if path.exists() else []


def two(folder: Path, *words: object) -> tuple[list[str], list[str]]:
    """Run a command in two processes at once: the shards that each has made."""
    names = [folder / "one", folder / "other"]
    running = [start(me, names, 0.2, *words) for me in names]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return made(names[0]), made(names[1])


def the_record(out: Path) -> dict[str, object]:
    """All of the only record but its cost and circumstances."""
    (record,) = records.read(out)
    return {k: v for k, v in record.to_json().items() if k not in ("cost", "environment")}


def nothing_is_left(out: Path) -> None:
    assert not (out / "locks").exists()
    assert not list((out / "shards").iterdir())


RUN = (
    "run",
    "--method",
    "ddim",
    "--nfe",
    2,
    "--set",
    *SETTINGS,
    "--device",
    "cpu",
    "--offline",
    "--samples",
    400,
)


@pytest.mark.slow
def test_two_runs_share_the_training_and_the_shards(tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    one, other = two(tmp_path, *RUN, "--out", out)
    assert sorted(one + other) == [f"{number:05d}.npz" for number in range(10)]
    assert one and other
    assert len(list((out / "checkpoints").iterdir())) == 1
    single = start(tmp_path / "single", [tmp_path / "single"], 0, *RUN, "--out", alone)
    assert single.wait(timeout=300) == 0 and len(made(tmp_path / "single")) == 10
    assert the_record(out) == the_record(alone)
    nothing_is_left(out)


@pytest.mark.slow
def test_two_scorings_share_the_shards_and_the_reference(tmp_path: Path) -> None:
    digits = DIGITS.load(None, False).read(np.arange(640)).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "samples.npz", arr_0=np.roll(digits, 1, axis=1))
    words = (
        "score",
        tmp_path / "samples.npz",
        "-d",
        "digits",
        "--label",
        "x",
        "--nfe",
        1,
        "--offline",
        "--out",
    )
    one, other = two(tmp_path, *words, tmp_path / "out")
    assert sorted(one + other) == [f"{number:05d}.npz" for number in range(10)]
    assert one and other
    single = start(tmp_path / "single", [tmp_path / "single"], 0, *words, tmp_path / "alone")
    assert single.wait(timeout=300) == 0
    assert the_record(tmp_path / "out") == the_record(tmp_path / "alone")
    nothing_is_left(tmp_path / "out")


@pytest.mark.slow
def test_what_a_killed_process_had_claimed_is_made_by_the_other(tmp_path: Path) -> None:
    digits = DIGITS.load(None, False).read(np.arange(200)).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "samples.npz", arr_0=digits)
    words = (
        "score",
        tmp_path / "samples.npz",
        "-d",
        "digits",
        "--label",
        "x",
        "--nfe",
        1,
        "--offline",
        "--out",
    )
    build = start(
        tmp_path / "alone", [tmp_path / "alone"], 0, *words, tmp_path / "whole"
    )  # the reference as well
    assert build.wait(timeout=300) == 0
    stuck = start(tmp_path / "stuck", [tmp_path / "stuck"], 1000, *words, tmp_path / "out")
    while not (tmp_path / "stuck.busy").exists():
        assert stuck.poll() is None
        time.sleep(0.05)
    heir = start(tmp_path / "heir", [tmp_path / "heir"], 0, *words, tmp_path / "out")
    while len(made(tmp_path / "heir")) < 3:
        assert heir.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    assert heir.poll() is None and not records.read(tmp_path / "out")  # it waits for the stuck one
    stuck.kill()
    assert heir.wait(timeout=300) == 0
    assert sorted(made(tmp_path / "heir")) == [f"{number:05d}.npz" for number in range(4)]
    assert the_record(tmp_path / "out") == the_record(tmp_path / "whole")
    nothing_is_left(tmp_path / "out")


def test_a_claim_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a.lock"
    with claim(path, wait=False) as mine:
        assert mine
        with claim(path, wait=False) as again:
            assert not again
        with claim(path.with_name("b.lock"), wait=False) as other:
            assert other
        assert path.exists()
    assert not path.parent.exists()
    with claim(path, wait=True) as mine:
        assert mine


def test_a_failure_frees_the_claim(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "a.lock", wait=True):
        raise KeyboardInterrupt
    with claim(tmp_path / "a.lock", wait=False) as mine:
        assert mine


def test_only_what_is_missing_is_made_and_nothing_once_all_is_finished(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    paths[2].touch()
    done: list[int] = []

    def make(number: int) -> None:
        done.append(number)
        paths[number].write_text(json.dumps(number))

    share(paths, make, tmp_path / "work", lambda: len(done) == 3)
    assert done == [0, 1, 3]
    share(paths, make, tmp_path / "work", lambda: False)
    assert done == [0, 1, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", "3", "4"]
