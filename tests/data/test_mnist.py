"""MNIST from idx files: every place and form they come in, damaged ones, and the download."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from cmbench.data import mnist, open_dataset
from cmbench.errors import WorkError

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (7, 28, 28), np.uint8)
LABELS = RNG.integers(0, 10, 7).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder: Path, suffix: str = "") -> dict[str, str]:
    """The four files, and the md5 of each."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name in mnist.MD5:
        content = idx(IMAGES if "images" in name else LABELS)
        content = gzip.compress(content) if suffix else content
        (folder / f"{name}{suffix}").write_bytes(content)
        digests[name] = hashlib.md5(content).hexdigest()
    return digests


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "MNIST/raw", "raw"])
def test_files_of_the_users_own(tmp_path: Path, place: str, suffix: str) -> None:
    write(tmp_path / place, suffix)
    data = open_dataset("mnist", tmp_path, download=False)
    assert data.labels is not None
    np.testing.assert_array_equal(data.read(np.arange(7)), IMAGES[:, None])
    np.testing.assert_array_equal(data.labels, LABELS)
    assert (data.shape, data.classes, data.labels.dtype) == ((1, 28, 28), 10, np.int64)
    assert mnist.MNIST.locate(tmp_path) == str(tmp_path / place)


def test_a_download_goes_to_the_cache_once(
    cache: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    monkeypatch.setattr(mnist, "MD5", write(folder, ".gz"))
    monkeypatch.setattr(mnist, "MIRRORS", (f"{url}gone/", url))  # the first mirror has nothing
    data = open_dataset("mnist")
    np.testing.assert_array_equal(data.read(np.arange(7)), IMAGES[:, None])
    assert sorted(path.name for path in (cache / "data/mnist").iterdir()) == sorted(
        f"{name}.gz" for name in mnist.MD5
    )
    monkeypatch.setenv("CMBENCH_OFFLINE", "1")
    assert open_dataset("mnist").fingerprint == data.fingerprint


def test_a_mirror_with_other_files_is_not_believed(
    cache: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    write(folder, ".gz")
    monkeypatch.setattr(mnist, "MIRRORS", (url,))
    with pytest.raises(WorkError, match="checksum"):
        open_dataset("mnist")
    assert list((cache / "data/mnist").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"x",
        idx(IMAGES[:6]),
        idx(IMAGES[:, :27]),
        idx(LABELS),
        b"<html>not found</html>" * 9,
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    write(tmp_path, suffix)
    path = tmp_path / f"{mnist.IMAGES}{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(WorkError, match=str(tmp_path)):
        open_dataset("mnist", tmp_path)


def test_a_truncated_gzip(tmp_path: Path) -> None:
    write(tmp_path, ".gz")
    path = tmp_path / f"{mnist.IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WorkError, match=str(path)):
        open_dataset("mnist", tmp_path)


def test_real(real_data: Path) -> None:
    data = open_dataset("mnist", real_data, download=False)
    assert data.labels is not None
    assert len(data) == 60000
    assert np.bincount(data.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = data.read(np.arange(60000)).mean(dtype=np.float64) / 255
    assert mean == pytest.approx(0.1307, abs=5e-5)  # the figure every MNIST script normalises by
