"""Image files in a folder or a zip, checked by their headers when opened and decoded when read."""

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cmbench.data.base import Indices, Pixels, Shape
from cmbench.data.npz import data_offset
from cmbench.data.resize import fit
from cmbench.errors import UsageError, WorkError

READABLE = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
UNREADABLE = (".tif", ".tiff", ".gif", ".ppm", ".pgm", ".exr", ".jp2", ".avif", ".heic")
CHANNELS = {"L": 1, "RGB": 3}
HEAD = 1 << 14  # bytes that hold the header of nearly every image file
PNG = b"\x89PNG\r\n\x1a\n"
PLAIN = {b"\x08\x00": "L", b"\x08\x02": "RGB"}  # bit depth and colour type of PNGs that need no closer look
DAMAGED = (OSError, EOFError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Folder:
    """The files below a folder, by relative path; nothing stays open between reads."""

    path: Path
    names: Sequence[str]
    sizes: Sequence[int]

    def content(self, index: int, limit: int = -1) -> bytes:
        """The file's bytes, or its first ``limit`` bytes."""
        with open(f"{self.path}/{self.names[index]}", "rb", buffering=0) as file:  # noqa: PTH123 (a million times)
            return file.read(limit)


@dataclass(frozen=True, eq=False)
class Zip:
    """The members of a zip archive, stored or deflated; nothing stays open between reads."""

    path: Path
    names: Sequence[str]
    sizes: Sequence[int]
    members: Sequence[zipfile.ZipInfo] = field(repr=False)

    def content(self, index: int, limit: int = -1) -> bytes:
        """The member's bytes (their checksum verified), or its first ``limit`` bytes."""
        info = self.members[index]
        with self.path.open("rb") as file:
            file.seek(data_offset(file, info))
            raw = file.read(info.compress_size if limit < 0 else min(limit, info.compress_size))
        if info.compress_type == zipfile.ZIP_DEFLATED:
            raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(limit, 0))
        if limit < 0 and zlib.crc32(raw) != info.CRC:
            raise ValueError("bad checksum in the archive")
        return raw


Container = Folder | Zip


def open_container(path: Path) -> Container:
    """All files below a folder or in a zip, sorted by relative name; hidden ones are left out.

    Raises:
        UsageError: an archive that is encrypted or compressed in another way than deflate.
        WorkError: it cannot be read.
    """
    try:
        if path.is_dir():
            files = sorted((name, size) for name, size in _walk(str(path), "") if not _hidden(name))
            return Folder(path, [name for name, _ in files], [size for _, size in files])
        with zipfile.ZipFile(path) as archive:
            members = [
                info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)
            ]
    except (OSError, zipfile.BadZipFile) as error:
        raise WorkError(f"cannot read {path}: {error}") from error
    for info in members:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(
                f"{path}: {info.filename} is encrypted or not stored or deflated: unpack the archive"
            )
    members.sort(key=lambda info: info.filename)
    return Zip(path, [info.filename for info in members], [info.file_size for info in members], members)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat().st_size


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images decoded from files by a few threads when they are read.

    Attributes:
        container: the files, images and others.
        rows: which of them are the images, in order.
        shape: C, H, W of every image.
        size: crop and resize to this (:func:`cmbench.data.resize.fit`), or None.
    """

    container: Container
    rows: Sequence[int]
    shape: Shape
    size: int | None

    @property
    def names(self) -> list[str]:
        """Relative names of the images, sorted."""
        return [self.container.names[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Indices) -> Pixels:
        """The images at ``indices``, uint8 [B, C, H, W]. Raises WorkError for a damaged file, by name."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        for row, image in zip(out, _pool(os.getpid()).map(self._decode, indices), strict=True):
            row[:] = image
        return out

    def digest(self) -> bytes:
        """SHA-256 over the sorted relative names and the file sizes, and the size resized to."""
        content = hashlib.sha256(json.dumps(self.size).encode())
        for row in self.rows:
            content.update(f"{self.container.names[row]}\0{self.container.sizes[row]}\0".encode())
        return content.digest()

    def _decode(self, index: int) -> Pixels:
        row = self.rows[index]
        where = f"{self.container.path}: {self.container.names[row]}"
        try:
            file = Image.open(io.BytesIO(self.container.content(row)))
            file.load()
            image = fit(file, self.size) if self.size is not None else file
        except DAMAGED as error:
            raise WorkError(f"{where} cannot be decoded: {error}") from error
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if pixels.shape != self.shape:
            raise WorkError(
                f"{where} has changed: it is {pixels.shape}, and was {self.shape} when the set was opened"
            )
        return pixels


def open_files(path: Path, size: int | None = None) -> FileSource:
    """The images in a folder or zip, of one mode (8-bit grayscale or RGB) and, without ``size``, of one size.

    Raises:
        UsageError: no images, or images of which the first odd one is named.
        WorkError: a file that is no image, by name.
    """
    container = open_container(path)
    suffixes = [os.path.splitext(name)[1].lower() for name in container.names]  # noqa: PTH122 (a million strings)
    for name, suffix in zip(container.names, suffixes, strict=True):
        if suffix in UNREADABLE:
            raise UsageError(
                f"{path}: {name} is not of a format that is read ({', '.join(READABLE)}): convert it"
            )
    rows = [row for row, suffix in enumerate(suffixes) if suffix in READABLE]
    if not rows:
        raise UsageError(f"no images ({', '.join(READABLE)}) in {path}")
    heads = _heads(container, rows)
    first_mode, *first_size = next(heads)
    for row, (mode, *width_height) in zip(rows[1:], heads, strict=True):
        both = f"{path}: {container.names[rows[0]]} is %s, but {container.names[row]} is %s"
        if mode != first_mode:
            raise UsageError(both % (_kind(first_mode), _kind(mode)) + ": convert all to one of the two")
        if size is None and width_height != first_size:
            raise UsageError(
                both % (_by(first_size), _by(width_height)) + ": one size is needed, or resizing to one"
            )
    width, height = (size, size) if size is not None else first_size
    return FileSource(container, rows, (CHANNELS[first_mode], height, width), size)


def _kind(mode: str) -> str:
    return "grayscale" if mode == "L" else mode


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def _heads(container: Container, rows: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Mode, width and height of each image, in order, read by a few threads."""
    chunks = [rows[start : start + 512] for start in range(0, len(rows), 512)]
    return chain.from_iterable(
        _pool(os.getpid()).map(lambda part: [_head(container, row) for row in part], chunks)
    )


def _head(container: Container, row: int) -> tuple[str, int, int]:
    where = f"{container.path}: {container.names[row]}"
    try:
        content = container.content(row, HEAD)
        if content[:8] == PNG and content[24:26] in PLAIN and content[37:41] == b"IDAT":
            width, height = struct.unpack(">II", content[16:24])
            return PLAIN[content[24:26]], width, height
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, SyntaxError, UnidentifiedImageError):
            content = container.content(row)
            image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise WorkError(f"{where} is damaged or no image") from error
    except DAMAGED as error:
        raise WorkError(f"{where} cannot be read: {error}") from error
    if (content[:8] == PNG and content[24] == 16) or image.mode.startswith("I"):
        raise UsageError(f"{where} has 16 bits a channel: convert the images to 8")
    if "A" in image.mode or "transparency" in image.info:
        raise UsageError(f"{where} has an alpha channel: convert the images to RGB or grayscale")
    if image.mode not in CHANNELS:
        name = "a palette image" if image.mode == "P" else f"of mode {image.mode}"
        raise UsageError(f"{where} is {name}: convert the images to RGB or grayscale")
    return image.mode, image.width, image.height


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (a forked child needs threads of its own)
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "cmbench-decode")
