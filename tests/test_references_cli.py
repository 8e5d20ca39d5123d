"""`cmbench reference` and `--against`: statistics files are checked, kept under the right name, and used."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from tiny_runs import SETTINGS

from cmbench.data import open_dataset
from cmbench.data.digits import DIGITS
from cmbench.errors import UsageError
from cmbench.metrics import library, protocols, references

SMALL = 200


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMBENCH_OFFLINE", "1")


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """The second half of the digits."""
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=DIGITS.load(None, False).read(np.arange(900, 1797)).transpose(0, 2, 3, 1))
    return path


@pytest.fixture(scope="module")
def inception() -> tuple[np.ndarray, np.ndarray]:
    """A mean [2048] and covariance [2048, 2048] such as pytorch-fid writes."""
    rows = np.random.default_rng(0).standard_normal((300, 2048))
    return rows.mean(0), np.cov(rows.T)


WORDS = ("-d", "digits", "--label", "Mine", "--nfe", "1")


def fid(done_out: str) -> float:
    return float(json.loads(done_out)[0]["metrics"]["fid"]["value"])


def test_build_list_show(cmbench: Commands, cache: Path) -> None:
    built = cmbench("reference", "build", "-d", "digits")
    path = Path(built.out.strip())
    assert built.status == 0 and path.parent == cache / "references"
    entries = json.loads(cmbench("reference", "list", "--json").out)
    shipped, kept = (entry for entry in entries if entry["state"] == "ok")
    assert shipped["used_by"] == ["cifar10-resnet on cifar10"]
    assert kept["name"] == path.stem and kept["origin"] == "computed from digits (1797 images)"
    assert kept["layers"] == {"digits-cnn/features": {"dimensions": 64, "count": 1797, "features": 1797}}
    absent = {entry["name"]: entry for entry in entries if entry["state"] == "absent"}
    assert absent["VIRTUAL_imagenet64_labeled"]["used_by"] == ["adm on imagenet64"]
    assert "https://" in absent["cifar10-32x32"]["origin"]
    shown = json.loads(cmbench("reference", "show", path.stem, "--json").out)
    (layer,) = shown["layers"].values()
    assert layer["rank of the covariance"] == 64
    assert shown["provenance"]["fingerprint"] == open_dataset("digits").fingerprint
    assert path.stem in cmbench("reference", "list").out
    assert "digits-cnn" in cmbench("reference", "show", path).out


def test_a_run_uses_what_was_built(cmbench: Commands, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmbench("reference", "build", "-d", "digits")
    built = cmbench("reference", "list", "--json").out
    assert cmbench("score", samples, *WORDS).status == 0
    assert cmbench("reference", "list", "--json").out == built


def test_a_file_of_ones_own_as_reference(cmbench: Commands, samples: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    np.savez(
        half / "half.npz", arr_0=DIGITS.load(None, False).read(np.arange(900, 1797)).transpose(0, 2, 3, 1)
    )
    protocol = tmp_path / "any.toml"
    protocol.write_text('base = "digits"\n[references."*"]\nname = "images"\n')
    words = ("-d", "images", "--data", half / "half.npz", "--protocol", protocol)
    built = cmbench("reference", "build", *words, "--to", "mine.npz")
    assert (built.status, built.out.strip()) == (0, "mine.npz")
    own = cmbench("score", samples, *WORDS, "--against", "mine.npz", "--json")
    assert fid(own.out) == pytest.approx(0, abs=1e-9)
    whole = cmbench("score", samples, *WORDS, "--json")
    assert fid(whole.out) > 0.05
    fingerprints = {json.loads(done.out)[0]["protocol_fingerprint"] for done in (own, whole)}
    assert len(fingerprints) == 2


def test_a_benchmark_run_takes_a_reference_as_well(cmbench: Commands, samples: Path) -> None:
    words = (
        "run",
        "--method",
        "ddim",
        "--nfe",
        "2",
        "--samples",
        "80",
        "--set",
        *SETTINGS,
        "--device",
        "cpu",
    )
    statistics = cmbench("reference", "build", "-d", "digits", "--to", "mine.npz").out.strip()
    plain, own = cmbench(*words, "--json"), cmbench(*words, "--against", statistics, "--json")
    assert fid(plain.out) == fid(own.out)  # the same statistics, under another name
    fingerprints = {json.loads(done.out)[0]["protocol_fingerprint"] for done in (plain, own)}
    assert len(fingerprints) == 2
    wrong = cmbench(*words, "--against", "nowhere.npz")
    assert wrong.status == 2 and "there is no reference file nowhere.npz" in wrong.error


def test_a_name_in_the_cache_and_the_data_sets_own_name(cmbench: Commands, samples: Path) -> None:
    built = Path(cmbench("reference", "build", "-d", "digits").out.strip())
    plain = cmbench("score", samples, *WORDS, "--json")
    named = cmbench("score", samples, *WORDS, "--against", built.stem, "--json")
    train = cmbench("score", samples, *WORDS, "--against", "digits-train", "--json")
    assert fid(plain.out) == fid(named.out) == fid(train.out)
    other = cmbench("score", samples, *WORDS, "--against", "cifar10-train")
    assert other.status == 2 and "the data set is digits" in other.error
    wrong = cmbench("score", samples, *WORDS, "--against", built.stem[:-1] + "z")
    assert wrong.status == 2 and f"did you mean '{built.stem}'" in wrong.error


def test_a_reference_of_another_extractor_is_named(
    cmbench: Commands, samples: Path, tmp_path: Path, inception: tuple[np.ndarray, np.ndarray]
) -> None:
    mu, sigma = inception
    np.savez(tmp_path / "stats.npz", mu=mu[:64], sigma=sigma[:64, :64])
    done = cmbench("reference", "import", "stats.npz")
    assert done.status == 2 and "64 dimensions and inception-v3/pool3 has 2048" in done.error
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    refused = cmbench("score", samples, *WORDS, "--against", "stats.npz")
    assert (
        refused.status == 2
        and "needs digits-cnn/features: it was made with another extractor" in refused.error
    )


@pytest.mark.parametrize(
    ("file", "words", "kept"),
    [
        ("cifar.npz", ("--protocol", "cm-cifar10"), "cifar10_legacy_tensorflow_train_32.npz"),
        ("cifar.npz", ("--protocol", "edm", "-d", "cifar10"), "cifar10-32x32.npz"),
        ("cifar.npz", ("--as", "mine"), "mine.npz"),
        ("cifar.npz", (), "cifar.npz"),
        ("cifar.pkl", ("--protocol", "edm", "-d", "cifar10"), "cifar10-32x32.npz"),
    ],
)
def test_published_files_are_kept_where_protocols_look(
    cmbench: Commands,
    cache: Path,
    tmp_path: Path,
    inception: tuple[np.ndarray, np.ndarray],
    file: str,
    words: tuple[str, ...],
    kept: str,
) -> None:
    mu, sigma = inception
    if file.endswith(".pkl"):
        (tmp_path / file).write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}))
    else:
        np.savez(tmp_path / file, mu=mu, sigma=sigma)
    done = cmbench("reference", "import", file, *words)
    assert (done.status, done.out.strip()) == (0, str(cache / "references" / kept))
    found = references.read(cache / "references" / kept)[0].layers["inception-v3/pool3"]
    assert np.array_equal(found.mean, mu) and np.array_equal(found.covariance, sigma)
    if words[:1] == ("--protocol",):
        assert f"used by {words[1]} on cifar10" in done.err
    if file.endswith(".npz"):
        assert (cache / "references" / kept).read_bytes() == (tmp_path / file).read_bytes()
    assert cmbench("reference", "import", file, *words).status == 0  # the same file again is no conflict


def test_what_an_adm_file_lacks_is_said(
    cmbench: Commands, tmp_path: Path, inception: tuple[np.ndarray, np.ndarray]
) -> None:
    mu, sigma = inception
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma)
    done = cmbench("reference", "import", "adm.npz", "--protocol", "adm", "-d", "lsun-cat")
    assert done.status == 0
    assert "no statistics of inception-v3/spatial: sFID cannot be computed" in done.err
    assert "no features of inception-v3/pool3: Precision, Recall cannot be computed" in done.err
    images = np.zeros((3, 64, 64, 3), np.uint8)
    np.savez(
        tmp_path / "full.npz", mu=mu, sigma=sigma, mu_s=mu[:2023], sigma_s=sigma[:2023, :2023], arr_0=images
    )
    full = cmbench("reference", "import", "full.npz", "--protocol", "adm", "-d", "imagenet64")
    assert full.status == 0 and full.err.splitlines() == ["used by adm on imagenet64"]
    shown = json.loads(cmbench("reference", "list", "--json").out)
    (entry,) = [entry for entry in shown if entry["name"] == "VIRTUAL_imagenet64_labeled"]
    assert entry["images"] == 3 and set(entry["layers"]) == {"inception-v3/pool3", "inception-v3/spatial"}


@pytest.mark.parametrize(
    ("change", "words", "status", "said"),
    [
        ("nan", (), 1, "not finite"),
        ("asymmetric", (), 1, "not symmetric"),
        ("negative", (), 1, "variances"),
        ("keys", (), 1, "neither mu and sigma nor images"),
        ("truncated", (), 1, "holds no reference statistics that can be read"),
        ("absent", (), 2, "there is no file"),
        ("none", ("--protocol", "adm"), 2, "say --dataset"),
        ("none", ("--protocol", "adm", "-d", "lsun-dog"), 2, "lsun-bedroom"),
        ("none", ("--protocol", "digits"), 2, "compares with the data set itself"),
        ("none", ("--protocol", "edm", "--as", "x"), 2, "give one of them"),
        ("none", ("--as", "../x"), 2, "a plain name"),
    ],
)
def test_bad_statistics_end_in_one_clear_line(
    cmbench: Commands,
    cache: Path,
    tmp_path: Path,
    inception: tuple[np.ndarray, np.ndarray],
    change: str,
    words: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    mu, sigma = inception[0].copy(), inception[1].copy()
    if change == "nan":
        mu[3] = np.nan
    elif change == "asymmetric":
        sigma[3, 7] += 1
    elif change == "negative":
        sigma[3, 3] = -1
    path = tmp_path / "stats.npz"
    if change != "absent":
        np.savez(path, **({"weights": mu} if change == "keys" else {"mu": mu, "sigma": sigma}))
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    done = cmbench("reference", "import", path, *words)
    assert done.status == status and said in done.error
    assert not list((cache / "references").glob("*")) if (cache / "references").exists() else True


def test_a_kept_file_is_replaced_only_when_asked(
    cmbench: Commands, tmp_path: Path, inception: tuple[np.ndarray, np.ndarray]
) -> None:
    mu, sigma = inception
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "b.npz", mu=mu + 1, sigma=sigma)
    assert cmbench("reference", "import", "a.npz", "--as", "mine").status == 0
    refused = cmbench("reference", "import", "b.npz", "--as", "mine")
    assert refused.status == 2 and "--force replaces it" in refused.error
    assert cmbench("reference", "import", "b.npz", "--as", "mine", "--force").status == 0


def test_a_damaged_file_in_the_cache_is_listed_as_damaged(cmbench: Commands, cache: Path) -> None:
    (cache / "references").mkdir(parents=True)
    (cache / "references" / "bad.npz").write_bytes(b"PK nothing")
    (entry,) = [e for e in json.loads(cmbench("reference", "list", "--json").out) if e["name"] == "bad"]
    assert entry["state"].startswith("damaged")
    shown = cmbench("reference", "show", "bad")
    assert shown.status == 1 and "damaged" in shown.error


def test_building_says_what_it_cannot_build(cmbench: Commands, tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, arr_0=np.zeros((2, 64, 64, 3), np.uint8))
    published = cmbench("reference", "build", "-d", "imagenet64", "--data", images)
    assert published.status == 2 and "not with what its images give" in published.error
    np.savez(images, arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    weights = cmbench("reference", "build", "-d", "digits", "--protocol", "torch-fidelity", "--offline")
    assert weights.status == 1 and "inception-v3 weights not found" in weights.error


def test_cleanfids_names_are_known_and_must_fit_the_resizing(
    cmbench: Commands, cache: Path, samples: Path, tmp_path: Path, inception: tuple[np.ndarray, np.ndarray]
) -> None:
    protocol = protocols.get("cm-cifar10")
    with pytest.raises(UsageError, match="made with pil-bicubic resizing"):
        library.with_reference(protocol, "cifar10_clean_train_32", "cifar10", False)
    with pytest.raises(UsageError, match="nothing is downloaded"):
        library.with_reference(protocol, "ffhq_legacy_tensorflow_trainval_1024", "cifar10", False)
    np.savez(tmp_path / "x.npz", mu=inception[0], sigma=inception[1])
    (cache / "references").mkdir(parents=True)
    shutil.copy(tmp_path / "x.npz", cache / "references" / "cifar10_legacy_tensorflow_test_32.npz")
    given = library.with_reference(protocol, "cifar10_legacy_tensorflow_test_32", "cifar10", False)
    assert given.fingerprint != protocol.fingerprint
    assert given.references["*"].path == cache / "references" / "cifar10_legacy_tensorflow_test_32.npz"


def test_a_downloaded_name_is_asked_for_at_cleanfids_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import cmbench.download

    asked = []

    def fetch(url: str, target: Path, **_: object) -> Path:
        asked.append(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez(target, mu=np.zeros(2), sigma=np.eye(2))
        return target

    monkeypatch.setattr(cmbench.download, "fetch", fetch)
    library.with_reference(protocols.get("clean"), "cifar10_clean_test_32", "cifar10", True)
    assert asked == ["https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_test_32.npz"]
