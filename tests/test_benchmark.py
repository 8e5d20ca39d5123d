"""The sweep: what is stored is not computed again, what is interrupted goes on, what does not count changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SAMPLES, SETTINGS, files, run, sweep

from cmbench import methods, records
from cmbench.benchmark import Failure, Outcome, Plan
from cmbench.training import state as states
from cmbench.workshop import Workshop


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="module")
def done(tmp_path_factory, shared_cache):
    """A finished sweep of four methods: its folder and its outcomes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(shared_cache))
        out = tmp_path_factory.mktemp("done")
        return out, run(sweep(out), ["cd", "ct", "ddim", "pd"], (1, 2))


def only(outcomes):
    (outcome,) = outcomes
    return outcome.record


def plan(out: Path, name: str = "cd", nfe: int = 1, seed: int = 0, *extra: str, **changes) -> Plan:
    (made,) = sweep(out, *extra, **changes).plans([methods.get(name)], [nfe], [seed])
    assert isinstance(made, Plan)
    return made


def comparable(record: records.Record) -> dict:
    """All of a record but its cost and its circumstances."""
    return {k: v for k, v in record.to_json().items() if k not in ("cost", "environment")}


def near(a: records.Record, b: records.Record) -> None:
    """Equal but for single grey levels that another order of additions rounds differently."""
    assert a.metrics.keys() == b.metrics.keys()
    for name, metric in a.metrics.items():
        if metric.value is not None:
            assert metric.value == pytest.approx(b.metrics[name].value, rel=0.02, abs=0.02), name


# --- records ---------------------------------------------------------------------------------------


def test_every_combination_has_its_record(done):
    out, outcomes = done
    assert [(o.record.method, o.record.nfe) for o in outcomes] == [
        (method, nfe) for method in ("cd", "ct", "ddim", "pd") for nfe in (1, 2)
    ]
    assert all(o.computed for o in outcomes)
    assert len(list((out / "runs").iterdir())) == 8
    assert len({o.record.key for o in outcomes}) == 8


def test_records_say_what_was_measured(done):
    out, outcomes = done
    for outcome in outcomes:
        record = outcome.record
        assert record.nfe_counted == record.nfe
        assert record.samples == SAMPLES
        assert record.dataset == "digits"
        assert record.metrics["fid"].value > 0
        assert record.metrics["is"].value >= 1
        assert record.label == methods.get(record.method).label
        assert record.cost["images_per_second"] > 0
        assert record.cost["training_seconds"] > 0
        assert records.find(out, record.key) == record
        assert json.loads((records.record_path(out, record)).read_text())["identity"]["nfe"] == record.nfe


def test_cost_of_training_counts_the_teachers(done):
    from cmbench import checkpoints

    out, outcomes = done
    seconds = {
        (c.header.method, c.header.variant): c.header.seconds
        for c in map(checkpoints.load, (out / "checkpoints").iterdir())
    }
    cost = {(o.record.method, o.record.nfe): o.record.cost["training_seconds"] for o in outcomes}
    edm = seconds["edm", ""]
    assert cost["ddim", 1] == pytest.approx(edm, abs=0.01)
    assert cost["ct", 1] == pytest.approx(seconds["ct", ""], abs=0.01)
    assert cost["cd", 1] == pytest.approx(seconds["cd", ""] + edm, abs=0.11)
    assert cost["pd", 2] == pytest.approx(seconds["pd", "2"] + seconds["pd", "4"] + edm, abs=0.11)


def test_nothing_half_done_is_left_behind(done):
    out, outcomes = done
    assert not list(out.glob("shards/*"))
    assert not list(out.rglob("*.state"))
    assert not list(out.rglob(".*"))
    assert len(list((out / "previews").iterdir())) == len(outcomes)


def test_a_second_identical_run_computes_nothing(done):
    out, outcomes = done
    before = files(out)
    again = run(
        sweep(
            out,
            begin=lambda title: pytest.fail(f"trains {title}"),
            on_samples=lambda *_: pytest.fail("samples"),
        ),
        ["cd", "ct", "ddim", "pd"],
        (1, 2),
    )
    assert not any(o.computed for o in again)
    assert [o.record for o in again] == [o.record for o in outcomes]
    assert files(out) == before


def test_results_are_a_function_of_the_seed(done, tmp_path):
    first = {(o.record.method, o.record.nfe): o.record for o in done[1]}
    again = run(sweep(tmp_path), ["ddim", "cd"], (2, 1), (0, 1))  # in another order, in another folder
    by = {(o.record.method, o.record.nfe, o.record.seed): o.record for o in again}
    for method in ("cd", "ddim"):  # ddim's network is the same for both seeds, its samples are not
        for nfe in (1, 2):
            assert comparable(by[method, nfe, 0]) == comparable(first[method, nfe])
            assert by[method, nfe, 1].metrics != by[method, nfe, 0].metrics


def test_force_computes_again_and_trains_its_network_once(done, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    before = files(out)
    titles = []
    again = run(
        sweep(out, begin=lambda title: titles.append(title) or (lambda _: None)),
        ["cd", "ddim"],
        (1, 2),
        force=True,
    )
    assert all(o.computed for o in again)
    assert titles == [
        "CD on Digits, seed 0"
    ]  # neither the teacher nor, for the second NFE, the student again
    first = {(o.record.method, o.record.nfe): o.record for o in done[1]}
    for outcome in again:
        assert comparable(outcome.record) == comparable(first[outcome.record.method, outcome.record.nfe])
    after = files(out)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert any("checkpoints/digits-cd" in name for name in changed)
    assert not any("-edm-" in name or "-ct-" in name or "-pd-" in name for name in changed)


# --- identities ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "cd.points=11",
        "edm.fit.steps=41",
        "network.width=24",
        "noise.sigma_max=70",
        "shard=50",
        "cd.taus.2=[1]",
    ],
)
def test_the_key_changes_with_every_setting_that_counts(tmp_path, setting: str):
    assert plan(tmp_path, "cd", 1, 0, setting).key != plan(tmp_path).key


def test_the_key_changes_with_method_nfe_seed_samples_and_protocol(tmp_path):
    keys = [
        plan(tmp_path).key,
        plan(tmp_path, "ct").key,
        plan(tmp_path, "cd", 2).key,
        plan(tmp_path, "cd", 1, 1).key,
        plan(tmp_path, "ddim", 1, 0).key,
        plan(tmp_path, "ddim", 1, 1).key,  # the network is the same, the samples are not
        plan(tmp_path, samples=99).key,
        plan(tmp_path, protocol="torch-fidelity").key,
        plan(tmp_path, precision="bf16").key,
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("setting", ["ct.s1=30", "pd.start=8", "cd.target_ema=0.0", "batch_size=7"])
def test_the_key_does_not_change_with_what_does_not_count(tmp_path, setting: str):
    assert plan(tmp_path, "cd", 1, 0, setting).key == plan(tmp_path).key


def test_runs_that_differ_in_seed_alone_share_their_training(tmp_path):
    a, b = (plan(tmp_path, "cd", 1, seed) for seed in (0, 1))
    assert a.identity["training"] == b.identity["training"]
    assert a.identity["checkpoint"] != b.identity["checkpoint"]
    assert plan(tmp_path, "cd", 1, 0, "cd.points=11").identity["training"] != a.identity["training"]
    assert plan(tmp_path, "cd", 1, 0, "edm.fit.steps=41").identity["training"] != a.identity["training"]


def test_what_a_method_cannot_do_is_said_and_the_rest_is_done(tmp_path):
    made = list(sweep(tmp_path).plans([methods.get("edm"), methods.get("pd")], [2, 3], [0]))
    assert made[0].startswith("edm at NFE 2 is left out: Heun takes an odd number")
    assert (made[1].method.name, made[1].nfe) == ("edm", 3)
    assert (made[2].method.name, made[2].nfe) == ("pd", 2)
    assert made[3].startswith("pd at NFE 3 is left out: students exist for powers of two up to 4")


# --- what must not move a result -------------------------------------------------------------------


def test_batch_size_moves_nothing(done, tmp_path):
    """cd at 2 draws noise inside the sampler."""
    out = done[0]
    again = only(run(sweep(out, batch_size=7), ["cd"], (2,)))  # same identity: stored
    stored = next(o.record for o in done[1] if (o.record.method, o.record.nfe) == ("cd", 2))
    assert again == stored
    computed = only(run(sweep(tmp_path, batch_size=7), ["cd"], (2,)))
    assert computed.key == stored.key
    near(computed, stored)


def test_shard_size_moves_nothing_but_the_last_digits(done, tmp_path):
    stored = next(o.record for o in done[1] if (o.record.method, o.record.nfe) == ("cd", 2))
    near(only(run(sweep(tmp_path, "shard=100"), ["cd"], (2,))), stored)


@pytest.mark.parametrize("stop_at", [20, 60, 100])
def test_interrupted_sampling_goes_on_where_it_stopped(done, tmp_path, stop_at: int):
    stored = next(o.record for o in done[1] if (o.record.method, o.record.nfe) == ("cd", 2))

    def stop(title: str, count: int, total: int) -> None:
        if count == stop_at:
            raise Killed

    with pytest.raises(Killed):
        run(sweep(tmp_path, batch_size=20, on_samples=stop), ["cd"], (2,))
    kept = sorted(p.name for p in (tmp_path / "shards").rglob("*.npz"))
    assert kept == [f"{n:05d}.npz" for n in range({20: 0, 60: 1, 100: 2}[stop_at])]
    assert records.read(tmp_path) == []

    sampled: list[int] = []
    again = run(
        sweep(tmp_path, batch_size=20, on_samples=lambda _t, n, _all: sampled.append(n)), ["cd"], (2,)
    )
    record = only(again)
    assert len(sampled) == len(set(sampled)) == 5 - 2 * len(kept)  # five batches, two to a shard, each once
    near(record, stored)
    uninterrupted = only(run(sweep(tmp_path / "whole", batch_size=20), ["cd"], (2,)))
    assert comparable(record) == comparable(uninterrupted)
    assert not list(tmp_path.glob("shards/*"))


def test_a_run_that_finds_every_shard_finished_counts_its_evaluations_all_the_same(tmp_path, monkeypatch):
    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(records, "write", stop)
        run(sweep(tmp_path), ["cd"], (2,))
    record = only(run(sweep(tmp_path), ["cd"], (2,)))
    assert record.nfe_counted == 2
    assert "images_per_second" not in record.cost
    whole = only(run(sweep(tmp_path / "whole"), ["cd"], (2,)))
    assert comparable(record) == comparable(whole)


def test_previews_are_the_first_samples(done):
    from PIL import Image

    from cmbench.sampling.export import tile

    out, outcomes = done
    record = outcomes[1].record
    picture = np.asarray(Image.open(out / "previews" / f"{record.key}.png"))
    assert picture.shape[:2] == tile(np.zeros((64, 8, 8, 1), np.uint8)).shape[:2]


# --- metrics that could not be computed ------------------------------------------------------------


def test_a_record_that_lacks_what_can_now_be_computed_is_computed_again(tmp_path):
    poor = sweep(tmp_path)
    poor.engine.missing["some-extractor"] = "its weights are not here"
    assert only(run(poor, ["ct"])).environment["missing"] == ["some-extractor"]
    poor = sweep(tmp_path)
    poor.engine.missing["some-extractor"] = "still not here"
    assert [o.computed for o in run(poor, ["ct"])] == [False]
    assert [o.computed for o in run(sweep(tmp_path), ["ct"])] == [True]
    assert [o.computed for o in run(sweep(tmp_path), ["ct"])] == [False]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_missing_weights_are_reported_not_guessed(tmp_path):
    record = only(run(sweep(tmp_path, protocol="torch-fidelity", samples=40), ["ct"]))
    assert {metric.value for metric in record.metrics.values()} == {None}
    assert all(metric.reason for metric in record.metrics.values())
    assert "inception-v3" in record.environment["missing"]


# --- the user's checkpoints ------------------------------------------------------------------------


def test_a_given_checkpoint_is_measured(done, tmp_path):
    out, outcomes = done
    cd = next((out / "checkpoints").glob("digits-cd-*"))
    record = only(run(sweep(tmp_path, checkpoint=[cd], begin=lambda t: pytest.fail(t)), ["cd"], (2,)))
    stored = next(o.record for o in outcomes if (o.record.method, o.record.nfe) == ("cd", 2))
    assert record.metrics == stored.metrics
    assert record.checkpoint == stored.checkpoint
    assert record.key != stored.key
    assert record.identity["checkpoint"] == f"file:{record.checkpoint}"


# --- several processes, several methods -----------------------------------------------------------


def test_a_method_that_fails_does_not_keep_the_others_from_being_made(tmp_path, monkeypatch):
    made = sweep(tmp_path, "cd.fit.learning_rate=1e12")
    trained = []
    monkeypatch.setattr(
        "cmbench.workshop.Workshop._train",
        lambda self, need, *rest, real=Workshop._train: (
            trained.append(need.method.name) or real(self, need, *rest)
        ),
    )
    plans = list(made.plans([methods.get("cd"), methods.get("ddim")], (1, 2), (0,)))
    results = list(made.run_all(plans))
    assert [type(result) for result in results] == [Failure, Failure, Outcome, Outcome]
    assert "diverged" in results[0].reason and results[1].reason == results[0].reason
    assert trained == ["cd", "edm"] or trained == ["edm", "cd"]  # not once more for the second NFE
    assert len(records.read(tmp_path)) == 2


@pytest.mark.slow
def test_two_processes_over_one_folder_share_the_work(tmp_path):
    words = [*command(tmp_path / "two", samples=400), "--seed", "0", "1", "2"]
    first, second = (
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    said = [process.communicate()[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    subprocess.run(
        [*command(tmp_path / "one", samples=400), "--seed", "0", "1", "2"], check=True, capture_output=True
    )
    ours, theirs = records.read(tmp_path / "two"), records.read(tmp_path / "one")
    assert [comparable(record) for record in ours] == [comparable(record) for record in theirs]


# --- kill -9 ---------------------------------------------------------------------------------------


def command(out: Path, samples: int = 1500) -> list[str]:
    settings = [s for s in SETTINGS if s not in ("shard=40", "cd.fit.steps=40")]
    return [
        sys.executable, "-m", "cmbench", "run", "--method", "cd", "--nfe", "4", "--samples", str(samples),
        "--batch-size", "50", "--offline", "--device", "cpu", "--out", str(out),
        "--set", *settings, "shard=100", "cd.fit.steps=600",
    ]  # fmt: skip


def kill_when(out: Path, seen) -> None:
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_in_training_and_in_sampling_changes_nothing(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)

    kill_when(out, lambda: list(out.glob("checkpoints/*-cd-*.state")))
    (state,) = out.glob("checkpoints/*-cd-*.state")
    assert 0 < states.load(state, torch.device("cpu"))["step"] < 600  # written whole, and before the end
    assert not list(out.glob("checkpoints/digits-cd-*.safetensors"))

    kill_when(out, lambda: list(out.glob("shards/*/00001.npz")))
    assert list(out.glob("checkpoints/digits-cd-*.safetensors"))
    assert not list(out.glob("runs/*.json"))

    subprocess.run(command(out), check=True, capture_output=True)
    (ours,), (theirs,) = records.read(out), records.read(whole)
    assert comparable(ours) == comparable(theirs)
    assert ours.checkpoint == theirs.checkpoint
    assert not list(out.glob("shards/*"))
    assert not list(out.rglob("*.state"))
