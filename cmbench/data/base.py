"""What a data set is: a registered description of it, and the opened images and labels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmbench import registry
from cmbench.errors import CmbenchError, UsageError, WorkError

Shape = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Indices = NDArray[np.intp]
Labels = NDArray[np.int64]


class Source(Protocol):
    """Where images come from: memory, a mapped file, or files decoded when they are read."""

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""

    def __len__(self) -> int: ...

    def read(self, indices: Indices) -> Pixels:
        """The images at valid ``indices``, uint8 [B, C, H, W], a new array."""

    def digest(self) -> bytes:
        """What identifies these images, for :attr:`ImageData.fingerprint`."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """An opened data set: ``len(data)`` uint8 images, read by index, and their labels.

    Attributes:
        name: the registered name (``cifar10``), or the file's own where a path was opened.
        title: as tables print it.
        source: what reads the images; safe to use from threads, forked and spawned processes.
        labels: int64 [N] in 0 .. classes - 1, or None; of a deferred set they come with :meth:`present`.
        classes: how many classes the labels name; 0 without labels.
    """

    name: str
    title: str
    source: Source
    labels: Labels | None = None
    classes: int = 0

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""
        return self.source.shape

    def read(self, indices: ArrayLike) -> Pixels:
        """The images at ``indices`` (integers [B] in 0 .. N - 1), uint8 [B, C, H, W], in the order asked for.

        Raises:
            IndexError: indices that are not a row of integers in range.
            WorkError: an image that cannot be decoded, by name.
        """
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(f"image indices are a row of integers, not {rows.dtype} {rows.shape}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"image indices {rows.min()} .. {rows.max()} leave 0 .. {len(self) - 1}")
        return self.source.read(rows.astype(np.intp))

    def present(self) -> "ImageData":
        """The data set with its content: itself, or what a deferred one opens now (and raises as that does)."""
        return self.source.open() if isinstance(self.source, Deferred) else self

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of SHA-256 over shape, images and labels.

        Of arrays the content counts (an ``.npz`` and the same array in memory agree). Of image files, too
        many to read for this, it is the sorted relative names, the file sizes, and the size resized to.
        """
        if isinstance(self.source, Deferred):
            return self.source.fingerprint or self.present().fingerprint
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        parts = repr((len(self), *self.shape)).encode(), self.source.digest(), labels
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as registered under the entry point group ``cmbench.datasets``.

    Attributes:
        name: what the user types.
        title: what tables print; equals the group of published tables where there is one.
        shape: C, H, W, or None where it is taken from the data.
        classes: number of classes, 0 where unlabelled.
        load: (folder or file of the user's, or None; may download) -> the opened training split.
        how_to_get: one line for a user who lacks it.
        locate: (folder or file, or None) -> where the data lies, or None where it is absent; decodes nothing.
        content: number of images and :attr:`ImageData.fingerprint` of the published set. Where it is absent, it is
            then opened when an image is first read.
        load_resized: (folder or file, or None; size) -> the images cropped and resized to size x size; None
            for sets that come in one size.
    """

    name: str
    title: str
    shape: Shape | None
    classes: int
    load: Callable[[Path | None, bool], ImageData]
    how_to_get: str
    locate: Callable[[Path | None], str | None]
    content: tuple[int, str] | None = None
    load_resized: Callable[[Path | None, int], ImageData] | None = None


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: uint8 [N, C, H, W]."""

    images: Pixels

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""
        _, C, H, W = self.images.shape
        return C, H, W

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]."""
        return np.ascontiguousarray(self.images[indices])

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return content_digest(self)


class Deferred:
    """The images of a data set that is opened when one is first read: many runs need no more than its name.

    Args:
        shape: C, H, W.
        count: how many images there are, 0 where nobody knows.
        fingerprint: :attr:`ImageData.fingerprint` of the content; None where it is unknown until it is opened.
        load: opens it, with a download if need be.
    """

    def __init__(
        self, shape: Shape, count: int, fingerprint: str | None, load: "Callable[[], ImageData]"
    ) -> None:
        self.shape, self.fingerprint = shape, fingerprint
        self._count, self._load = count, load
        self._opened: ImageData | CmbenchError | None = None

    def __len__(self) -> int:
        return self._count

    def open(self) -> ImageData:
        """The data set itself, loaded at the first call.

        Raises:
            UsageError: it is not there and may not be downloaded.
            WorkError: the download failed, or gave other images.
        """
        if self._opened is None:
            try:
                opened = self._load()
                if self.fingerprint not in (None, opened.fingerprint):
                    raise WorkError(
                        f"{opened.title} as found has fingerprint {opened.fingerprint}, not {self.fingerprint}"
                    )
                self._opened = opened
            except CmbenchError as error:
                self._opened = error  # whoever asks next is told at once
        if isinstance(self._opened, CmbenchError):
            raise self._opened
        return self._opened

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]; raises as :meth:`open`."""
        return self.open().read(indices)

    def digest(self) -> bytes:
        """That of the content; raises as :meth:`open`."""
        return self.open().source.digest()


def content_digest(source: Source, chunk: int = 1024) -> bytes:
    """SHA-256 over the bytes of all images in order, each as C, H, W."""
    content = hashlib.sha256()
    for start in range(0, len(source), chunk):
        content.update(source.read(np.arange(start, min(start + chunk, len(source)))).data)
    return content.digest()


def open_dataset(
    name: str, data: Path | None = None, download: bool = True, size: int | None = None
) -> ImageData:
    """Open a registered data set's training split, or promise to where it is absent and its content is known.

    Args:
        name: registered name, built in or of a plug-in.
        data: the user's folder or file; None: the cache, then a download.
        download: whether a download may be made.
        size: crop and resize to this many pixels (:func:`cmbench.data.resize.fit`), for sets that offer it.

    Raises:
        UsageError: unknown name, nothing at ``data``, absent data that may not or cannot be downloaded, a
            size that the set does not come in.
        WorkError: a failed download, damaged files.
    """
    spec: DatasetSpec = registry.load("data set", name)
    if data is not None and not data.exists():
        raise UsageError(f"there is nothing at {data}: give the folder or file that holds {spec.title}")
    if size is None:
        if spec.content and spec.shape and data is None and spec.locate(None) is None:
            late = Deferred(spec.shape, *spec.content, partial(spec.load, None, download))
            return ImageData(spec.name, spec.title, late, None, spec.classes)
        return spec.load(data, download)
    if spec.load_resized is None:
        raise UsageError(f"{spec.title} comes in one size: leave the size {size} away")
    if size < 1 or (spec.shape is not None and size != spec.shape[1]):
        wanted = f"{spec.shape[1]} pixels" if spec.shape else "a positive number of pixels"
        raise UsageError(f"{spec.title} cannot be resized to {size}: its size is {wanted}")
    return spec.load_resized(data, size)
