"""`cmbench tune`: what it evaluates, what it stores, and who uses it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from tiny_runs import SETTINGS, files, options, run, shop, sweep

from cmbench import checkpoints, comparing, methods, records, session, tuned, tuning
from cmbench.benchmark import Plan
from cmbench.consistency.trigflow import sigma_of
from cmbench.diffusion.grid import karras_sigmas
from cmbench.errors import UsageError, WorkError
from cmbench.report.aggregate import over_seeds
from cmbench.report.tables import build
from cmbench.sampling.generate import Source
from cmbench.sampling.seeds import CONFIRMATION, RECORDS, SEARCH, initial_noise

CD = methods.get("cd")
SMALL = ("--set", *SETTINGS, "--device", "cpu", "--offline", "--samples", 100)


COARSE = tuning.How(points=12)  # the training grid: few evaluations


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "200")
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A trained CD network's file."""
    out = tmp_path_factory.mktemp("network")
    made = shop(out)
    return made.ensure(made.need(CD, 1, 0)).path.read_bytes()


@pytest.fixture
def out(network: bytes, tmp_path: Path) -> Path:
    """A results folder that holds the network and nothing else."""
    place = shop(tmp_path / "out").path(shop(tmp_path / "out").need(CD, 1, 0))
    place.parent.mkdir(parents=True)
    place.write_bytes(network)
    return tmp_path / "out"


def tuner(out: Path, how: tuning.How | None = None, on_samples=lambda *_: None, **changes) -> tuning.Tuner:
    chosen = options(out, **changes)
    made = session.open_workshop(chosen)
    engine = session.open_engine(chosen, made)
    return tuning.Tuner(made, engine, how or COARSE, chosen.samples or 0, made.common.batch_size, on_samples)


def tuned_files(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (out / "checkpoints").glob("*.taus.json")}


def evaluations(out: Path) -> dict[str, object]:
    """What was measured, the times left out."""
    return {r.key: (r.identity, r.metrics, r.nfe_counted) for r in records.read(out / tuning.FOLDER)}


# --- the search ------------------------------------------------------------------------------------


def test_it_finds_the_best_of_what_it_evaluated_and_stores_it_beside_the_checkpoint(out: Path):
    made = list(tuner(out).tune("cd", [2, 3], 0))
    assert [(one.nfe, len(one.found.taus)) for one in made] == [(2, 1), (3, 2)]
    grid = tuning.candidates(CD.renoising, shop(out).recipe(CD), checkpoints.NoiseRange(), 12)
    for one in made:
        assert one.path == one.checkpoint.path.with_suffix(".taus.json")
        assert set(one.found.taus) <= set(grid)
        best = min(one.found.search, key=lambda row: row["value"])
        assert tuple(best["taus"]) == one.found.taus
        assert tuned.read(one.checkpoint)[one.nfe] == one.found
        assert one.found.by["fingerprint"] == tuner(out).engine.protocol.fingerprint
    assert made[1].found.taus[0] == made[0].found.taus[0] > made[1].found.taus[1]


def test_every_set_of_levels_sees_the_same_noise_which_no_record_sees(out: Path, monkeypatch):
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "cmbench.sampling.generate.initial_noise",
        lambda seed, indices, shape, purpose: (
            drawn.append((seed, purpose)) or initial_noise(seed, indices, shape, purpose)
        ),
    )
    list(tuner(out).tune("cd", [2], 0))
    assert set(drawn) == {(0, SEARCH.noise), (0, CONFIRMATION.noise)}
    assert not set(RECORDS) & {*SEARCH, *CONFIRMATION} and len({*RECORDS, *SEARCH, *CONFIRMATION}) == 9
    drawn.clear()
    run(sweep(out), ["cd"], [2])
    assert set(drawn) == {(0, RECORDS.noise)}


def test_streams_held_out_give_other_images_of_the_same_network():
    def source(streams):
        def spread(noise, _labels, rng):
            return noise + rng.normal((1, 2, 2))

        return Source(spread, (1, 2, 2), 0, 0, torch.device("cpu"), streams=streams).images(range(500))

    made = [source(streams).flatten().numpy() for streams in (RECORDS, SEARCH, CONFIRMATION)]
    assert np.abs(np.corrcoef(made) - np.eye(3)).max() < 0.1


def test_the_samples_of_an_evaluation_are_those_of_run_with_the_same_setting(out: Path):
    """But for the streams: an evaluation in the records' streams is the record."""
    made = tuner(out)
    noise = made.workshop.common.noise
    here = made.evaluate(CD, (2.5,), 0, RECORDS, noise).metrics["fid"]
    (there,) = run(sweep(out, "cd.taus.2=[2.5]"), ["cd"], [2])
    assert here == there.record.metrics["fid"]


def test_nothing_is_evaluated_twice(out: Path, monkeypatch):
    first = [one.to_json() for one in tuner(out).tune("cd", [2, 3], 0)]
    before, stored = files(out / tuning.FOLDER), tuned_files(out)
    monkeypatch.setattr(Source, "images", lambda *_: pytest.fail("it samples"))
    assert [one.to_json() for one in tuner(out).tune("cd", [2, 3], 0)] == first
    assert [one.to_json() for one in tuner(out).tune("cd", [2], 0)] == first[:1]
    assert files(out / tuning.FOLDER) == before and tuned_files(out) == stored


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 7, 18])
def test_killed_and_resumed_is_the_same_as_uninterrupted(
    out: Path, tmp_path: Path, network: bytes, stop_at: int
):
    whole = tmp_path / "whole"
    place = whole / "checkpoints" / next((out / "checkpoints").glob("*cd*")).name
    place.parent.mkdir(parents=True)
    place.write_bytes(network)
    list(tuner(whole).tune("cd", [2, 3], 0))

    calls = 0

    def die(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Killed

    with pytest.raises(Killed):
        list(tuner(out, on_samples=die, batch_size=40).tune("cd", [2, 3], 0))
    assert 0 < len(evaluations(out)) < len(evaluations(whole)) or stop_at == 1
    list(tuner(out, batch_size=40).tune("cd", [2, 3], 0))
    assert evaluations(out) == evaluations(whole)
    assert tuned_files(out) == tuned_files(whole)
    assert not list((out / tuning.FOLDER / "shards").glob("*"))


def test_a_ternary_search_over_several_valleys_is_told_of(out: Path, monkeypatch):
    """Figures with a hill at 3.735 in place of the real ones; the errors stay the samples' own."""
    valleys = {7.747: 1.0, 3.735: 900.0, 1.654: 0.5}
    figure = tuning.Tuner._figure

    def two(self, record):
        (tau,) = record.identity["recipe"]["taus"]["2"]
        return valleys.get(tau, 1.0), figure(self, record)[1]

    monkeypatch.setattr(tuning.Tuner, "_figure", two)
    (one,) = tuner(out, tuning.How(points=12, scan=10)).tune("cd", [2], 0)
    assert one.found.taus == (1.654,) and one.found.hill == 3.735
    assert tuning.doubt(one) is None  # a scan has looked at all
    ternary = replace(one, found=replace(one.found, by={**one.found.by, "search": "ternary"}))
    assert "more than one valley, with a hill at 3.735" in (tuning.doubt(ternary) or "")
    valleys.clear()
    (flat,) = tuner(out, tuning.How(points=12, scan=10)).tune("cd", [2], 0)
    assert flat.found.hill is None


def test_a_scan_evaluates_what_it_says(out: Path):
    (one,) = tuner(out, tuning.How(scan=4)).tune("cd", [2], 0)
    assert len(one.found.search) == 4
    assert one.found.by["search"] == "scan of 4"


def test_a_higher_figure_is_better_where_it_is(out: Path):
    (one,) = tuner(out, tuning.How("is", scan=6)).tune("cd", [2], 0)
    assert max(one.found.search, key=lambda row: row["value"])["taus"] == list(one.found.taus)
    assert "p" in one.found.confirmation


def test_a_metric_without_paired_test_has_no_p(out: Path):
    (one,) = tuner(out, tuning.How("kid", scan=2), samples=230).tune("cd", [2], 0)
    assert "p" not in one.found.confirmation and "no paired test" in tuning.verdict(one)


def test_the_confirmation_is_the_paired_comparison_of_its_two_records(out: Path):
    (one,) = tuner(out).tune("cd", [2], 0)
    told = one.found.confirmation
    folder = out / tuning.FOLDER
    held_out = [r for r in records.read(folder) if r.identity["streams"] == list(CONFIRMATION)]
    by_taus = {tuple(r.identity["recipe"]["taus"]["2"]): r for r in held_out}
    a, b = by_taus[one.found.taus], by_taus[one.own]
    (wanted,) = comparing.compare(folder, [comparing.Pair(a, b)], ["fid"])
    assert (told["tuned"], told["own"]) == (a.metrics["fid"].value, b.metrics["fid"].value)
    assert (told["difference"], told["p"]) == (wanted.difference, wanted.p)


def test_halves_of_the_reference_are_apart_and_make_the_whole(out: Path):
    whole = tuner(out)
    images = whole.workshop.images
    parts = [whole.engine.only("fid", half).reference(images) for half in (0, 1)]
    known = whole.engine.reference(images).layers["digits-cnn/features"]
    halves = [part.layers["digits-cnn/features"] for part in parts]
    assert sum(half.count for half in halves) == known.count
    mean = sum(half.mean * half.count for half in halves) / known.count
    np.testing.assert_allclose(mean, known.mean, rtol=1e-6)
    (one,) = tuner(out, tuning.How(scan=2, own_reference=True)).tune("cd", [2], 0)
    assert one.found.by["reference"] == "half"
    used = {(tuple(r.identity["streams"]), r.identity["half"]) for r in records.read(out / tuning.FOLDER)}
    assert used == {(SEARCH, 0), (CONFIRMATION, 1)}


def test_one_figure_alone_is_what_the_whole_protocol_measures(out: Path):
    made = tuner(out)
    images = made.workshop.images
    only = made.engine.only("fid")
    shards = []
    for engine in (made.engine, only):
        shard = engine.shard()
        engine.update(shard, np.asarray(images.read(np.arange(90)), np.uint8), 0)
        shards.append(engine.compute(shard, engine.reference(images)))
    assert list(shards[1]) == ["fid"] and shards[1]["fid"] == shards[0]["fid"]


def test_what_was_found_stays_where_no_level_is_left_for_more(cmbench: Commands, out: Path):
    """Two candidates: the third evaluation, or the fourth, has no level below."""
    done = cmbench("tune", "--method", "cd", "--nfe", 2, 4, "--points", 4, *SMALL, "--out", out)
    assert done.status == 2 and "no level is left to search below" in done.error
    assert "CD at NFE 2, seed 0" in done.out
    used = cmbench("run", "--method", "cd", "--nfe", 2, *SMALL, "--out", out, "--tuned", "--json")
    assert used.status == 0 and len(json.loads(used.out)[0]["identity"]["taus"]) == 1


# --- candidates ------------------------------------------------------------------------------------


def test_candidates_hold_the_training_grid_and_the_recipes_own_level(tmp_path: Path):
    made = shop(tmp_path)
    recipe, noise = made.recipe(CD), made.common.noise
    grid = tuning.candidates(CD.renoising, recipe, noise, recipe.points)
    levels = tuning.candidates(CD.renoising, recipe, noise)
    assert len(grid) == 10 and len(levels) == 6 * 11 - 1
    assert 0.658 in grid and set(grid) <= set(levels)
    assert levels == sorted(levels, reverse=True)
    assert levels[5::6] == grid
    assert karras_sigmas(noise, 12)[1:-1].tolist() == pytest.approx(grid, rel=1e-3)
    assert all(float(f"{level:.4g}") == level for level in levels)


def test_a_fine_training_grid_is_searched_as_it_is_and_one_that_is_none_in_64_intervals(tmp_path: Path):
    made = shop(tmp_path, "ct.s1=150")
    for name, count in (("ct", 149), ("ect", 63)):
        method = methods.get(name)
        assert len(tuning.candidates(method.renoising, made.recipe(method), made.common.noise)) == count


@pytest.mark.parametrize("name", ["cd", "ct", "ict", "ect", "sct", "scd"])
def test_every_consistency_method_says_where_its_levels_are(tmp_path: Path, name: str):
    method, renoising = tuning.choose(name)
    made = shop(tmp_path)
    noise = made.common.noise
    levels = tuning.candidates(renoising, made.recipe(method), noise)
    found = (levels[3], levels[7])
    settings = renoising.settings(found, noise)
    again = shop(tmp_path, f"{name}.{renoising.setting}.3={settings[renoising.setting]['3']}")
    assert renoising.used(again.recipe(method), 3, noise) == pytest.approx(found, rel=1e-12)


def test_trigflows_levels_are_set_as_times(tmp_path: Path):
    made = shop(tmp_path)
    noise, scd = made.common.noise, methods.get("scd")
    assert scd.renoising.used(made.recipe(scd), 2, noise) == (sigma_of(1.1, noise),)
    assert scd.renoising.settings((sigma_of(1.1, noise),), noise) == {"times": {"2": [pytest.approx(1.1)]}}


def test_levels_are_no_part_of_a_training(tmp_path: Path):
    for name, setting in (("cd", "taus"), ("ect", "taus"), ("scd", "times")):
        method = methods.get(name)
        keys = {shop(tmp_path, *s).need(method, 2, 0).key for s in ([], [f"{name}.{setting}.2=[0.3]"])}
        assert len(keys) == 1
        plans = [
            next(sweep(tmp_path, *s).plans([method], [2], [0])) for s in ([], [f"{name}.{setting}.2=[0.3]"])
        ]
        assert plans[0].key != plans[1].key


# --- what uses it ----------------------------------------------------------------------------------


def test_run_uses_what_was_found_only_where_it_is_told_to_and_says_so(out: Path):
    (before,) = run(sweep(out), ["cd"], [2])
    (one,) = tuner(out, tuning.How(scan=3)).tune("cd", [2], 0)
    assert one.found.taus != one.own
    (again,) = run(sweep(out), ["cd"], [2])
    assert not again.computed and again.record == before.record
    (with_them,) = run(sweep(out, tuned=True), ["cd"], [2])
    assert with_them.computed
    identity = with_them.record.identity
    assert identity["taus"] == list(one.found.taus) and identity["tuned"] == one.found.by
    assert identity["checkpoint"] == before.record.identity["checkpoint"]
    assert "tuned by fid" in with_them.record.notes[-1]
    by_hand = one.setting
    (same,) = run(sweep(out, by_hand), ["cd"], [2])
    assert same.record.metrics == with_them.record.metrics != before.record.metrics
    shown = build([before.record, with_them.record], dataset="digits", published=())
    notes = [row.method.notes for group in shown.groups for row in group.rows]
    assert sorted(notes) == [(), ("re-noising levels tuned by FD-digits",)]


def test_seeds_tuned_alike_are_one_row_whatever_was_found(out: Path):
    list(tuner(out, tuning.How(scan=3)).tune("cd", [2], 0))
    (first,) = run(sweep(out, tuned=True), ["cd"], [2])
    other = {**first.record.identity, "seed": 1, "taus": [0.1], "checkpoint": "another"}
    second = records.Record(**{**vars(first.record), "seed": 1, "identity": other})
    assert len(over_seeds([first.record, second])) == 1
    third = records.Record(
        **{**vars(second), "identity": {**other, "tuned": {**other["tuned"], "samples": 9}}}
    )
    assert len(over_seeds([first.record, third])) == 2


def test_one_evaluation_and_methods_without_levels_are_the_same_with_and_without(out: Path):
    for name, nfe in (("cd", 1), ("ddim", 2)):
        plans = [
            next(sweep(out, tuned=value).plans([methods.get(name)], [nfe], [0])) for value in (False, True)
        ]
        assert plans[0].key == plans[1].key


def test_what_was_not_tuned_is_left_out_with_the_command_that_tunes_it(out: Path):
    list(tuner(out, tuning.How(scan=2)).tune("cd", [2], 0))
    made = list(sweep(out, tuned=True).plans([CD], [2, 3], [0, 1]))
    assert [isinstance(one, Plan) for one in made] == [True, False, False, False]
    assert "cmbench tune --method cd --nfe 3 --seed 0" in made[2]


def test_levels_of_another_network_and_damaged_files_are_refused(out: Path):
    (one,) = tuner(out, tuning.How(scan=2)).tune("cd", [2], 0)
    stored = json.loads(one.path.read_text())
    one.path.write_text(json.dumps({**stored, "sha256": "0" * 64}))
    with pytest.raises(UsageError, match="another network"):
        next(sweep(out, tuned=True).plans([CD], [2], [0]))
    (renewed,) = tuner(out, tuning.How(scan=2)).tune("cd", [2], 0)
    assert tuned.read(renewed.checkpoint)[2] == one.found
    for text in (
        "{",
        "[]",
        json.dumps({**stored, "format": 9}),
        json.dumps({**stored, "tuned": {"3": stored["tuned"]["2"]}}),
    ):
        one.path.write_text(text)
        with pytest.raises(WorkError, match="is damaged"):
            tuned.read(one.checkpoint)


def test_levels_of_other_numbers_stay_where_one_is_tuned_again(out: Path):
    list(tuner(out).tune("cd", [2, 3], 0))
    (one,) = tuner(out, tuning.How(scan=4)).tune("cd", [2], 0)
    stored = tuned.read(one.checkpoint)
    assert stored[2].by["search"] == "scan of 4" and stored[3].by["search"] == "ternary"


# --- the command -----------------------------------------------------------------------------------


def test_the_command_shows_the_evaluations_and_what_to_do_with_them(cmbench: Commands, out: Path):
    done = cmbench("tune", "--method", "cd", "--nfe", 2, 3, "--points", 12, *SMALL, "--out", out)
    assert done.status == 0, done.err
    assert "CD at NFE 2, seed 0" in done.out and "FD-digits" in done.out and "found" in done.out
    assert "--set cd.taus.2=[" in done.out
    assert "cmbench run --method cd --nfe 2 3 --seed 0 --tuned" in done.err
    shown = cmbench("tune", "--method", "cd", "--nfe", 2, 3, "--points", 12, *SMALL, "--out", out, "--json")
    both = json.loads(shown.out)
    assert [one["nfe"] for one in both] == [2, 3]
    used = cmbench("run", "--method", "cd", "--nfe", 2, *SMALL, "--out", out, "--tuned", "--json")
    assert json.loads(used.out)[0]["identity"]["taus"] == both[0]["taus"]


def test_a_checkpoint_of_the_users_has_its_levels_beside_it(
    cmbench: Commands, tmp_path: Path, network: bytes
):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(network)
    words = ("--method", "cd", "--nfe", 2, *SMALL, "--checkpoint", mine)
    assert cmbench("tune", *words, "--scan", 2, "--out", tmp_path / "a").status == 0
    assert (tmp_path / "mine.taus.json").exists()
    assert cmbench("run", *words, "--tuned", "--out", tmp_path / "b").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--method", "pd", "--nfe", 2),
            "pd has no re-noising levels to tune: cd, ct, ect, ict, scd, sct have",
        ),
        (("--method", "cdd", "--nfe", 2), "did you mean 'cd'"),
        (("--method", "cd", "--nfe", 1), "--nfe 1: levels are re-noised to from the second evaluation on"),
        (("--method", "cd", "--nfe", 12), "the training grid of 12 points has levels for 11 evaluations"),
        (("--method", "cd", "--nfe", 2, "--metric", "fidd"), "unknown metric of protocol digits 'fidd'"),
        (("--method", "cd", "--nfe", 2, "--points", 2), "--points 2"),
        (("--method", "cd", "--nfe", 2, "--scan", 1), "--scan 1"),
        (("--method", "cd", "--nfe", 2, "--protocol", "nothing"), "unknown protocol"),
        (("--method", "cd", "--nfe", 2, "--checkpoint", "no/such"), "no checkpoint at"),
    ],
)
def test_bad_input_gets_one_line(cmbench: Commands, out: Path, words: tuple[object, ...], message: str):
    done = cmbench("tune", *words, *SMALL, "--out", out)
    assert done.status == 2
    assert message in done.error
    assert not (out / tuning.FOLDER).exists()


def test_tuned_needs_a_method_with_levels(cmbench: Commands, tmp_path: Path):
    done = cmbench("run", "--method", "ddim", "--nfe", 2, *SMALL, "--tuned", "--out", tmp_path)
    assert done.status == 2 and "none of these methods has re-noising levels" in done.error
