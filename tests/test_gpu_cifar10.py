"""The script for one GPU, on a CPU and a CIFAR-10 of 40 images: what its time box stops ends as if it had not been."""

import faulthandler
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cmbench import checkpoints, records
from cmbench.data import cifar10
from scripts import gpu_cifar10

N = 8  # images a batch file, in place of 10,000
SMALL = (
    "network.channels=8", "network.multipliers=[1,2]", "shard=10", "batch_size=10", "pd.start=2",
    *(f"{name}.fit.batch_size=4" for name in gpu_cifar10.MEASURED),
    *(f"{name}.fit.checkpoint_every=5" for name in gpu_cifar10.MEASURED),
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five small batch files."""
    monkeypatch.setattr(cifar10, "RECORDS", N)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)  # it would end pytest
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for batch in range(1, 6):
        rows = np.concatenate([rng.integers(0, 10, (N, 1)), rng.integers(0, 256, (N, 3072))], axis=1)
        (folder / f"data_batch_{batch}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    return folder


def call(data: Path, out: Path, minutes: float, *steps: str, names: tuple[str, ...] = ("cd",)) -> int:
    words = ["--data", data, "--out", out, "--preset", "smoke", "--minutes", minutes, "--device", "cpu"]
    words += ["--samples", 20, "--methods", *names, "--set", *SMALL, *steps]
    return gpu_cifar10.main([str(word) for word in words])


def hashes(out: Path) -> dict[str, str]:
    return {path.name: checkpoints.load(path).sha256 for path in (out / "checkpoints").glob("*.safetensors")}


@pytest.mark.slow
def test_calls_that_run_out_of_time_end_as_one_that_does_not(data, tmp_path, capsys, monkeypatch):
    """The alarm comes at every second report of a training, between two states, and so in each of several calls."""
    steps = ("edm.fit.steps=60", "cd.fit.steps=40")
    assert call(data, tmp_path / "whole", 60, *steps) == 0
    reports = 0

    def alarming(_title: str):
        def report(_progress) -> None:
            nonlocal reports
            reports += 1
            if reports % 2 == 0:
                signal.raise_signal(signal.SIGALRM)

        return report

    monkeypatch.setattr(gpu_cifar10, "training", alarming)
    statuses = [call(data, tmp_path / "parts", 60, *steps)]
    assert "train edm from step 35" in capsys.readouterr().out
    while statuses[-1] == gpu_cifar10.AGAIN:
        reports = 0
        statuses.append(call(data, tmp_path / "parts", 60, *steps))
    assert statuses == [gpu_cifar10.AGAIN] * 4 + [0]
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    for one, other in zip(records.read(tmp_path / "parts"), records.read(tmp_path / "whole"), strict=True):
        assert one.metrics == other.metrics


def test_the_clock_ends_a_call(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_cifar10, "work", lambda *_: time.sleep(600))
    assert call(data, tmp_path / "out", 0.05) == gpu_cifar10.AGAIN
    assert "the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.slow
def test_all_methods_are_measured_and_collected(data, tmp_path, capsys):
    out = tmp_path / "out"
    names = tuple(gpu_cifar10.MEASURED)
    steps = [f"{name}.fit.steps=2" for name in names]
    assert call(data, out, 60, *steps, names=names) == 0
    found = {(record.method, record.nfe) for record in records.read(out)}
    assert found == {(name, nfe) for name, counts in gpu_cifar10.MEASURED.items() for nfe in counts}
    assert capsys.readouterr().out.count("done: ") == len(found)

    small = sorted((out / "collected").glob("*.safetensors"))
    assert len(small) == 6  # of PD one for each NFE
    for path in small:
        kept, whole = checkpoints.load(path), checkpoints.load(out / "checkpoints" / path.name)
        assert kept.header == replace(whole.header, notes=(*whole.header.notes, checkpoints.ROUNDED))
        halved, full = kept.network().state_dict(), whole.network().state_dict()
        for name, value in full.items():
            assert (halved[name] - value).abs().max() <= value.abs().max() / 256
    with tarfile.open(out / "collected" / "records.tar.gz") as archive:
        inside = [Path(name).name for name in archive.getnames() if name.startswith("runs/")]
    assert sorted(inside) == sorted(path.name for path in (out / "runs").iterdir())

    # on another machine, the teacher that was carried away stands in for the training
    teacher = next(path for path in small if "-edm-" in path.name)
    assert call(data, tmp_path / "other", 60, *steps, "--checkpoint", str(teacher)) == 0
    assert not list((tmp_path / "other" / "checkpoints").glob("*-edm-*"))


@pytest.mark.slow
def test_the_preset_compiles_each_kind_of_evaluation_once(data, tmp_path, monkeypatch):
    """The preset itself, of a small size: bf16, compiled networks, all methods in one process.

    Student, student without gradients, teacher, target network, and the batch size of the teacher's own training: five
    graphs serve eleven networks. Past eight, torch would go on without compiling.
    """
    counter, original = CompileCounterWithBackend("eager"), torch.compile
    networks = []

    def count(call, **given):
        networks.append(call.__self__)
        return original(call, backend=counter, dynamic=given["dynamic"])

    monkeypatch.setattr(torch, "compile", count)
    monkeypatch.setattr(gpu_cifar10, "work", lambda sweep, plan: sweep.workshop.ensure(plan.need) is None)
    torch.compiler.reset()
    words = ["--data", data, "--out", tmp_path / "out", "--device", "cpu", "--set", "network.channels=8"]
    words += ["network.blocks=1", "pd.start=2", "edm.fit.batch_size=8"]
    words += [f"{name}.fit.batch_size=4" for name in gpu_cifar10.MEASURED if name != "edm"]
    words += [f"{name}.fit.steps=2" for name in gpu_cifar10.MEASURED]
    assert gpu_cifar10.main([str(word) for word in words]) == 0
    assert counter.frame_count == 5 < torch._dynamo.config.recompile_limit
    assert len(networks) == 11


def test_what_is_left_is_said_and_wrong_use_too(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(gpu_cifar10, "work", interrupt)
    assert call(data, out, 60) == gpu_cifar10.AGAIN
    assert "left: CD, NFE 1, seed 0: train edm, train cd, sample and measure" in capsys.readouterr().out
    assert call(data, out, 60, "cd.pionts=3") == 2
    assert "did you mean 'points'?" in capsys.readouterr().out


def interrupt(*_: object) -> bool:
    raise KeyboardInterrupt
