"""CIFAR-10 (Krizhevsky, 2009): 50,000 training images, 3 x 32 x 32, in the official order."""

import pickle
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cmbench.data.base import ArraySource, DatasetSpec, ImageData, Labels, Pixels
from cmbench.download import fetch, verify
from cmbench.errors import UsageError, WorkError
from cmbench.paths import cache_dir

SITE = "https://www.cs.toronto.edu/~kriz/"
RECORDS = 10_000  # images in each batch
LAYOUTS = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}  # folder -> suffix of the batches
ARCHIVES = {  # archive -> the folder inside, md5
    "cifar-10-binary.tar.gz": ("cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar-10-python.tar.gz": ("cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a"),
}


def load(data: Path | None, download: bool) -> ImageData:
    """The training split, from ``data`` (see :func:`locate`), else the cache, else a download into the cache.

    Archives are compared with the official md5 once, when they are unpacked into the cache.

    Raises:
        UsageError: the files are not there and may not be downloaded.
        WorkError: a damaged file, a pickle with anything but arrays in it, a failed download.
    """
    found = _find(data)
    if found is None:
        if data is not None or not download:
            raise UsageError(
                f"no CIFAR-10 under {data or _cache()}: data_batch_1.bin .. data_batch_5.bin, "
                f"cifar-10-batches-py or {' or '.join(ARCHIVES)} is needed there"
            )
        name = "cifar-10-binary.tar.gz"
        found = fetch(SITE + name, _cache() / name, md5=ARCHIVES[name][1])
    folder = _unpack(found) if found.is_file() else found
    suffix = ".bin" if (folder / "data_batch_1.bin").is_file() else ""
    read = _read_binary if suffix else _read_pickle
    batches = [read(folder / f"data_batch_{batch}{suffix}") for batch in range(1, 6)]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return ImageData(CIFAR10.name, CIFAR10.title, ArraySource(images), labels, 10)


def locate(data: Path | None) -> str | None:
    """The folder with the five batches, or the archive, in DIR, DIR/<official folder>, or the cache."""
    found = _find(data)
    return str(found) if found else None


def _cache() -> Path:
    return cache_dir() / "data" / "cifar10"


def _find(data: Path | None) -> Path | None:
    root = data or _cache()
    if root.is_file():
        return root if root.name in ARCHIVES else None
    for folder in (root, *(root / name for name in LAYOUTS)):
        for suffix in LAYOUTS.values():
            if all((folder / f"data_batch_{batch}{suffix}").is_file() for batch in range(1, 6)):
                return folder
    return next((root / name for name in ARCHIVES if (root / name).is_file()), None)


def _unpack(archive: Path) -> Path:
    """Unpack the five training batches into the cache, once, and return their folder.

    Only these five are taken, by name, and written under names of our own: no path in it is followed.
    """
    name, md5 = ARCHIVES[archive.name]
    folder = _cache() / name
    if folder.is_dir():
        return folder
    verify(archive, md5=md5)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    try:
        with tarfile.open(archive) as tar:
            for batch in (f"data_batch_{number}{LAYOUTS[name]}" for number in range(1, 6)):
                member = tar.getmember(f"{name}/{batch}")
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise WorkError(f"{archive}: {member.name} is no plain file")
                (temporary / batch).write_bytes(content.read())
        temporary.chmod(0o755)
        temporary.rename(folder)
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        if not folder.is_dir():  # another process may have been faster
            raise WorkError(f"cannot unpack {archive} into {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _read_binary(path: Path) -> tuple[Pixels, Labels]:
    """One .bin batch: records of a label byte and 3,072 pixel bytes, planes R, G, B, rows from the top."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error}") from error
    if len(content) != RECORDS * 3073:
        raise WorkError(f"{path} is damaged: {len(content)} bytes, expected {RECORDS * 3073}")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 3073)
    return _batch(path, records[:, 1:], records[:, 0].astype(np.int64))


def _read_pickle(path: Path) -> tuple[Pixels, Labels]:
    """One python batch: a pickled dictionary with ``data`` uint8 [10000, 3072] and ``labels``."""
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        labels = np.array(content[b"labels"], np.int64)
        _, shape, dtype, fortran, raw = content[b"data"].state
        if dtype.args[0] not in (b"u1", "u1") or fortran:
            raise ValueError("the pixels are no uint8 array")
        images = np.frombuffer(raw, np.uint8).reshape(shape)
    except Exception as error:  # a damaged pickle may end in any exception
        raise WorkError(f"{path} is damaged or no CIFAR-10 batch: {type(error).__name__}: {error}") from error
    return _batch(path, images, labels)


def _batch(path: Path, images: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    if (
        images.shape != (RECORDS, 3072)
        or labels.shape != (RECORDS,)
        or not ((labels >= 0) & (labels < 10)).all()
    ):
        raise WorkError(f"{path} is damaged: images {images.shape}, labels {labels.shape}")
    return images.reshape(-1, 3, 32, 32), labels


class _Inert:
    """Stands for every class and function that a batch may name: keeps what it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays without executing anything: what they name is replaced, all else is refused."""

    ADMITTED: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Inert,
        ("numpy._core.multiarray", "_reconstruct"): _Inert,
        ("numpy", "ndarray"): _Inert,
        ("numpy", "dtype"): _Inert,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an admitted global. Raises UnpicklingError, naming it, for every other."""
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return self.ADMITTED[module, name]


CIFAR10 = DatasetSpec(
    name="cifar10",
    title="CIFAR-10",
    shape=(3, 32, 32),
    classes=10,
    load=load,
    how_to_get=f"downloaded on first use (170 MB), or --data DIR with {' or '.join(ARCHIVES)}, also unpacked",
    locate=locate,
    content=(50_000, "a8cad62fd11faedc"),
)
