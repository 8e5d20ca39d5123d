"""The engine: nothing is made twice, what is interrupted goes on, and what fails fails alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_experiment import CONSTANT, MILESTONES, arm, experiment, prepare, records_of, stored
from tiny_runs import files, run, shop, sweep

from cmbench import checkpoints, methods, records
from cmbench.errors import UsageError
from cmbench.experiments import engine, manifest, recipe

CD = methods.get("cd")
SHIPPED = Path(__file__).parents[2] / "results" / "shipped"
TWO = experiment([arm("l1", metric="l1"), arm("l2"), arm("squared", metric="l2")])


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_cache):
    """Two trainings and three arms, never interrupted: the folder, the manifest, what was trained, what was sampled."""
    trained, sampled = [], []

    def begin(title: str):
        trained.append(title)
        return lambda _progress: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(shared_cache))
        out = tmp_path_factory.mktemp("whole")
        made = prepare(out, TWO, begin=begin, on_samples=lambda *what: sampled.append(what)).run()
    return out, made, trained, sampled


def weights(out: Path) -> dict[str, str]:
    """The networks along the trainings and at their ends, by name -> hash of their weights."""
    found = sorted(out.glob("**/checkpoints/*-cd-*.safetensors"))
    return {path.name: checkpoints.load(path).sha256 for path in found}


def test_every_arm_has_every_milestone_and_a_record_of_its_own_training(whole):
    out, made, *_ = whole
    assert [one.name for one in made.arms] == ["l1", "l2", "squared"]
    for one in made.arms:
        assert [(p.step, p.nfe, p.seed) for p in one.points] == [(step, 1, 0) for step in MILESTONES]
        for point in one.points:
            record = point.read(out)
            assert record.identity["step"] == point.step
            assert record.method == "cd" and record.metrics["fid"].value is not None
    assert manifest.read(out, "tiny", "digits") == made
    assert records.read(out) == []  # tables of the folder never show networks along a training


def test_arms_with_one_training_share_it_and_its_records(whole):
    out, made, trained, sampled = whole
    assert sorted(trained) == [
        "CD on Digits, seed 0", "CD on Digits, seed 0", "EDM on Digits, seed 0",
    ]  # fmt: skip
    l1, l2, squared = (one.points for one in made.arms)
    assert l2 == squared
    assert not {p.record for p in l1} & {p.record for p in l2}
    assert len(stored(out)) == 6
    finished = [title for title, done, total in sampled if title.startswith("CD") and done == total]
    assert len(finished) == 6


def test_what_is_done_is_neither_trained_nor_measured_again(whole):
    out, made, *_ = whole
    before = {name: when for name, when in files(out).items() if not name.endswith("tiny-digits.json")}
    again = prepare(
        out, TWO, begin=lambda title: pytest.fail(f"trains {title}"), on_samples=lambda *what: pytest.fail(str(what))
    )  # fmt: skip
    assert again.run() == made
    after = {name: when for name, when in files(out).items() if not name.endswith("tiny-digits.json")}
    assert after == before


def test_a_milestone_is_the_network_of_a_training_that_ends_there(whole, tmp_path: Path):
    out, *_ = whole
    made = shop(tmp_path, "cd.fit.schedule=constant", "cd.fit.steps=25")
    (tmp_path / "checkpoints").mkdir()
    for teacher in (out / "checkpoints").glob("*-edm-*"):
        shutil.copy(teacher, tmp_path / "checkpoints")
    ended = made.ensure(made.need(CD, 1, 0))
    longer = shop(out, "cd.fit.schedule=constant")
    along = longer.find_milestone(longer.need(CD, 1, 0), 25)
    end = longer.find(longer.need(CD, 1, 0))
    assert along and end
    a, b, c = (one.network().state_dict() for one in (ended, along, end))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    last = longer.find_milestone(longer.need(CD, 1, 0), 40)
    assert last
    d = last.network().state_dict()
    assert all(torch.equal(c[name], d[name]) for name in c)


@pytest.mark.parametrize("kill_at", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_in_a_training_and_started_again_is_as_if_it_had_not_been(whole, tmp_path: Path, kill_at: int):
    out, made, *_ = whole

    def begin(title: str):
        def report(progress) -> None:
            if title.startswith("CD") and progress.step == kill_at:
                raise Killed

        return report

    with pytest.raises(Killed):
        prepare(tmp_path, TWO, begin=begin).run()
    assert list((tmp_path / "checkpoints").glob("*.state"))
    kept = list((tmp_path / "experiments" / "checkpoints").iterdir())
    assert len(kept) == sum(step < kill_at for step in MILESTONES)
    steps: list[int] = []
    resumed = prepare(
        tmp_path, TWO, begin=lambda title: lambda p: steps.append(p.step) if title.startswith("CD") else None
    )
    again = resumed.run()
    assert steps[0] == (40 if kill_at == 40 else 20)
    assert again == replace(made, arms=again.arms) and again.arms == made.arms
    assert records_of(again, tmp_path) == records_of(made, out)
    assert weights(tmp_path) == weights(out)
    assert not list((tmp_path / "checkpoints").glob("*.state"))


def test_killed_between_two_measurements_only_the_missing_ones_are_made(whole, tmp_path: Path):
    out, made, *_ = whole
    shutil.copytree(out, tmp_path / "out")
    lost = made.arms[1].points[1]
    (tmp_path / "out" / lost.record).unlink()
    sampled: set[str] = set()
    again = prepare(
        tmp_path / "out", TWO, begin=lambda title: pytest.fail(f"trains {title}"),
        on_samples=lambda title, *_: sampled.add(title),
    ).run()  # fmt: skip
    assert sampled == {"CD, step 25, NFE 1, seed 0"}
    assert records_of(again, tmp_path / "out") == records_of(made, out)


@pytest.mark.slow
def test_an_interrupted_training_that_kept_no_milestones_starts_again(whole, tmp_path: Path):
    """`cmbench run` was killed at step 30 of this very training: the network after step 10 is gone."""
    out, made, *_ = whole

    def begin(title: str):
        def report(progress) -> None:
            if title.startswith("CD") and progress.step == 40:
                raise Killed

        return report

    plain = shop(tmp_path, "cd.fit.schedule=constant", begin=begin)
    with pytest.raises(Killed):
        plain.ensure(plain.need(CD, 1, 0))
    again = prepare(tmp_path, replace(TWO, arms=TWO.arms[1:2])).run()
    assert again.arms[0].points == made.arms[1].points
    assert weights(tmp_path).items() <= weights(out).items()


@pytest.mark.slow
def test_an_arm_that_fails_is_named_and_does_not_stop_the_others(whole, tmp_path: Path):
    out, made, *_ = whole
    lines: list[str] = []
    bad = arm("bad", fit={"learning_rate": 1e30})
    again = prepare(tmp_path, experiment([bad, arm("l1", metric="l1")]), tell=lines.append).run()
    failed, good = again.arms
    assert not failed.points
    (reason,) = failed.failures
    assert reason.startswith("seed 0: training diverged") and f"bad, {reason}" in lines
    assert good.failures == () and good.points == made.arms[0].points
    assert records_of(replace(again, arms=(good,)), tmp_path) == records_of(
        replace(made, arms=made.arms[:1]), out
    )


def test_what_was_measured_before_a_divergence_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss is NaN from step 30 on."""
    from cmbench.consistency.training import ConsistencyObjective

    loss = ConsistencyObjective.loss

    def diverging(self, network, x, labels, step, rng):
        value = loss(self, network, x, labels, step, rng)
        return value * float("nan") if step >= 30 else value

    monkeypatch.setattr(ConsistencyObjective, "loss", diverging)
    (only,) = prepare(tmp_path, experiment([arm("l2")])).run().arms
    assert [point.step for point in only.points] == [10, 25]
    assert len(only.failures) == 1 and "diverged" in only.failures[0]


@pytest.mark.slow
def test_a_later_seed_stands_beside_the_earlier_ones_unless_the_setup_is_another(whole, tmp_path: Path):
    out, made, *_ = whole
    shutil.copytree(out, tmp_path / "out")
    l2 = replace(TWO, arms=TWO.arms[1:2])
    second = prepare(tmp_path / "out", l2, seeds=[1]).run()
    assert [(p.seed, p.step) for p in second.arms[0].points] == [
        (seed, step) for seed in (0, 1) for step in MILESTONES
    ]
    assert second.arms[0].points[:3] == made.arms[1].points
    fewer = prepare(tmp_path / "out", l2, seeds=[1], samples=50).run()
    assert [(p.seed, p.step) for p in fewer.arms[0].points] == [(1, step) for step in MILESTONES]


def test_along_nfe_the_records_are_those_of_a_run(whole, tmp_path: Path):
    out, *_ = whole
    shutil.copytree(out / "checkpoints", tmp_path / "checkpoints")
    made = experiment([arm("cd"), arm("ddim", "ddim")], x="nfe", nfe=[1, 30])
    (done,) = run(sweep(tmp_path, "cd.fit.schedule=constant"), ["cd"])
    lines: list[str] = []
    sampled: set[str] = set()
    prepared = prepare(tmp_path, made, tell=lines.append, on_samples=lambda title, *_: sampled.add(title))
    cd, ddim = prepared.run().arms
    assert [(point.nfe, point.read(tmp_path).key) for point in cd.points] == [(1, done.record.key)]
    assert [point.nfe for point in ddim.points] == [1, 30]
    assert all(p.record.startswith("runs/") and p.step is None for p in (*cd.points, *ddim.points))
    assert lines[0].startswith("cd at NFE 30 is left out: ")
    assert sampled == {"DDIM, NFE 1, seed 0", "DDIM, NFE 30, seed 0"}


def test_the_table_of_the_digits_finds_what_has_been_measured():
    """Nothing is run: where the record of every row would be, one lies, but perhaps for seeds of 2,000 evaluations."""
    chosen = recipe.on(*recipe.load("table1"), "digits")
    from cmbench import session

    options = session.Options("digits", preset=chosen.preset, device="cpu", out=SHIPPED, download=False)
    workshop = session.open_workshop(options, under=chosen.settings)
    made = engine.Run(chosen, session.open_sweep(options, workshop), chosen.seeds)
    plans = [(unit, plan) for unit in made.units() for plan in unit.plans]
    missing = [plan.title for unit, plan in plans if not unit.sweep.record_path(plan).exists()]
    assert set(missing) <= {"Score SDE, NFE 2000, seed 1", "Score SDE, NFE 2000, seed 2"}
    assert len(plans) == 84


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (experiment([arm("l2")], milestones=[10, 41]), "milestone 41, but arm l2 has a training of 40 steps"),
        (experiment([arm("ddim", "ddim")]), "arm ddim has no training"),
        (experiment([arm("x", metric="l3")]), "l3"),
        (experiment([arm("x", metrics="l1")]), "metrics"),
        (experiment([arm("x", "cdd")]), "did you mean 'cd'"),
        (experiment([arm("cd")], x="nfe", nfe=[30]), "none of its arms"),
    ],
)
def test_an_arm_that_makes_no_sense_is_named_before_any_work(
    tmp_path: Path, made: recipe.Experiment, message: str
):
    with pytest.raises(UsageError) as raised:
        prepare(tmp_path, made, begin=lambda title: pytest.fail(f"trains {title}")).run()
    assert message in str(raised.value)
    assert not files(tmp_path)


def test_a_checkpoint_of_the_user_has_no_milestones_and_one_that_serves_nothing_is_named(
    whole, tmp_path: Path
):
    out, *_ = whole
    student = checkpoints.load(next((out / "checkpoints").glob("*-cd-*")))
    with pytest.raises(UsageError, match="there are no milestones"):
        prepare(tmp_path, TWO, checkpoint=[student.path]).run()
    consistency = experiment([arm("ct", "ct")], settings={})
    with pytest.raises(UsageError, match="no method asked for uses a network of 'cd'"):
        prepare(tmp_path, consistency, checkpoint=[student.path]).run()


def test_a_given_teacher_serves_all_arms(whole, tmp_path: Path):
    out, *_ = whole
    teacher = next((out / "checkpoints").glob("*-edm-*"))
    trained: list[str] = []

    def begin(title: str):
        trained.append(title)
        return lambda _progress: None

    made = prepare(
        tmp_path, experiment([arm("l2")], milestones=[10]), checkpoint=[teacher], begin=begin
    ).run()
    assert len(made.arms[0].points) == 1
    assert not any(title.startswith("EDM") for title in trained)


def test_offline_an_arm_with_lpips_downloads_nothing(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, *_ = whole
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_a, **_k: pytest.fail("downloads"))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_a, **_k: pytest.fail("downloads"))
    teacher = next((out / "checkpoints").glob("*-edm-*"))
    made = prepare(
        tmp_path / "out", experiment([arm("lpips", metric="lpips")]), checkpoint=[teacher], download=False
    ).run()
    assert "put vgg16-397923af.pth into" in made.arms[0].failures[0]


def test_the_settings_of_the_command_line_lie_over_the_experiments(tmp_path: Path):
    """And those of an arm over both, or they would not be its own."""
    made = prepare(tmp_path, experiment([arm("l2", points=7)], settings={**CONSTANT, "samples": 60}))
    (unit,) = made.units()
    loaded = unit.sweep.workshop.recipe(CD)
    assert (loaded.points, loaded.fit.schedule, loaded.fit.batch_size) == (7, "constant", 16)
    assert made.sweep.workshop.common.samples == 60
