"""`cmbench score`: anybody's samples become a record, and bad ones one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from numpy.typing import NDArray
from PIL import Image

from cmbench import comparing, records, scoring
from cmbench.data.digits import DIGITS
from cmbench.errors import UsageError
from cmbench.metrics import protocols, references
from cmbench.metrics.classifiers import Classifier
from cmbench.metrics.engine import Engine
from cmbench.metrics.references import Reference, Statistics
from cmbench.metrics.shards import Shard

Pixels = NDArray[np.uint8]
SAMPLES = 200


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """Digits with their rows moved: uint8 [200, 8, 8, 1], near the data and not in it."""
    digits = DIGITS.load(None, False).read(np.arange(SAMPLES)).transpose(0, 2, 3, 1)
    return np.roll(digits, 1, axis=1)


@pytest.fixture
def npz(tmp_path: Path, pixels: Pixels) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=pixels)
    return path


def folder_of(path: Path, pixels: Pixels) -> Path:
    path.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{index:04d}.png")
    return path


WORDS = ("-d", "digits", "--label", "Mine", "--nfe", "1")


def the_record(out: Path = Path("results")) -> records.Record:
    (record,) = records.read(out)
    return record


def test_an_npz_becomes_a_record_like_any_other(cmbench: Commands, npz: Path) -> None:
    done = cmbench("score", npz, *WORDS)
    assert done.status == 0 and "Mine" in done.out and "FD-digits" in done.out
    record = the_record()
    assert (record.dataset, record.method, record.nfe, record.nfe_counted) == ("digits", "mine", 1, 1.0)
    assert (record.group, record.reference, record.samples) == (scoring.OTHERS, "", SAMPLES)
    assert record.protocol_fingerprint == protocols.get("digits").fingerprint
    assert "network evaluations as stated, not counted" in record.notes
    assert f"{SAMPLES} samples; the protocol asks for 1797" in (record.metrics["fid"].note or "")
    for metric in ("fid", "is", "precision", "recall"):
        figure = record.metrics[metric]
        assert figure.value is not None and figure.low is not None and figure.high is not None
        assert figure.low <= figure.value <= figure.high and figure.std is not None and figure.std > 0
    sheet = np.asarray(Image.open(Path("results") / "previews" / f"{record.key}.png"))
    assert np.array_equal(sheet[:8, 8:16], np.load(npz)["arr_0"][1, ..., 0])
    assert set(comparing.read(Path("results"), record)) == {"fid", "is", "precision", "recall"}
    assert not list(Path("results/shards").iterdir())


def test_the_same_call_again_computes_nothing_and_says_so(
    cmbench: Commands, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cmbench("score", npz, *WORDS, "--json")

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Engine, "update", refuse)
    again = cmbench("score", npz, *WORDS, "--json")
    assert again.status == 0 and "nothing was computed" in again.err
    assert json.loads(again.out) == json.loads(first.out)
    forced = cmbench("score", npz, *WORDS, "--force")
    assert forced.status == 1 and "computed again" in forced.error


def test_brackets_in_names_are_printed_as_they_are(cmbench: Commands, tmp_path: Path, pixels: Pixels) -> None:
    words = ("--nfe", "1", "-d", "digits", "--label", "[red]Mine[/] [/b]")
    done = cmbench("score", tmp_path / "samples [b].npz", *words)
    assert done.status == 2 and "samples [b].npz" in done.error
    np.savez(tmp_path / "samples [b].npz", arr_0=pixels)
    done = cmbench("score", tmp_path / "samples [b].npz", *words)
    assert done.status == 0 and "[red]Mine[/]" in done.out and "[red]Mine[/] [/b]" in done.err


def test_a_description_can_be_corrected_without_measuring(cmbench: Commands, npz: Path) -> None:
    cmbench("score", npz, *WORDS)
    before = the_record()
    cmbench("score", npz, "-d", "digits", "--label", "Mine!", "-m", "mine", "--nfe", "1", "--group", "Mine")
    after = the_record()
    assert (after.label, after.group, after.key) == ("Mine!", "Mine", before.key)
    assert after.metrics == before.metrics and after.environment == before.environment


def test_folder_zip_and_npz_of_the_same_images_measure_alike(
    cmbench: Commands, npz: Path, pixels: Pixels, tmp_path: Path
) -> None:
    import shutil

    folder = folder_of(tmp_path / "folder", pixels)
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)
    figures = []
    for out, path in (("a", npz), ("b", folder), ("c", archive)):
        assert cmbench("score", path, *WORDS, "--out", out).status == 0
        figures.append(the_record(Path(out)).metrics)
    assert figures[0] == figures[1] == figures[2]


def test_colour_files_of_gray_images_measure_as_gray_ones(
    cmbench: Commands, npz: Path, pixels: Pixels, tmp_path: Path
) -> None:
    colour = folder_of(tmp_path / "colour", pixels.repeat(3, axis=-1))
    cmbench("score", npz, *WORDS, "--out", "a")
    assert cmbench("score", colour, *WORDS, "--out", "b").status == 0
    assert the_record(Path("a")).metrics == the_record(Path("b")).metrics
    assert any("colour samples" in note for note in the_record(Path("b")).notes)


def test_samples_takes_the_first_images(cmbench: Commands, npz: Path, pixels: Pixels, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.npz"
    np.savez(fewer, arr_0=pixels[:150])
    cmbench("score", npz, *WORDS, "--samples", "150", "--out", "a")
    cmbench("score", fewer, *WORDS, "--out", "b")
    first, second = the_record(Path("a")), the_record(Path("b"))
    assert first.metrics == second.metrics and first.samples == 150
    assert f"the first 150 of {SAMPLES} images" in first.notes
    asked = cmbench("score", npz, *WORDS, "--samples", "201")
    assert asked.status == 2 and "holds 200 images" in asked.error


def test_a_killed_measurement_goes_on_from_its_last_shard(
    cmbench: Commands, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SHARD", 64)
    cmbench("score", npz, *WORDS, "--out", "whole")
    true_save, saved = Engine.save, []

    def dying(self: Engine, shard: Shard, path: Path) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path.name)
        true_save(self, shard, path)

    monkeypatch.setattr(Engine, "save", dying)
    killed = cmbench("score", npz, *WORDS)
    assert killed.status == 130 and not records.read(Path("results"))

    def counting(self: Engine, shard: Shard, path: Path) -> None:
        saved.append(path.name)
        true_save(self, shard, path)

    monkeypatch.setattr(Engine, "save", counting)
    assert cmbench("score", npz, *WORDS).status == 0
    assert saved == ["00000.npz", "00001.npz", "00002.npz", "00003.npz"]
    assert the_record().metrics == the_record(Path("whole")).metrics


@pytest.mark.parametrize(
    ("dataset", "label", "group", "reference"),
    [
        ("cifar10", "stylegan-xl", "Direct Generation", "Sauer et al., 2022"),
        ("digits", "CD", "Diffusion + Distillation", "Song et al., 2023"),
        ("imagenet64", "DFNO", "Diffusion + Distillation", "Zheng et al., 2022"),
    ],
)
def test_methods_of_the_papers_tables_are_known(dataset: str, label: str, group: str, reference: str) -> None:
    of = scoring.system(dataset, label, 1)
    assert (of.group, of.reference) == (group, reference)
    mine = scoring.system(dataset, label, 1, group="Mine", reference="me")
    assert (mine.group, mine.reference) == ("Mine", "me")


def test_the_papers_spelling_is_used() -> None:
    assert scoring.system("cifar10", "stylegan-xl", 1).label == "StyleGAN-XL"
    with pytest.raises(UsageError, match="letters or digits"):
        scoring.system("cifar10", "!!", 1)


def test_without_the_data_set_a_statistics_file_stands_for_it(tmp_path: Path) -> None:
    known = scoring.open_known("imagenet64", None, False, protocols.get("adm"))
    assert (known.name, known.shape, len(known)) == ("imagenet64", (3, 64, 64), 0)
    with pytest.raises(UsageError, match="cannot be downloaded"):
        known.read([0] if len(known) else np.arange(0))
    with pytest.raises(UsageError, match="no CIFAR-10"):
        scoring.open_known("cifar10", None, False, protocols.get("cifar10-resnet")).read([0])


def test_runs_of_several_seeds_share_a_row_and_two_files_of_one_seed_do_not(
    cmbench: Commands, npz: Path, pixels: Pixels, tmp_path: Path
) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, arr_0=pixels[::-1, ::-1])
    cmbench("score", npz, *WORDS)
    cmbench("score", other, *WORDS, "--seed", "1")
    (row,) = json.loads(cmbench("table", "--format", "json").out)
    assert row["seeds"] == [0, 1] and row["metrics"]["fd_digits"]["n"] == 2
    cmbench("score", other, *WORDS)
    rows = json.loads(cmbench("table", "--format", "json").out)
    assert len(rows) == 3 and all(len(row["seeds"]) == 1 for row in rows)


# --- bad input -----------------------------------------------------------------------------------


def broken(path: Path, pixels: Pixels, kind: str) -> Path:
    """A folder or npz with something wrong in it."""
    gray = pixels[..., 0]
    if kind == "nothing":
        return path
    if kind in ("floats", "not numbers", "two bytes", "truncated", "text", "keys"):
        file = path.with_suffix(".npz")
        changed = {
            "floats": pixels / 255,
            "not numbers": np.full(pixels.shape, np.nan, np.float32),
            "two bytes": pixels.astype(np.uint16) * 257,
        }
        np.savez(file, **{"weights" if kind == "keys" else "arr_0": changed.get(kind, pixels)})
        if kind == "truncated":
            file.write_bytes(file.read_bytes()[:-3000])
        if kind == "text":
            file = path.with_suffix(".txt")
            file.write_text("hello")
        return file
    if kind == "empty":
        path.mkdir()
        return path
    if kind == "larger":
        return folder_of(path, pixels.repeat(2, axis=1).repeat(2, axis=2))
    folder_of(path, pixels[:1] if kind == "single" else pixels[:3])
    bad = path / "0001.png"
    if kind == "sizes":
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(bad)
    elif kind == "modes":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(bad)
    elif kind == "alpha":
        Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(bad)
    elif kind == "deep":
        Image.fromarray(gray[0].astype(np.uint16) * 257).save(bad)
    elif kind == "corrupt":
        content = bytearray(bad.read_bytes())
        content[60:80] = bytes(20)
        bad.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("nothing", 2, "there is nothing at"),
        ("empty", 2, "no images"),
        ("single", 2, "holds one image"),
        ("sizes", 2, "0001.png is 9 × 9"),
        ("modes", 2, "0000.png is grayscale, but 0001.png is RGB"),
        ("alpha", 2, "0001.png has an alpha channel"),
        ("deep", 2, "0001.png has 16 bits a channel"),
        ("corrupt", 1, "0001.png cannot be decoded"),
        ("truncated", 1, "cannot read"),
        ("floats", 2, "is float64, but images are uint8 in 0 .. 255"),
        ("not numbers", 2, "is float32, but images are uint8 in 0 .. 255"),
        ("two bytes", 2, "is uint16, but images are uint8 in 0 .. 255"),
        ("keys", 2, "holds no images"),
        ("text", 2, "neither a folder nor a .zip or .npz"),
        ("larger", 2, "holds 16 × 16 images and Digits is 8 × 8"),
    ],
)
def test_bad_samples_end_in_one_clear_line(
    cmbench: Commands, tmp_path: Path, pixels: Pixels, kind: str, status: int, said: str
) -> None:
    done = cmbench("score", broken(tmp_path / "bad", pixels, kind), *WORDS)
    assert (done.status, done.out) == (status, "")
    assert said in done.error
    assert not records.read(Path("results"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nfe", "0"), "at least 1 evaluation"),
        (("--protocol", "digit"), "did you mean 'digits'"),
        (("-d", "digitz"), "did you mean 'digits'"),
        (("--against", "nowhere.npz"), "no reference file"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--protocol", "cm-cifar10"), "no reference for digits"),
    ],
)
def test_wrong_options_end_in_one_clear_line(
    cmbench: Commands, npz: Path, words: tuple[str, ...], said: str
) -> None:
    done = cmbench("score", npz, *WORDS, "--offline", *words)
    assert done.status == 2 and said in done.error


BAD_REFERENCES = {
    "another extractor": (
        2,
        {"mu": np.zeros(2048), "sigma": np.eye(2048)},
        "holds inception-v3/pool3 and protocol 'digits' needs digits-cnn/features",
    ),
    "not numbers": (1, {"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "values that are not finite"),
    "another size": (2, {"mu": np.zeros(9), "sigma": np.eye(9)}, "has 9 dimensions"),
    "no statistics": (1, {"weights": np.zeros(9)}, "no reference statistics"),
}


@pytest.mark.parametrize("kind", BAD_REFERENCES)
def test_bad_references_end_in_one_clear_line(
    cmbench: Commands, npz: Path, tmp_path: Path, kind: str
) -> None:
    status, arrays, said = BAD_REFERENCES[kind]
    if kind in ("not numbers", "another size"):  # as files of ours, which name their layer
        known = Statistics(arrays["mu"], arrays["sigma"], 100)
        references.write(tmp_path / "bad.npz", Reference("bad", {"digits-cnn/features": known}))
    else:
        np.savez(tmp_path / "bad.npz", **arrays)
    done = cmbench("score", npz, *WORDS, "--against", tmp_path / "bad.npz")
    assert (done.status, done.out) == (status, "") and said in done.error
    assert not records.read(Path("results"))


def test_features_that_are_not_finite_are_reported_in_the_record(
    cmbench: Commands, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Classifier.forward

    def broken(self: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = whole(self, images)
        features[3] = torch.nan
        return features, logits

    cmbench("reference", "build", "-d", "digits", "--protocol", "digits")
    monkeypatch.setattr(Classifier, "forward", broken)
    done = cmbench("score", npz, *WORDS)
    assert done.status == 0 and "the features of sample 3 are not finite" in done.out
    metrics = the_record().metrics
    assert metrics["fid"].value is None and metrics["is"].value is not None


def test_gray_samples_of_a_colour_data_set_are_measured_as_three_equal_channels(
    cmbench: Commands, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    colour = folder_of(tmp_path / "colour", random.integers(0, 256, (90, 8, 8, 3), np.uint8))
    gray = random.integers(0, 256, (80, 8, 8, 1), np.uint8)
    words = ("-d", "images", "--data", colour, "--label", "x", "--nfe", 1, "--protocol", tmp_path / "p.toml")
    (tmp_path / "p.toml").write_text('base = "digits"\n[references."*"]\nname = "images"\n')
    one, three = (folder_of(tmp_path / str(n), gray.repeat(n, axis=-1)) for n in (1, 3))
    assert cmbench("score", one, *words, "--out", "a").status == 0
    assert cmbench("score", three, *words, "--out", "b").status == 0
    assert the_record(Path("a")).metrics == the_record(Path("b")).metrics
    assert any("three equal channels" in note for note in the_record(Path("a")).notes)


def test_collapsed_samples_are_measured_and_what_cannot_be_says_why(
    cmbench: Commands, tmp_path: Path, pixels: Pixels
) -> None:
    same = tmp_path / "same.npz"
    np.savez(same, arr_0=pixels[:1].repeat(100, axis=0))
    assert cmbench("score", same, *WORDS).status == 0
    metrics = the_record().metrics
    assert metrics["fid"].value is not None and metrics["fid"].value > 1 and metrics["fid"].std is None
    assert metrics["is"].value == pytest.approx(1)
    assert metrics["recall"].value == 0


def test_fewer_samples_than_dimensions_are_noted(cmbench: Commands, tmp_path: Path, pixels: Pixels) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, arr_0=pixels[:40])
    cmbench("score", few, *WORDS)
    assert "40 samples in 64 dimensions: their covariance is singular" in (
        the_record().metrics["fid"].note or ""
    )
