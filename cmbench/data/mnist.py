"""MNIST (LeCun et al., 1998): 60,000 training images of handwritten digits, 1 x 28 x 28, from idx files."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmbench.data.base import ArraySource, DatasetSpec, ImageData
from cmbench.download import fetch
from cmbench.errors import UsageError, WorkError
from cmbench.paths import cache_dir

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MD5 = {  # of the official .gz files
    IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def load(data: Path | None, download: bool) -> ImageData:
    """The training split, from ``data`` (see :func:`locate`), else the cache, else a download into the cache.

    Raises:
        UsageError: the files are not there and may not be downloaded.
        WorkError: a damaged file or a failed download.
    """
    folder = _find(data)
    if folder is None:
        if data is not None or not download:
            raise UsageError(
                f"no MNIST under {data or _cache()}: {IMAGES} and {LABELS} (or .gz) are needed there"
            )
        folder = _download()
    images = _read_idx(_file(folder, IMAGES), 3)
    labels = _read_idx(_file(folder, LABELS), 1).astype(np.int64)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max(initial=0) > 9:
        raise WorkError(f"{folder} holds no MNIST: images {images.shape}, labels {labels.shape}")
    return ImageData(MNIST.name, MNIST.title, ArraySource(images[:, None]), labels, 10)


def locate(data: Path | None) -> str | None:
    """The folder with the idx files: DIR, DIR/MNIST/raw, DIR/raw, or without DIR the cache."""
    folder = _find(data)
    return str(folder) if folder else None


def _cache() -> Path:
    return cache_dir() / "data" / "mnist"


def _file(folder: Path, name: str) -> Path:
    raw = folder / name
    return raw if raw.is_file() else folder / f"{name}.gz"


def _find(data: Path | None) -> Path | None:
    root = data or _cache()
    for folder in (root, root / "MNIST" / "raw", root / "raw"):
        if _file(folder, IMAGES).is_file() and _file(folder, LABELS).is_file():
            return folder
    return None


def _download() -> Path:
    for name, md5 in MD5.items():
        for mirror in MIRRORS:
            try:
                fetch(f"{mirror}{name}.gz", _cache() / f"{name}.gz", md5=md5)
                break
            except WorkError:
                if mirror == MIRRORS[-1]:
                    raise
    return _cache()


def _read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzip: magic 0x0000080r, r big-endian sizes, then the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise WorkError(f"cannot read {path}: {error}") from error
    start = 4 + 4 * rank
    sizes = np.frombuffer(content[4:start], ">u4").astype(int) if len(content) >= start else np.zeros(0, int)
    if content[:4] != bytes([0, 0, 8, rank]) or len(content) != start + sizes.prod():
        raise WorkError(
            f"{path} is damaged or no idx file: {len(content)} bytes, header {content[:start].hex()}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


MNIST = DatasetSpec(
    name="mnist",
    title="MNIST",
    shape=(1, 28, 28),
    classes=10,
    load=load,
    how_to_get="downloaded on first use (12 MB), or --data DIR with the four idx files, plain or .gz",
    locate=locate,
)
