"""CIFAR-10 from both official layouts, plain or packed, and what a hostile or damaged one leads to."""

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cmbench.data import cifar10, open_dataset
from cmbench.errors import UsageError, WorkError

N = 4  # images a batch, in place of 10,000
RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (5, N, 3, 32, 32), np.uint8)
LABELS = RNG.integers(0, 10, (5, N))


@pytest.fixture(autouse=True)
def small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_data" not in request.fixturenames:
        monkeypatch.setattr(cifar10, "RECORDS", N)


def binary(batch: int) -> bytes:
    labels = LABELS[batch].astype(np.uint8)[:, None]
    return np.concatenate([labels, PIXELS[batch].reshape(N, 3072)], axis=1).tobytes()


def python(batch: int, protocol: int = 2) -> bytes:
    content = {
        b"batch_label": b"training batch",
        b"labels": LABELS[batch].tolist(),
        b"data": PIXELS[batch].reshape(N, 3072),
        b"filenames": [b"\xe9.png"] * N,
    }
    return pickle.dumps(content, protocol=protocol)


def python2(batch: int) -> bytes:
    """A batch as Python 2 pickled the official ones: old names of numpy, text as bytes."""
    raw, out = PIXELS[batch].tobytes(), io.BytesIO()

    def text(value: bytes) -> bytes:  # SHORT_BINSTRING or BINSTRING
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + len(value).to_bytes(4, "little") + value
        )

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    out.write(b"\x80\x02}(" + text(b"data"))
    out.write(
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R"
    )
    out.write(b"(" + number(1) + number(N) + number(3072) + b"\x86")
    out.write(b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R")
    out.write(b"(" + number(3) + text(b"|") + b"NNN" + number(0) * 3 + b"tb")
    out.write(b"\x89" + text(raw) + b"tb")
    out.write(text(b"labels") + b"](" + b"".join(number(int(label)) for label in LABELS[batch]) + b"e")
    out.write(b"u.")
    return out.getvalue()


LAYOUTS = {
    "binary": ("cifar-10-batches-bin", ".bin", binary),
    "python": ("cifar-10-batches-py", "", python),
    "python 2": ("cifar-10-batches-py", "", python2),
}


def files(layout: str) -> dict[str, bytes]:
    _, suffix, make = LAYOUTS[layout]
    return {f"data_batch_{batch + 1}{suffix}": make(batch) for batch in range(5)}


def write(folder: Path, layout: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(layout).items():
        (folder / name).write_bytes(content)


def archive(
    folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None = None
) -> Path:
    """The official archive of a layout with our small batches, declared to have the right md5."""
    inside = LAYOUTS[layout][0]
    path = folder / ("cifar-10-binary.tar.gz" if layout == "binary" else "cifar-10-python.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            members or {f"{inside}/{name}": c for name, c in files(layout).items()}
        ).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVES, path.name, (inside, digest))
    return path


def check(data) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_array_equal(data.read(np.arange(5 * N)), PIXELS.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.labels, LABELS.ravel())
    assert (data.shape, data.classes, data.labels.dtype) == ((3, 32, 32), 10, np.int64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nested", [True, False])
def test_plain_files(tmp_path: Path, layout: str, nested: bool) -> None:
    folder = tmp_path / LAYOUTS[layout][0] if nested else tmp_path
    write(folder, layout)
    check(open_dataset("cifar10", tmp_path, download=False))
    assert cifar10.CIFAR10.locate(tmp_path) == str(folder)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_any_protocol_that_needs_no_buffers(tmp_path: Path, protocol: int) -> None:
    for batch in range(5):
        (tmp_path / f"data_batch_{batch + 1}").write_bytes(python(batch, protocol))
    check(open_dataset("cifar10", tmp_path))


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_an_archive_is_unpacked_into_the_cache_once(
    tmp_path: Path, cache: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, layout, monkeypatch)
    check(open_dataset("cifar10", tmp_path, download=False))
    check(open_dataset("cifar10", path, download=False))
    assert [found.name for found in (cache / "data/cifar10").iterdir()] == [LAYOUTS[layout][0]]
    monkeypatch.setattr(tarfile, "open", None)
    check(open_dataset("cifar10", tmp_path, download=False))
    check(open_dataset("cifar10", download=False))


def test_a_download_goes_to_the_cache_once(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = site
    archive(folder, "binary", monkeypatch)
    monkeypatch.setattr(cifar10, "SITE", url)
    check(cifar10.load(None, True))
    monkeypatch.setenv("CMBENCH_OFFLINE", "1")
    check(cifar10.load(None, True))


def test_absent_images_are_a_promise_that_is_kept_when_one_is_read(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, shape, number and fingerprint are known without them; a download that gives other images is no match."""
    promised = open_dataset("cifar10", download=False)
    assert (len(promised), promised.shape, promised.classes) == (50_000, (3, 32, 32), 10)
    assert promised.fingerprint == cifar10.CIFAR10.content[1]  # type: ignore[index]
    with pytest.raises(UsageError, match="no CIFAR-10"):
        promised.read([0])

    folder, url = site
    archive(folder, "binary", monkeypatch)
    monkeypatch.setattr(cifar10, "SITE", url)
    other = open_dataset("cifar10")
    with pytest.raises(WorkError, match="fingerprint"):
        other.read([0])
    (folder / "cifar-10-binary.tar.gz").unlink()
    ours = open_dataset("cifar10")  # it is in the cache now: opened at once, whatever it holds
    check(ours)
    small = dataclasses.replace(cifar10.CIFAR10, content=(5 * N, ours.fingerprint), locate=lambda _: None)
    monkeypatch.setattr("cmbench.registry.load", lambda *_: small)
    late = open_dataset("cifar10")
    assert late.labels is None and late.fingerprint == ours.fingerprint
    check(late.present())
    np.testing.assert_array_equal(late.read([7]), ours.read([7]))


def test_the_known_content_is_that_of_the_real_images(real_data: Path) -> None:
    known = open_dataset("cifar10", real_data)
    assert (len(known), known.fingerprint) == cifar10.CIFAR10.content


def test_an_archive_that_is_not_the_official_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path, "binary", monkeypatch)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WorkError, match=str(path)):
        open_dataset("cifar10", tmp_path)


def test_an_archive_cannot_write_elsewhere(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"cifar-10-batches-bin/{name}": content for name, content in files("binary").items()}
    hostile = {
        "../../escaped": b"x",
        "cifar-10-batches-bin/../../escaped": b"x",
        str(tmp_path / "escaped"): b"x",
    }
    archive(tmp_path, "binary", monkeypatch, hostile | members)
    check(open_dataset("cifar10", tmp_path))
    assert not list(tmp_path.rglob("escaped"))


def test_an_archive_without_a_batch_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, "binary", monkeypatch, {"cifar-10-batches-bin/data_batch_1.bin": binary(0)})
    with pytest.raises(WorkError, match=str(path)):
        open_dataset("cifar10", tmp_path)
    assert list((cache / "data/cifar10").iterdir()) == []


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.mark),)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    write(tmp_path, "python")
    mark = tmp_path / "it ran"
    attack = pickle.dumps({b"data": PIXELS[0].reshape(N, 3072), b"labels": Payload(mark)})
    (tmp_path / "data_batch_3").write_bytes(attack)
    with pytest.raises(WorkError, match=r"data_batch_3.*posix\.mkdir"):
        open_dataset("cifar10", tmp_path)
    assert not mark.exists()
    pickle.loads(attack)  # the attack is a real one
    assert mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nfromfile", "os\nsystem"]
)
def test_other_globals_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, "python")
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(WorkError) as error:
        open_dataset("cifar10", tmp_path)
    assert name.replace("\n", ".") in str(error.value)
    assert "\n" not in str(error.value)


def batch_with(**changes: object) -> bytes:
    return pickle.dumps(
        pickle.loads(python(0)) | {key.encode(): value for key, value in changes.items()}, protocol=2
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        python(0)[:-300],
        pickle.dumps([1, 2]),
        batch_with(data=PIXELS[0].reshape(N, 3072).astype(np.float32)),
        batch_with(data=PIXELS[0].reshape(N, 3072).astype(np.int8)),
        batch_with(data=np.asfortranarray(PIXELS[0].reshape(N, 3072))),
        batch_with(data=PIXELS[0].reshape(N, 3, 1024)),
        batch_with(labels=[0] * (N - 1)),
        batch_with(labels=[10] * N),
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "python")
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(WorkError, match="data_batch_2") as error:
        open_dataset("cifar10", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [binary(0)[:-1], binary(0)[3073:], b"\x0b" + binary(0)[1:]])
def test_damaged_binaries(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "binary")
    (tmp_path / "data_batch_5.bin").write_bytes(content)
    with pytest.raises(WorkError, match="data_batch_5"):
        open_dataset("cifar10", tmp_path)


def test_real(real_data: Path) -> None:
    data = open_dataset("cifar10", real_data, download=False)
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [5000] * 10
    assert data.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    pixels = data.read(np.arange(50000))
    mean = pixels.mean(axis=(0, 2, 3), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)  # as published everywhere
    records = np.concatenate([data.labels.astype(np.uint8)[:, None], pixels.reshape(50000, 3072)], axis=1)
    assert hashlib.sha1(records[:10000]).hexdigest() == "aadd24acce27caa71bf4b10992e9e7b2d74c2540"
    assert hashlib.sha1(records[40000:]).hexdigest() == "26e2849e66a845b7f1e4614ae70f4889ae604628"
