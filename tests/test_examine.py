"""`cmbench examine`: what each figure says of samples that are known, and what is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from PIL import Image
from tiny_runs import SETTINGS, files

from cmbench import examining, records
from cmbench.data.digits import DIGITS
from cmbench.sampling.generate import Source

SMALL = ("--set", *SETTINGS, "--device", "cpu", "--offline", "--samples", "80")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no backbone of LPIPS
    monkeypatch.setenv("COLUMNS", "200")
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder that the tests fill, so that networks are trained once."""
    return tmp_path_factory.mktemp("examined")


def examined(out: Path) -> dict[tuple[str, int], records.Record]:
    return {(r.method, r.nfe): r for r in records.read(out / examining.FOLDER)}


def value(record: records.Record, name: str) -> float:
    found = record.metrics[name].value
    assert found is not None, record.metrics[name].reason
    return found


# --- runs of methods -------------------------------------------------------------------------------


def test_every_method_and_number_gets_its_figures(cmbench: Commands, out: Path) -> None:
    done = cmbench("examine", "--method", "ddim", "cd", "ct", "--nfe", 1, 2, 8, *SMALL, "--out", out)
    assert done.status == 0, done.err
    for title in ("Diversity (digits-cnn)", "To ODE end (RMS)", "AuthPct (digits-cnn)", "Drift from NFE 1"):
        assert title in done.out
    assert "not computed (Diversity (LPIPS)," in done.err and "put vgg16-397923af.pth into" in done.err
    found = examined(out)
    assert set(found) == {(m, n) for m in ("ddim", "cd", "ct") for n in (1, 2, 8)}
    for (method, nfe), record in found.items():
        assert (record.nfe_counted, record.samples, record.protocol) == (nfe, 80, "examine")
        assert ("drift_features" in record.metrics) == (nfe > 1)
        for metric in record.metrics.values():
            assert metric.value is None or (metric.std is not None and metric.std >= 0)
        if method == "ct":
            assert record.metrics["endpoint_rms"].reason == "CT has no teacher"
        else:
            assert "twice as many move the end points by" in (record.metrics["endpoint_rms"].note or "")
        picture = Image.open(out / examining.FOLDER / "neighbours" / f"{record.key}.png")
        assert picture.width > 8 * 64 and picture.height > 4 * 64


def test_a_finer_sampler_of_the_teacher_comes_nearer_to_its_end_points(cmbench: Commands, out: Path) -> None:
    words = ("--what", "endpoint", *SMALL, "--out", out)
    assert cmbench("examine", "--method", "ddim", "--nfe", 2, 8, 32, *words).status == 0
    found = examined(out)
    for name in ("endpoint_rms", "endpoint_features"):
        far = [value(found["ddim", nfe], name) for nfe in (2, 8, 32)]
        assert far[0] > 1.3 * far[1] > 1.6 * far[2] > 0, name


def test_the_same_call_again_computes_nothing(
    cmbench: Commands, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("examine", "--method", "ddim", "--nfe", 1, 2, *SMALL, "--out", out, "--json")
    first, before = cmbench(*words), files(out)
    monkeypatch.setattr(Source, "images", lambda *_: pytest.fail("sampled again"))
    again = cmbench(*words)
    assert again.status == 0 and "2 of 2 records were there already" in again.err
    assert json.loads(again.out) == json.loads(first.out)
    assert files(out) == before


def test_figures_do_not_depend_on_batches_nor_on_what_else_is_examined(
    cmbench: Commands, out: Path, tmp_path: Path
) -> None:
    cmbench("examine", "--method", "ddim", "--nfe", 1, 2, *SMALL, "--out", out)
    alone = ("--method", "ddim", "--nfe", 2, *SMALL, "--out", tmp_path, "--batch-size", 7)
    cmbench("examine", *alone, "--what", "memorization", "diversity", "endpoint")
    (record,), whole = examined(tmp_path).values(), examined(out)["ddim", 2]
    assert set(record.metrics) == {n for n in whole.metrics if not n.startswith("drift")}
    for name, metric in record.metrics.items():
        # Other batches change last bits, and so, rarely, a grey level.
        assert (metric.value is None) == (whole.metrics[name].value is None)
        if metric.value is not None:
            assert metric.value == pytest.approx(whole.metrics[name].value, rel=2e-3), name


def test_end_points_that_are_there_are_used_again(
    cmbench: Commands, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cmbench("examine", "--method", "ddim", "--nfe", 1, *SMALL, "--out", out)
    monkeypatch.setattr("cmbench.subjects.end_point", lambda *_: pytest.fail("solved again"))
    done = cmbench("examine", "--method", "ddim", "--nfe", 3, "--what", "endpoint", *SMALL, "--out", out)
    assert done.status == 0, done.err


def test_a_student_alone_does_not_train_its_teacher(cmbench: Commands, out: Path, tmp_path: Path) -> None:
    cmbench("examine", "--method", "cd", "--nfe", 1, *SMALL, "--out", out)
    (student,) = (out / "checkpoints").glob("digits-cd-*")
    (teacher,) = (out / "checkpoints").glob("digits-edm-*")
    words = (
        "examine",
        "-m",
        "cd",
        "--nfe",
        1,
        "--what",
        "endpoint",
        *SMALL,
        "--out",
        tmp_path,
        "--checkpoint",
    )
    done = cmbench(*words, student)
    assert done.status == 0 and not (tmp_path / "checkpoints").exists()
    (record,) = examined(tmp_path).values()
    assert "the teacher's network is not here: give it with --checkpoint" in (
        record.metrics["endpoint_rms"].reason or ""
    )
    assert cmbench(*words, student, teacher).status == 0
    both = records.read(tmp_path / examining.FOLDER)
    assert [r.metrics["endpoint_rms"].value is None for r in both].count(False) == 1


def test_a_record_without_lpips_is_made_again_once_it_is_there(
    cmbench: Commands, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmbench.consistency import distance

    words = ("examine", "--method", "ddim", "--nfe", 1, 2, *SMALL[:-1], 8, "--out", out)
    assert cmbench(*words).status == 0
    # As if its backbone had arrived; another distance serves, since LPIPS itself is compared elsewhere.
    monkeypatch.setattr(distance, "lpips_distance", lambda *_: lambda x, y: distance.l1(x, y))
    done = cmbench(*words)
    assert "records were there already" not in done.err and "(LPIPS)" in done.out
    record = next(
        r for r in records.read(out / examining.FOLDER) if (r.method, r.nfe, r.samples) == ("ddim", 2, 8)
    )
    for name in ("diversity_lpips", "drift_lpips", "endpoint_lpips"):
        assert value(record, name) > 0
    assert "2 of 2 records were there already" in cmbench(*words).err


# --- samples made elsewhere ------------------------------------------------------------------------


def stored(path: Path, images: np.ndarray) -> Path:
    np.savez(path, arr_0=images.transpose(0, 2, 3, 1))
    return path


def test_copies_of_training_images_are_found_and_shown(cmbench: Commands, tmp_path: Path) -> None:
    digits = DIGITS.load(None, False).read(np.arange(0, 1797, 20))
    path = stored(tmp_path / "copies.npz", digits)
    done = cmbench("examine", path, "--label", "Copier", "--nfe", 1, "--offline", "--out", tmp_path)
    assert done.status == 0 and "Copier" in done.out, done.err
    (record,) = examined(tmp_path).values()
    assert value(record, "authpct") == 0 and record.samples == len(digits)
    assert "without the noise" in (record.metrics["endpoint_rms"].reason or "")
    sheet = np.asarray(Image.open(tmp_path / examining.FOLDER / "neighbours" / f"{record.key}.png"))
    tile = sheet[4 : 4 + 64, 4 : 4 + 64]
    np.testing.assert_array_equal(tile, sheet[4 + 66 : 4 + 130, 4 : 4 + 64])
    np.testing.assert_array_equal(tile[::8, ::8, 0], digits[0, 0])


def test_one_image_many_times_has_no_diversity(cmbench: Commands, tmp_path: Path) -> None:
    digits = DIGITS.load(None, False).read(np.arange(40))
    same = stored(tmp_path / "same.npz", digits[:1].repeat(40, axis=0))
    words = ("--label", "x", "--nfe", 1, "--offline", "--what", "diversity", "--out")
    assert cmbench("examine", same, *words, tmp_path / "a").status == 0
    assert cmbench("examine", stored(tmp_path / "some.npz", digits), *words, tmp_path / "b").status == 0
    (none,), (some,) = (examined(tmp_path / name).values() for name in ("a", "b"))
    assert value(none, "diversity_features") == 0 == none.metrics["diversity_features"].std
    assert value(some, "diversity_features") > 1


def test_without_a_classifier_the_pixels_are_compared(cmbench: Commands, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (60, 3, 6, 6), np.uint8)
    known = stored(tmp_path / "train.npz", train)
    path = stored(tmp_path / "made.npz", np.concatenate([train[:10], 255 - train[10:20]]))
    words = ("-d", "images", "--data", known, "--label", "x", "--nfe", 1, "--offline", "--out", tmp_path)
    done = cmbench("examine", path, *words)
    assert done.status == 0 and "AuthPct (pixels)" in done.out, done.err
    (record,) = examined(tmp_path).values()
    assert 0 <= value(record, "authpct") <= 50
    assert record.metrics["diversity_lpips"].value is None and "diversity_features" not in record.metrics


# --- wrong use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either a path, or --method and --nfe"),
        (("--method", "cd"), "--nfe: say how many"),
        (("--method", "cdd", "--nfe", "1"), "did you mean 'cd'"),
        (("--method", "cd", "--nfe", "1", "--what", "drfit"), "did you mean 'drift'"),
        (("--method", "edm", "--nfe", "2"), "nothing to examine"),
        (("--method", "ddim", "--nfe", "2", "--what", "drift"), "drift takes two --nfe"),
        (("--method", "ddim", "--nfe", "2", "--samples", "3"), "3 samples are too few"),
        (("nowhere.npz", "--label", "x", "--nfe", "1"), "there is nothing at"),
        (("nowhere.npz", "--nfe", "1"), "one --label"),
        (("nowhere.npz", "--label", "x", "--nfe", "1", "2"), "one --label"),
    ],
)
def test_wrong_use_ends_in_one_clear_line(
    cmbench: Commands, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = cmbench("examine", *words, "--offline", "--out", tmp_path)
    assert (done.status, done.out) == (2, "")
    assert said in done.error


def test_samples_of_another_size_are_refused(cmbench: Commands, tmp_path: Path) -> None:
    path = stored(tmp_path / "large.npz", np.zeros((9, 1, 9, 9), np.uint8))
    done = cmbench("examine", path, "--label", "x", "--nfe", "1", "--out", tmp_path)
    assert done.status == 2 and "9 × 9" in done.error
