"""`cmbench compare`: pairs of stored runs, and only pairs; uncertainties in tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from numpy.typing import NDArray
from tiny_runs import SETTINGS

from cmbench import comparing, records
from cmbench.data.digits import DIGITS
from cmbench.errors import UsageError
from cmbench.records import Metric, Record

OUT = Path("results")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


def record(label: str = "CD", nfe: int = 1, seed: int = 0, **changes: object) -> Record:
    """A record as a run would leave it, without having run."""
    protocol = {"metric_titles": {"fid": "FD", "precision": "Prec", "recall": "Rec"}}
    figures = {name: Metric(value) for name, value in {"fid": 3.0, "precision": 0.5, "recall": 0.5}.items()}
    made = Record(
        method=label.lower(), label=label, group="g", reference="", dataset="digits", nfe=nfe, nfe_counted=nfe,
        seed=seed, samples=100, metrics=figures, protocol="digits", protocol_fingerprint="f" * 16,
        identity={"method": label, "nfe": nfe, "seed": seed, "protocol": protocol,
                  **{key: changes[key] for key in ("samples", "dataset") if key in changes}},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def store(made: Record, **influences: NDArray[np.generic]) -> Record:
    records.write(OUT, made)
    comparing.write(OUT, made.key, influences)
    return made


# --- from samples to a sentence ------------------------------------------------------------------


@pytest.fixture
def scored(cmbench: Commands, tmp_path: Path) -> Commands:
    """Two systems of two seeds: digits with little noise, and the same with much."""
    digits = DIGITS.load(None, False).read(np.arange(400)).astype(np.float64)
    for seed in (0, 1):
        noise = np.random.default_rng(seed).standard_normal(digits.shape)
        for name, amount in (("Good", 12), ("Poor", 30)):
            images = (digits + amount * noise).clip(0, 255).astype(np.uint8)
            np.savez(tmp_path / "u.npz", arr_0=images.transpose(0, 2, 3, 1))
            cmbench("score", "u.npz", "-d", "digits", "--label", name, "--nfe", "1", "--seed", str(seed))
    return cmbench


def test_the_better_run_is_named_whichever_comes_first(scored: Commands) -> None:
    (first,) = json.loads(scored("compare", "good:1", "poor:1", "--metric", "fid", "--json").out)
    (second,) = json.loads(scored("compare", "poor:1", "good:1", "--metric", "fid", "--json").out)
    assert first["better"] == second["better"] == "Good at NFE 1"
    assert first["difference"] == -second["difference"] < 0 and first["seeds"] == [0, 1]
    assert first["p"] < 1e-6
    said = scored("compare", "poor:1", "good:1", "--metric", "fid")
    value, other = first["value_a"], first["value_b"]
    assert said.out.startswith("FD-digits: Good at NFE 1 is better than Poor at NFE 1 by ")
    assert f"({value:.4g} against {other:.4g}, p = " in said.out
    assert "400 samples a run, seeds 0, 1, protocol digits" in said.err


def test_pairs_tell_more_than_the_runs_own_uncertainties(scored: Commands) -> None:
    (found,) = json.loads(
        scored("compare", "good:1", "poor:1", "--seed", "0", "--metric", "fid", "--json").out
    )
    stds = [r.metrics["fid"].std for r in records.read(OUT) if r.seed == 0]
    assert found["std"] < np.hypot(*stds)  # type: ignore[arg-type]
    both = json.loads(scored("compare", "good:1", "poor:1", "--metric", "fid", "--json").out)[0]
    assert both["std"] < found["std"]


def test_every_metric_with_values_by_sample_is_compared(scored: Commands) -> None:
    said = scored("compare", "good:1", "poor:1").out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "FD-digits",
        "IS-digits",
        "Prec-digits",
        "Rec-digits",
    ]


def test_a_run_does_not_differ_from_itself(scored: Commands) -> None:
    results = json.loads(scored("compare", "good:1", "good:1", "--json").out)
    assert all(r["difference"] == 0 and r["p"] == 1 and r["better"] is None for r in results)
    assert "no difference shown" in scored("compare", "good:1", "good:1").out


def test_runs_of_the_benchmark_compare_as_well(cmbench: Commands) -> None:
    words = ("--method", "ddim", "--nfe", "1", "4", "--samples", "100", "--set", *SETTINGS, "--device", "cpu")
    assert cmbench("run", *words).status == 0
    results = json.loads(cmbench("compare", "ddim:4", "ddim:1", "--json").out)
    assert results[0]["metric"] == "fid" and results[0]["samples"] == 100 and results[0]["std"] > 0


# --- the arithmetic ------------------------------------------------------------------------------


def test_differences_of_seeds_are_averaged_and_their_errors_too(cmbench: Commands) -> None:
    random = np.random.default_rng(0)
    pairs, stds = [], []
    for seed, value in ((0, 2.5), (1, 2.9)):
        mine, theirs = random.standard_normal((2, 100)).astype(np.float32)
        better = store(record("CD", seed=seed, metrics={"fid": Metric(value)}), fid=mine)
        worse = store(record("PD", seed=seed, metrics={"fid": Metric(3.0)}), fid=theirs)
        pairs.append(comparing.Pair(better, worse))
        stds.append((mine - theirs).std(ddof=1) / 10)
    (result,) = comparing.compare(OUT, pairs)
    assert (result.value_a, result.value_b) == pytest.approx((2.7, 3.0))
    assert result.difference == pytest.approx(-0.3)
    assert result.std == pytest.approx(np.hypot(*stds) / 2, rel=1e-6)


def test_seeds_that_share_their_reference_images_add_nothing_to_recall(cmbench: Commands) -> None:
    random = np.random.default_rng(0)
    mine, theirs = random.random((2, 500)) < 0.6
    pairs = [
        comparing.Pair(store(record("CD", seed=s), recall=mine), store(record("PD", seed=s), recall=theirs))
        for s in range(4)
    ]
    (one,), (four,) = comparing.compare(OUT, pairs[:1]), comparing.compare(OUT, pairs)
    assert (four.difference, four.std) == pytest.approx((one.difference, one.std))


# --- what does not pair up -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 200}, "they differ in number of samples, 100 against 200"),
        (
            {"protocol_fingerprint": "e" * 16},
            "they differ in protocol, digits (ffffffff) against digits (eeeeeeee)",
        ),
        ({"seed": 3}, "they differ in seed, 0 against 3"),
        ({"dataset": "mnist"}, "unknown run on digits 'pd:1'"),
    ],
)
def test_unlike_runs_are_refused_with_what_differs(
    cmbench: Commands, change: dict[str, object], said: str
) -> None:
    store(record("CD"))
    store(record("PD", **change))
    done = cmbench("compare", "cd:1", "pd:1")
    assert done.status == 2 and said in done.error


def test_unlike_data_sets_are_refused_by_key_as_well(cmbench: Commands) -> None:
    a, b = store(record("CD")), store(record("PD", dataset="mnist"))
    done = cmbench("compare", a.key[:8], b.key[:8])
    assert done.status == 2 and "they differ in data set, digits against mnist" in done.error


def test_selectors_that_fit_nothing_suggest_what_there_is(cmbench: Commands) -> None:
    store(record("CD", 2))
    assert "did you mean 'cd:2'" in cmbench("compare", "cd:2", "cd:3").error
    assert "neither method:nfe" in cmbench("compare", "cd:2", "nothing").error
    assert "no pair of seed 5" in cmbench("compare", "cd:2", "cd:2", "--seed", "0", "5").error


def test_runs_of_several_kinds_are_chosen_by_options_or_keys(cmbench: Commands) -> None:
    flags = np.arange(100) % 2 == 0
    for samples in (100, 200):
        for label in ("CD", "PD"):
            store(record(label, samples=samples), precision=np.resize(flags, samples))
    done = cmbench("compare", "cd:1", "pd:1")
    assert done.status == 2 and "choose --samples, --protocol" in done.error
    assert (
        json.loads(cmbench("compare", "cd:1", "pd:1", "--samples", "200", "--json").out)[0]["samples"] == 200
    )
    twin = store(record("CD", identity={"other": "recipe"}), precision=flags)
    done = cmbench("compare", "cd:1", "pd:1", "--samples", "100")
    assert done.status == 2 and twin.key[:8] in done.error
    assert cmbench("compare", twin.key[:8], "pd:1").status == 0


def test_a_setting_of_the_recipe_tells_runs_of_one_method(cmbench: Commands) -> None:
    flags = np.arange(100) % 2 == 0
    store(record("CD"), precision=flags)
    other = {"recipe": {"metric": "l1", "fit": {"steps": 7}}}
    store(record("CD", identity=other), precision=~flags)
    done = cmbench("compare", "cd:1", "cd:1:metric=l1")
    assert done.status == 2 and "cd:1:metric=default" in done.error
    for selector in ("cd:1:metric=l1", "cd:1:fit.steps=7", "cd:1:metric=l1:fit.steps=7"):
        assert cmbench("compare", selector, "cd:1:metric=default").status == 0
    assert "no record has metric=l2" in cmbench("compare", "cd:1:metric=l2", "cd:1:metric=l1").error


def test_runs_of_one_label_are_told_apart_by_what_differs(cmbench: Commands) -> None:
    flags = np.arange(100) % 2 == 0
    for nfe in (1, 2):
        for metric, right in (("l1", flags), ("features", flags | True)):
            fit = {"steps": 7}
            store(
                record("CD", nfe, identity={"nfe": nfe, "recipe": {"metric": metric, "fit": fit}}),
                precision=right,
            )
        store(record("CD", nfe, identity={"nfe": nfe, "recipe": {"fit": {"steps": 7}}}), precision=flags)

    def between(a: str, b: str) -> tuple[str, str]:
        (found,) = json.loads(cmbench("compare", a, b, "--json").out)
        return found["a"], found["b"]

    assert between("cd:2:metric=l1", "cd:2:metric=default") == (
        "CD at NFE 2 (metric l1)",
        "CD at NFE 2 (metric by default)",
    )
    assert between("cd:1:metric=l1", "cd:2:metric=l1") == ("CD at NFE 1", "CD at NFE 2")
    assert between("cd:1:metric=l1", "cd:2:metric=features") == (
        "CD at NFE 1 (metric l1)",
        "CD at NFE 2 (metric features)",
    )
    said = cmbench("compare", "cd:2:metric=l1", "cd:2:metric=features").out
    assert "CD at NFE 2 (metric features) is better than CD at NFE 2 (metric l1) by " in said


def test_checkpoints_tell_runs_of_one_recipe_apart(cmbench: Commands) -> None:
    keys = [
        store(record("CD", identity={"checkpoint": name}), precision=np.ones(100, bool)).key
        for name in ("ab", "cd")
    ]
    (found,) = json.loads(cmbench("compare", *keys, "--json").out)
    assert (found["a"], found["b"]) == ("CD at NFE 1 (checkpoint ab)", "CD at NFE 1 (checkpoint cd)")


def test_unlike_runs_are_not_combined_over_seeds(cmbench: Commands) -> None:
    flags = np.arange(100) % 2 == 0
    for seed, recipe in ((0, {"metric": "l1"}), (1, {})):
        store(record("CD", seed=seed, identity={"seed": seed, "recipe": recipe}), precision=flags)
        store(record("PD", seed=seed), precision=flags)
    done = cmbench("compare", "cd:1", "pd:1")
    assert done.status == 2 and "seed 0: metric l1; seed 1: metric by default" in done.error
    assert cmbench("compare", "cd:1", "pd:1", "--seed", "1").status == 0
    assert cmbench("compare", "cd:1:metric=l1", "pd:1").status == 0


def test_missing_and_damaged_values_by_sample_are_named(cmbench: Commands) -> None:
    store(record("CD"), fid=np.zeros(100))
    b = store(record("PD"), fid=np.ones(100))
    unknown = cmbench("compare", "cd:1", "pd:1", "--metric", "fidd")
    assert unknown.status == 2 and "did you mean 'fid'" in unknown.error
    place = comparing.path(OUT, b.key)
    place.write_bytes(place.read_bytes()[:50])
    damaged = cmbench("compare", "cd:1", "pd:1")
    assert damaged.status == 1 and str(place) in damaged.error
    place.unlink()
    missing = cmbench("compare", "cd:1", "pd:1")
    assert missing.status == 2 and "measure it again with --force" in missing.error


def test_a_metric_that_was_not_computed_says_why(cmbench: Commands) -> None:
    store(record("CD"), fid=np.zeros(100))
    store(record("PD", metrics={"fid": Metric.missing("no weights")}))
    with pytest.raises(UsageError, match="fid was not computed for every run: no weights"):
        comparing.compare(OUT, comparing.pairs(records.read(OUT), "cd:1", "pd:1", dataset="digits"), ["fid"])


# --- tables --------------------------------------------------------------------------------------


def test_a_table_shows_the_figures_own_uncertainty_where_there_is_one_seed(cmbench: Commands) -> None:
    store(record("CD", metrics={"fid": Metric(2.931, 0.034, 2.86, 3.0)}))
    shown = cmbench("table", "--format", "md", "--dataset", "digits").out
    assert "2.93 ± 0.03" in shown and "±: standard deviation of the figure itself" in shown
    store(record("PD", seed=0, metrics={"fid": Metric(3.0, 0.5)}))
    store(record("PD", seed=1, metrics={"fid": Metric(3.2, 0.5)}))
    shown = cmbench("table", "--format", "md", "--dataset", "digits").out
    assert "3.10 ± 0.14" in shown and "±: standard deviation over seeds" in shown
    assert "± of a single seed: standard deviation of the figure itself" in shown
