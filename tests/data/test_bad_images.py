"""Images that are not as they must be: each kind is told in one line that names the file."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import IMAGES, H, N, W, everything, pack, picture, png, write
from PIL import Image

from cmbench.data import open_images
from cmbench.errors import CmbenchError, UsageError, WorkError


def png16(mode: int) -> bytes:
    """A 2 x 2 PNG of 16 bits a channel; mode 0 is grayscale, 2 RGB, 6 RGBA."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    row = b"\0" + bytes(2 * 2 * {0: 1, 2: 3, 6: 4}[mode])
    header = struct.pack(">IIBBBBB", 2, 2, 16, mode, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 2))
        + chunk(b"IEND", b"")
    )


def save_as(mode: str, name: str = "00003.png") -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, (W, H)).save(folder / name)


def replace_by(content: bytes, name: str = "00003.png") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


BAD_FILES: dict[str, tuple[Callable[[Path], object], type[CmbenchError], str]] = {
    "mixed modes": (save_as("L"), UsageError, "00000.png is RGB, but 00003.png is grayscale"),
    "alpha": (save_as("RGBA"), UsageError, "00003.png has an alpha channel"),
    "gray and alpha": (save_as("LA"), UsageError, "00003.png has an alpha channel"),
    "palette": (save_as("P"), UsageError, "00003.png is a palette image"),
    "bilevel": (save_as("1"), UsageError, "00003.png is of mode 1"),
    "CMYK": (save_as("CMYK", "00003.jpg"), UsageError, "00003.jpg is of mode CMYK"),
    "16 bits gray": (replace_by(png16(0)), UsageError, "00003.png has 16 bits"),
    "16 bits RGB": (replace_by(png16(2)), UsageError, "00003.png has 16 bits"),
    "16 bits RGBA": (replace_by(png16(6)), UsageError, "00003.png has 16 bits"),
    "mixed sizes": (
        lambda folder: Image.new("RGB", (H, W)).save(folder / "00003.png"),
        UsageError,
        "00000.png is 12 × 10, but 00003.png is 10 × 12",
    ),
    "no image": (replace_by(b"<html>"), WorkError, "00003.png is damaged or no image"),
    "empty file": (replace_by(b""), WorkError, "00003.png is damaged or no image"),
    "a format of many depths": (save_as("RGB", "b.tiff"), UsageError, "b.tiff is not of a format"),
    "json": (replace_by(b"{", "dataset.json"), WorkError, "dataset.json is damaged"),
    "json without labels": (replace_by(b"{}", "dataset.json"), WorkError, "dataset.json is damaged or lacks"),
    "json without an image": (
        replace_by(b'{"labels": [["00000.png", 1]]}', "dataset.json"),
        UsageError,
        "gives 00001.png the label None",
    ),
    "json with vectors": (
        replace_by(b'{"labels": [["00000.png", [0.5, 1.0]]]}', "dataset.json"),
        UsageError,
        "gives 00000.png the label [0.5, 1.0]",
    ),
}


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, bad: str, packed: bool) -> None:
    spoil, kind, message = BAD_FILES[bad]
    folder = write(tmp_path / "set")
    spoil(folder)
    path = pack(folder, tmp_path / "set.zip") if packed else folder
    with pytest.raises(kind) as error:
        open_images(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_a_file_cut_short_is_named_when_it_is_read(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path / "set")
    (folder / "00003.png").write_bytes(png(IMAGES[3])[:-100])
    data = open_images(pack(folder, tmp_path / "set.zip") if packed else folder)
    np.testing.assert_array_equal(data.read([2, 4]), IMAGES[[2, 4]])
    with pytest.raises(WorkError, match=r"00003\.png cannot be decoded"):
        everything(data)


def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path) -> None:
    """A bitmap has no checksum of its own: only the archive's tells."""
    out = io.BytesIO()
    picture(IMAGES[0]).save(out, "BMP")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.bmp", out.getvalue())
    np.testing.assert_array_equal(everything(open_images(path)), IMAGES[:1])
    content = bytearray(path.read_bytes())
    content[content.index(out.getvalue()) + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(WorkError, match=r"0\.bmp cannot be decoded"):
        everything(open_images(path))


def test_a_file_that_changes_after_opening_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    data = open_images(folder)
    (folder / "00003.png").write_bytes(png(IMAGES[3, :, :5]))
    with pytest.raises(WorkError, match=r"00003\.png has changed"):
        everything(data)
    (folder / "00003.png").unlink()
    with pytest.raises(WorkError, match=r"00003\.png cannot be decoded"):
        everything(data)


def test_a_header_behind_much_else_is_found(tmp_path: Path) -> None:
    """A large colour profile puts the size of a JPEG beyond what is read first."""
    folder = tmp_path / "set"
    folder.mkdir()
    picture(IMAGES[0]).save(folder / "0.jpg", icc_profile=bytes(200_000))
    assert open_images(folder).shape == (3, H, W)
    assert open_images(pack(folder, tmp_path / "set.zip", zipfile.ZIP_DEFLATED)).shape == (3, H, W)


BAD_PATHS: dict[str, tuple[Callable[[Path], object], type[CmbenchError], str]] = {
    "nothing": (lambda path: None, UsageError, "there is nothing at"),
    "empty folder": (lambda path: path.mkdir(), UsageError, "no images"),
    "text": (lambda path: path.write_text("x"), UsageError, "neither a folder nor a .zip or .npz"),
    "broken.zip": (lambda path: path.write_bytes(b"PK\3\4..."), WorkError, "cannot read"),
    "empty.zip": (lambda path: zipfile.ZipFile(path, "w").close(), UsageError, "no images"),
    "broken.npz": (lambda path: path.write_bytes(b"PK\3\4..."), WorkError, "cannot read"),
    "statistics.npz": (
        lambda path: np.savez(path, mu=[0.0], sigma=[1.0]),
        UsageError,
        "found ['mu', 'sigma']",
    ),
    "float.npz": (lambda path: np.savez(path, IMAGES / 255), UsageError, "is float64, but images are uint8"),
    "pickled.npz": (
        lambda path: np.savez(path, np.array([{}])),
        UsageError,
        "is object, but images are uint8",
    ),
    "five channels.npz": (
        lambda path: np.savez(path, np.zeros((2, 5, 5, 5), np.uint8)),
        UsageError,
        "[2, 5, 5, 5]",
    ),
    "unclear.npz": (
        lambda path: np.savez(path, np.zeros((2, 3, 9, 3), np.uint8)),
        UsageError,
        "[2, 3, 9, 3]",
    ),
    "no channels.npz": (lambda path: np.savez(path, np.zeros((2, 8, 8), np.uint8)), UsageError, "[2, 8, 8]"),
    "no rows.npz": (lambda path: np.savez(path, np.zeros((0, 8, 8, 3), np.uint8)), UsageError, "no images"),
    "odd rows.npz": (lambda path: np.savez(path, data=np.zeros((2, 50), np.uint8)), UsageError, "[2, 50]"),
    "few labels.npz": (
        lambda path: np.savez(path, IMAGES, np.zeros(3, int)),
        UsageError,
        "'arr_1' must be 7",
    ),
    "float labels.npz": (lambda path: np.savez(path, IMAGES, np.zeros(N)), UsageError, "'arr_1' must be 7"),
    "negative labels.npz": (lambda path: np.savez(path, IMAGES, -np.ones(N, int)), UsageError, "from 0 up"),
    "zero labels.npz": (
        lambda path: np.savez(path, data=np.zeros((2, 12), np.uint8), labels=np.zeros(2, int)),
        UsageError,
        "from 1 up",
    ),
    "pickled labels.npz": (
        lambda path: np.savez(path, arr_0=IMAGES, labels=np.array([{}] * N)),
        WorkError,
        "cannot read",
    ),
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_a_bad_path_is_named(tmp_path: Path, name: str) -> None:
    make, kind, message = BAD_PATHS[name]
    make(tmp_path / name)
    with pytest.raises(kind) as error:
        open_images(tmp_path / name)
    assert message in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_zip_of_an_unread_compression_is_refused(tmp_path: Path) -> None:
    path = pack(write(tmp_path / "set"), tmp_path / "set.zip", zipfile.ZIP_LZMA)
    with pytest.raises(UsageError, match="not stored or deflated"):
        open_images(path)
