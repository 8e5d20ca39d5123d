"""Images in ``.npz`` files: mapped where they are stored plainly, in memory where they are compressed."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from cmbench.data.base import ArraySource, Indices, Labels, Pixels, Shape, Source, content_digest
from cmbench.errors import UsageError, WorkError

IMAGE_KEYS = ("arr_0", "images", "data")
LABEL_KEYS = ("arr_1", "labels")


def open_npz(path: Path) -> tuple[Source, Labels | None]:
    """Images and labels of an ``.npz`` file.

    Images are ``arr_0`` or ``images``, uint8 [N, H, W, C] or [N, C, H, W] with C of 1 or 3, or ``data``,
    uint8 [N, 3 S S]. Labels are ``arr_1`` or ``labels``. Beside ``data``, in the downsampled ImageNet, labels
    count from 1 (from 0 here), in another order of classes than that of the sorted WordNet ids.

    Raises:
        UsageError: no such arrays, or of another type or shape.
        WorkError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            keys = {name.removesuffix(".npy"): name for name in file.namelist() if name.endswith(".npy")}
            key = next((key for key in IMAGE_KEYS if key in keys), None)
            if key is None:
                raise UsageError(
                    f"{path} holds no images: 'arr_0' or 'images' is needed, found {sorted(keys)}"
                )
            source = _open_member(path, file, keys[key], key)
            label_key = next((key for key in LABEL_KEYS if key in keys), None)
        labels = np.load(path)[label_key] if label_key else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise WorkError(f"cannot read {path}: {error}") from error
    if labels is not None:
        labels = labels - 1 if key == "data" else labels
        if labels.shape != (len(source),) or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise UsageError(
                f"{path}: '{label_key}' must be {len(source)} integers from {int(key == 'data')} up, "
                f"not {labels.dtype} {labels.shape}"
            )
        labels = labels.astype(np.int64)
    return source, labels


@dataclass(frozen=True, eq=False)
class MappedSource:
    """A plain array within a file; each read maps it anew, so that no handle outlives a fork or a pickle."""

    path: Path
    offset: int
    stored: tuple[int, ...]  # N, H, W, C or N, C, H, W
    shape: Shape
    order: Literal["C", "F"] = "C"

    def __len__(self) -> int:
        return self.stored[0]

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]."""
        array = np.memmap(self.path, np.uint8, "r", self.offset, self.stored, self.order)
        return _channels_first(np.array(array[indices]), self.shape)

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return content_digest(self)


@dataclass(frozen=True, eq=False)
class Joined:
    """Several sources of the same shape, one after the other."""

    parts: Sequence[Source]

    @property
    def shape(self) -> Shape:
        """C, H, W of every image."""
        return self.parts[0].shape

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        start = 0
        for part in self.parts:
            mine = (indices >= start) & (indices < start + len(part))
            if mine.any():
                out[mine] = part.read(indices[mine] - start)
            start += len(part)
        return out

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return content_digest(self)


def _open_member(path: Path, file: zipfile.ZipFile, name: str, key: str) -> Source:
    with file.open(name) as member:
        stored, fortran, dtype = _npy_header(member)
        header = member.tell()
    shape = _image_shape(path, key, stored, dtype)
    info = file.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return ArraySource(_channels_first(np.load(path)[key], shape))
    with path.open("rb") as archive:
        offset = data_offset(archive, info) + header
    return MappedSource(path, offset, stored, shape, "F" if fortran else "C")


def data_offset(archive: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip member begin: behind its own header, its name and its extra field."""
    archive.seek(info.header_offset + 26)
    lengths = archive.read(4)
    return (
        info.header_offset + 30 + sum(int.from_bytes(part, "little") for part in (lengths[:2], lengths[2:]))
    )


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(member)


def _image_shape(path: Path, key: str, stored: tuple[int, ...], dtype: np.dtype[np.generic]) -> Shape:
    """C, H, W of an array stored as [N, H, W, C], [N, C, H, W], or under ``data`` [N, 3 S S]."""
    if dtype != np.uint8:
        raise UsageError(f"{path}: '{key}' is {dtype}, but images are uint8 in 0 .. 255: convert them first")
    if not stored or stored[0] == 0:
        raise UsageError(f"{path}: '{key}' holds no images")
    if key == "data" and len(stored) == 2 and stored[1] == 3 * (side := round((stored[1] / 3) ** 0.5)) ** 2:
        return 3, side, side
    if len(stored) == 4 and (stored[3] in (1, 3)) != (stored[1] in (1, 3)):
        _, A, B, C = stored
        return (C, A, B) if C in (1, 3) else (A, B, C)
    raise UsageError(
        f"{path}: '{key}' is {list(stored)}, but [N, H, W, C] or [N, C, H, W] with C of 1 or 3 is needed"
    )


def _channels_first(array: Pixels, shape: Shape) -> Pixels:
    if array.ndim == 4 and array.shape[1:] != shape:
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array).reshape(-1, *shape)
