"""Synthetic pairs: made once, shared, resumed, counted; and the identities that they give to checkpoints."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import FLOWS, files, run, shop, sweep

from cmbench import methods, pairs
from cmbench.checkpoints import load
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.methods import Model, Parent, TrainJob
from cmbench.networks import build
from cmbench.pairs import Pairs, PairSet
from cmbench.report.tables import build as build_table
from cmbench.sampling.seeds import class_labels, initial_noise
from cmbench.training.fit import Fit

KD, DFNO, PD = (methods.get(name) for name in ("kd", "dfno", "pd"))
SHAPE = (1, 2, 3)
CPU = torch.device("cpu")


class Killed(Exception):  # noqa: N818
    pass


def model(conditional: bool = False) -> Model:
    torch.manual_seed(0)
    config = {"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8, "class_conditional": conditional}
    network = build(config, SHAPE, 4)
    torch.nn.init.normal_(network.tail.weight)
    return Model(network.eval(), NoiseRange())


def two_calls(made: Model) -> pairs.Map:
    """A map with two evaluations and two images."""

    def to_images(noise, labels):
        once = made.network(noise, torch.zeros(len(noise)), labels)
        return torch.stack([once, made.network(once, torch.ones(len(noise)), labels)], dim=1)

    return to_images


WANTED = Pairs(Parent("edm"), two_calls, {}, count=23, seed=5)


def make(folder, wanted=WANTED, *, batch_size=4, shard=10, classes=0, report=lambda _: None) -> PairSet:
    return pairs.make(
        wanted,
        model(classes > 0),
        folder,
        shape=SHAPE,
        classes=classes,
        batch_size=batch_size,
        device=CPU,
        report=report,
        shard=shard,
    )


def everything(made: PairSet) -> np.ndarray:
    return made.read(np.arange(len(made)))


# --- the set itself --------------------------------------------------------------------------------


def test_a_pair_is_noise_and_what_the_network_makes_of_it(tmp_path):
    made = make(tmp_path)
    got = torch.from_numpy(made.read(np.array([17, 3, 22])))
    assert got.shape == (3, 3, *SHAPE)
    with torch.no_grad():
        wanted = two_calls(model())(got[:, 0], None)
    torch.testing.assert_close(got[:, 1:], wanted, rtol=1e-5, atol=1e-6)
    assert made.labels is None


def test_neither_batches_nor_shards_move_a_pair(tmp_path):
    sets = [
        everything(make(tmp_path / f"{batch}-{shard}", batch_size=batch, shard=shard))
        for batch, shard in ((4, 10), (23, 23), (1, 7), (5, 5000))
    ]
    for other in sets[1:]:
        assert np.array_equal(other[:, 0], sets[0][:, 0])
        np.testing.assert_allclose(other, sets[0], rtol=1e-5, atol=1e-6)


def test_noise_is_that_of_no_evaluation(tmp_path):
    noise = torch.from_numpy(everything(make(tmp_path))[:, 0])
    for seed in range(10):
        assert not torch.isclose(noise, initial_noise(seed, range(23), SHAPE)).all(dim=(1, 2, 3)).any()
    assert abs(float(noise.mean())) < 0.3
    assert float(noise.std()) == pytest.approx(1, abs=0.2)


def test_labels_are_stored_where_the_network_is_conditional(tmp_path):
    made = make(tmp_path, classes=4)
    assert made.labels is not None
    assert set(made.labels.tolist()) == {0, 1, 2, 3}
    assert made.labels.tolist() != class_labels(5, range(23), 4).tolist()
    got = torch.from_numpy(everything(made))
    with torch.no_grad():
        wanted = two_calls(model(True))(got[:, 0], torch.from_numpy(made.labels))
    torch.testing.assert_close(got[:, 1:], wanted, rtol=1e-5, atol=1e-6)


def test_the_first_pairs_of_a_larger_set_are_those_of_a_smaller_one(tmp_path):
    small, large = make(tmp_path / "a"), make(tmp_path / "b", replace(WANTED, count=40))
    assert np.array_equal(everything(small)[:20], everything(large)[:20])


def test_evaluations_are_counted_and_kept(tmp_path):
    made = make(tmp_path)
    assert made.evaluations == 2 * 23
    assert made.seconds > 0
    again = make(tmp_path)
    assert (again.evaluations, again.seconds) == (made.evaluations, made.seconds)


@pytest.mark.parametrize("kill_at", [4, 10, 14, 23])
def test_killed_and_resumed_is_uninterrupted(tmp_path, kill_at: int):
    def report(progress) -> None:
        if progress.step >= kill_at:
            raise Killed

    whole = make(tmp_path / "whole")
    with pytest.raises(Killed):
        make(tmp_path / "broken", report=report)
    before = files(tmp_path / "broken")
    assert len([name for name in before if name.endswith(".npy")]) == (kill_at - 1) // 10
    steps = []
    resumed = make(tmp_path / "broken", report=lambda p: steps.append(p.step))
    assert np.array_equal(everything(resumed), everything(whole))
    assert resumed.evaluations == whole.evaluations
    assert steps[0] == (kill_at - 1) // 10 * 10 + min(4, 23 - (kill_at - 1) // 10 * 10)
    after = files(tmp_path / "broken")
    assert all(after[name] == when for name, when in before.items() if name.endswith(".npy"))


def test_a_finished_set_costs_nothing(tmp_path):
    make(tmp_path)
    before = files(tmp_path)
    make(tmp_path, report=lambda p: pytest.fail("makes pairs"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut", "short", "no cost"])
def test_a_damaged_shard_is_named(tmp_path, damage: str):
    make(tmp_path)
    path = tmp_path / "00001.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "short":
        np.save(path, np.load(path)[:4])
    else:
        path.with_suffix(".json").unlink()
    with pytest.raises(WorkError, match=r"00001\.npy .*delete it"):
        make(tmp_path)


def test_pairs_that_are_not_finite_are_refused(tmp_path):
    broken = replace(WANTED, make=lambda _: lambda noise, _labels: noise[:, None] / 0 * 0)
    with pytest.raises(WorkError, match=r"pairs 0 to 3: .*not finite"):
        make(tmp_path, broken)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_set_needs_a_pair():
    with pytest.raises(UsageError, match=r"pairs\.count 0"):
        replace(WANTED, count=0)


def test_a_training_on_pairs_needs_them_and_takes_no_flips(tmp_path):
    job = TrainJob(None, None, {}, 0, NoiseRange(), 0, CPU, tmp_path / "s", lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(WorkError, match="needs pairs"):
        job.fit_pairs(model().network, None, Fit())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="mirror image"):
        replace(job, pairs=make(tmp_path)).fit_pairs(model().network, None, Fit(flip=True))  # type: ignore[arg-type]


# --- identities and sharing ------------------------------------------------------------------------


def wanted_by(name: str, out, *extra: str, seed: int = 0):
    made = shop(out, *extra)
    return made.need(methods.get(name), 1, seed).pairs


@pytest.mark.parametrize(
    "sharing", [("kd", "dfno"), ("rf1-distill", "rf2"), ("rf2-distill", "rf3")], ids="-".join
)
def test_methods_with_the_same_pairs_share_them(tmp_path, sharing):
    first, second = (wanted_by(name, tmp_path) for name in sharing)
    assert first.key == second.key
    changed = wanted_by(sharing[1], tmp_path, f"{sharing[1]}.pairs.count=61")
    assert changed.key != first.key


@pytest.mark.parametrize("dataset", ["digits", "mnist", "generic", "cifar10"])
@pytest.mark.parametrize(
    "sharing", [("kd", "dfno"), ("rf1-distill", "rf2"), ("rf2-distill", "rf3")], ids="-".join
)
def test_every_preset_shares_its_pairs(dataset: str, sharing):
    """But the paper's knowledge distillation, whose teacher takes other steps than DFNO's."""
    from cmbench import recipes

    first, second = map(methods.get, sharing)
    for preset in recipes.preset_names(first.package, dataset, first.name):
        if (preset, first.name) != ("paper", "kd"):
            a, b = (
                recipes.load(m.recipe, m.package, dataset, m.name, preset, {}).pairs for m in (first, second)
            )
            assert a == b


def test_what_moves_pairs_moves_their_key_and_the_checkpoints(tmp_path):
    def keys(*extra: str) -> tuple[str, str]:
        made = shop(tmp_path, *extra)
        need = made.need(KD, 1, 0)
        return need.pairs.key, made.identity(need)

    plain = keys()
    for setting in ("count=61", "points=5", "keep=1", "solver=euler", "seed=1"):
        other = keys(f"kd.pairs.{setting}")
        assert other[0] != plain[0]
        assert other[1] != plain[1]
    teacher = keys("edm.fit.steps=41")
    assert teacher[0] != plain[0]
    for setting in ("batch_size=3", "shard=50", "samples=77"):
        assert keys(setting) == plain
    student = keys("kd.fit.steps=41")
    assert student[0] == plain[0]
    assert student[1] != plain[1]


def test_seeds_share_pairs_and_are_one_row(tmp_path):
    assert wanted_by("kd", tmp_path, seed=0).key == wanted_by("kd", tmp_path, seed=1).key
    assert wanted_by("rf3", tmp_path, seed=0).key != wanted_by("rf3", tmp_path, seed=1).key  # flow 2 differs
    made = shop(tmp_path)
    for name in ("kd", "rf3-distill"):
        one, other = (made.lineage(made.need(methods.get(name), 1, seed)) for seed in (0, 1))
        assert one == other
    changed = shop(tmp_path, "rf3-distill.pairs.steps=3")
    assert changed.lineage(changed.need(methods.get("rf3-distill"), 1, 0)) != other


def test_pairs_of_a_given_network_are_known_by_its_file(tmp_path):
    first = shop(tmp_path)
    edm = first.ensure(first.need(methods.get("edm"), 1, 0))
    given = shop(tmp_path, checkpoint=[edm.path])
    need = given.need(KD, 1, 0)
    assert need.pairs.identity["of"] == f"file:{edm.sha256}"
    given.check_given([need])


# --- in the workshop -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Everything that trains on pairs, the titles of what was made, and the records."""
    out, titles = tmp_path_factory.mktemp("trained"), []
    made = shop(out, begin=lambda title: titles.append(title) or (lambda _: None))
    names = ("kd", "dfno", *FLOWS)
    return out, {name: made.ensure(made.need(methods.get(name), 1, 0)) for name in names}, titles


def test_each_set_is_made_once(trained):
    out, _, _ = trained
    folders = sorted(p.name for p in (out / "pairs").iterdir())
    made = shop(out)
    needs = {name: made.need(methods.get(name), 1, 0).pairs for name in ("kd", "dfno", *FLOWS)}
    assert folders == sorted({need.key for need in needs.values() if need})
    assert len(folders) == 4  # of EDM and of three flows
    before = files(out / "pairs")
    again = shop(out, "kd.fit.steps=41")
    again.ensure(again.need(KD, 1, 0))
    assert files(out / "pairs") == before


def test_headers_keep_what_pairs_cost(trained):
    _, checkpoints, _ = trained
    made = {name: checkpoint.header.pairs for name, checkpoint in checkpoints.items()}
    assert made["rf1"] is None
    assert made["kd"] == made["dfno"]
    assert made["rf2"] == made["rf1-distill"]
    assert (made["kd"]["count"], made["kd"]["evaluations"]) == (60, 60 * 7)  # Heun over four points
    assert made["rf2"]["evaluations"] == 60 * 4  # two Heun steps
    assert load(checkpoints["kd"].path).header.pairs == made["kd"]


def test_time_spent_on_pairs_is_no_part_of_a_checkpoints_hash(trained, tmp_path):
    from cmbench.checkpoints import save

    _, checkpoints, _ = trained
    kd = checkpoints["kd"]
    slower = replace(kd.header, pairs={**kd.header.pairs, "seconds": 1e6})
    assert save(tmp_path / "slower.safetensors", kd.network(), slower).sha256 == kd.sha256
    other = replace(kd.header, pairs={**kd.header.pairs, "key": "other"})
    assert save(tmp_path / "other.safetensors", kd.network(), other).sha256 != kd.sha256


@pytest.mark.parametrize("name", ["kd", "dfno", "rf2", "rf1-distill"])
@pytest.mark.parametrize("what", ["make", "train"])
def test_killed_and_resumed_trainings_reach_the_same_weights(trained, tmp_path, name: str, what: str):
    label = methods.get(name).label
    title = "pairs of" if what == "make" else label

    def begin(started: str):
        def report(progress) -> None:
            if started.startswith(title) and progress.step >= 20:
                raise Killed

        return report

    broken = shop(tmp_path, begin=begin)
    with pytest.raises(Killed):
        broken.ensure(broken.need(methods.get(name), 1, 0))
    made = shop(tmp_path)
    assert made.ensure(made.need(methods.get(name), 1, 0)).sha256 == trained[1][name].sha256


@pytest.mark.parametrize("stage", ["4", "2", "1"])
def test_every_stage_of_progressive_distillation_resumes(tmp_path, stage: str):
    whole = shop(tmp_path / "whole")
    wanted = whole.ensure(whole.need(PD, 1, 0))

    def begin(started: str):
        def report(progress) -> None:
            if started.startswith(f"PD {stage} ") and progress.step == 20:
                raise Killed

        return report

    broken = shop(tmp_path / "broken", begin=begin)
    with pytest.raises(Killed):
        broken.ensure(broken.need(PD, 1, 0))
    (state,) = (tmp_path / "broken" / "checkpoints").glob("*.state")
    assert f"-pd-{stage}-" in state.name
    titles = []
    made = shop(tmp_path / "broken", begin=lambda title: titles.append(title) or (lambda _: None))
    assert made.ensure(made.need(PD, 1, 0)).sha256 == wanted.sha256
    left = [s for s in ("4", "2", "1") if int(s) <= int(stage)]
    assert [title.split(" on ")[0] for title in titles] == [f"PD {s}" for s in left]


def test_records_count_pairs_as_cost_and_tables_mark_them(trained, shared_cache, monkeypatch):
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    out, checkpoints, _ = trained
    records = {o.record.method: o.record for o in run(sweep(out), ["kd", "rf1", "rf2", "rf2-distill"])}
    cost = {name: record.cost for name, record in records.items()}
    header = {name: checkpoint.header for name, checkpoint in checkpoints.items()}
    assert "pair_evaluations" not in cost["rf1"]
    assert cost["rf2"]["pair_evaluations"] == 60 * 4
    assert cost["rf2-distill"]["pair_evaluations"] == 2 * 60 * 4  # of flow 1, and of flow 2
    flows = [header[name] for name in ("rf1", "rf2", "rf2-distill")]
    seconds = sum(head.seconds + (head.pairs or {"seconds": 0})["seconds"] for head in flows)
    assert cost["rf2-distill"]["training_seconds"] == pytest.approx(seconds, abs=0.11)
    assert {name: record.nfe_counted for name, record in records.items()} == dict.fromkeys(records, 1)

    table = build_table(records.values(), dataset="digits")
    marks = {row.method.text: row.mark for _, row in table.rows()}
    assert marks == {
        "Knowledge Distillation": "synthetic-data",
        "1-Rectified Flow": "",
        "2-Rectified Flow": "synthetic-data",
        "2-Rectified Flow (+distill)": "synthetic-data",
    }


def test_cost_outlives_the_pairs_themselves(trained, tmp_path):
    from cmbench.benchmark import training_cost

    out, _, _ = trained
    made = shop(out)
    need = made.need(methods.get("rf2-distill"), 1, 0)
    before = training_cost(made, need)
    (out / "pairs").rename(tmp_path / "elsewhere")
    try:
        assert training_cost(made, need) == before
    finally:
        (tmp_path / "elsewhere").rename(out / "pairs")
    assert json.loads((out / "pairs" / need.pairs.key / "00000.json").read_text())["evaluations"] == 240


@pytest.mark.parametrize("name", ["kd", "dfno", "rf1-distill"])
def test_students_of_one_step_do_one(name: str):
    method = methods.get(name)
    assert method.refuses(1, None) is None
    assert "one step" in method.refuses(2, None)
