"""Folders, zips and npz files of the user's own: what they agree on, and what each bad one is told."""

import io
import json
import multiprocessing
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmbench.data import ImageData, folders, open_dataset, open_images
from cmbench.errors import CmbenchError, UsageError, WorkError

N, H, W = 7, 10, 12
IMAGES = np.random.default_rng(3).integers(0, 256, (N, 3, H, W), np.uint8)


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] -> an image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    picture(pixels).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, images: np.ndarray = IMAGES, names: list[str] | None = None) -> Path:
    for index, pixels in enumerate(images):
        path = folder / (names[index] if names else f"{index:05d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return folder


def pack(folder: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in folder.rglob("*"):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def everything(data: ImageData) -> np.ndarray:
    return data.read(np.arange(len(data)))


Form = Callable[[Path], Path]


def npz(save: Callable[..., None], key: str, nhwc: bool, order: str = "C") -> Form:
    def form(tmp: Path) -> Path:
        array = IMAGES.transpose(0, 2, 3, 1) if nhwc else IMAGES
        save(tmp / "set.npz", **{key: np.asarray(array, order=order)})  # type: ignore[call-overload]
        return tmp / "set.npz"

    return form


FORMS: dict[str, Form] = {
    "folder": lambda tmp: write(tmp / "set"),
    "zip stored": lambda tmp: pack(write(tmp / "set"), tmp / "set.zip"),
    "zip deflated": lambda tmp: pack(write(tmp / "set"), tmp / "set.zip", zipfile.ZIP_DEFLATED),
    "npz NHWC": npz(np.savez, "arr_0", nhwc=True),
    "npz NCHW": npz(np.savez, "images", nhwc=False),
    "npz Fortran": npz(np.savez, "images", nhwc=False, order="F"),
    "npz compressed": npz(np.savez_compressed, "arr_0", nhwc=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_hold_the_same_images(tmp_path: Path, form: str) -> None:
    data = open_images(FORMS[form](tmp_path))
    assert (len(data), data.shape, data.labels, data.classes) == (N, (3, H, W), None, 0)
    batch = data.read([5, 0, 5])
    assert batch.dtype == np.uint8 and batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, IMAGES[[5, 0, 5]])
    np.testing.assert_array_equal(everything(data), IMAGES)
    assert data.read([]).shape == (0, 3, H, W)


@pytest.mark.parametrize("form", FORMS)
def test_reading_survives_threads_forks_and_pickles(tmp_path: Path, form: str) -> None:
    data = open_images(FORMS[form](tmp_path))
    everything(data)  # the parent has read before the child is made
    np.testing.assert_array_equal(everything(pickle.loads(pickle.dumps(data))), IMAGES)
    with ThreadPoolExecutor(8) as pool:
        for index, image in enumerate(pool.map(lambda index: data.read([index % N])[0], range(200))):
            np.testing.assert_array_equal(image, IMAGES[index % N])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(everything(data).tobytes()), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get() == IMAGES.tobytes()


def test_fingerprints(tmp_path: Path) -> None:
    arrays = [
        FORMS[form](tmp_path) and open_images(tmp_path / "set.npz").fingerprint
        for form in FORMS
        if "npz" in form
    ]
    assert len(set(arrays)) == 1
    folder = write(tmp_path / "set")
    first = open_images(folder)
    archived = open_images(pack(folder, tmp_path / "set.zip"))
    assert first.fingerprint == archived.fingerprint != arrays[0]
    assert open_images(folder, size=8).fingerprint != first.fingerprint
    assert open_images(tmp_path / "set.npz", size=8).fingerprint != arrays[0]
    (folder / "00000.png").rename(folder / "a.png")
    assert open_images(folder).fingerprint != first.fingerprint


def test_grayscale_images_have_one_channel(tmp_path: Path) -> None:
    data = open_images(write(tmp_path / "set", IMAGES[:, :1]))
    assert data.shape == (1, H, W)
    np.testing.assert_array_equal(everything(data), IMAGES[:, :1])


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    (folder / "README.txt").write_text("notes")
    (folder / ".thumbnail.png").write_text("hidden")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.png").write_text("resource fork")
    assert len(open_images(folder)) == N


# Labels

CLASSES = ["b/0.png", "a/x/1.png", "c/2.png", "a/3.png", "b/4.png", "c/5.png", "c/6.png"]


def test_top_level_folders_are_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", names=CLASSES)
    for data in (open_images(folder), open_images(pack(folder, tmp_path / "set.zip"))):
        order = sorted(range(N), key=lambda index: CLASSES[index])
        np.testing.assert_array_equal(everything(data), IMAGES[order])
        assert data.labels is not None and data.labels.dtype == np.int64
        assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
        assert data.classes == 3


@pytest.mark.parametrize("names", [[f"all/{i}.png" for i in range(N)], ["top.png", *CLASSES[1:]]])
def test_one_folder_or_loose_images_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    assert open_images(write(tmp_path / "set", names=names)).labels is None


@pytest.mark.parametrize("packed", [True, False])
def test_labels_of_a_dataset_json(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path / "set", names=CLASSES)
    labels = {name: index % 4 for index, name in enumerate(CLASSES)}
    (folder / "dataset.json").write_text(json.dumps({"labels": list(labels.items())}))
    data = open_images(pack(folder, tmp_path / "set.zip", zipfile.ZIP_DEFLATED) if packed else folder)
    assert data.labels is not None
    assert data.labels.tolist() == [labels[name] for name in sorted(CLASSES)]
    assert data.classes == 4


def test_a_dataset_json_without_labels_means_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", names=CLASSES)
    (folder / "dataset.json").write_text('{"labels": null}')
    assert open_images(folder).labels is None


@pytest.mark.parametrize("key", ["arr_1", "labels"])
def test_labels_of_an_npz(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "set.npz", **{"arr_0": IMAGES, key: np.arange(N, dtype=np.int32)})  # type: ignore[arg-type]
    data = open_images(tmp_path / "set.npz")
    assert data.labels is not None and data.labels.dtype == np.int64
    assert data.labels.tolist() == list(range(N))
    assert data.classes == N


# Resizing, where it is asked for


@pytest.mark.parametrize("form", ["folder", "zip deflated", "npz NHWC"])
def test_resizing_cuts_the_centre_and_averages(tmp_path: Path, form: str) -> None:
    """With BOX, halving is the mean of 2 x 2 pixels; of 5 x 6, the first 5 x 5 is central."""
    data = open_images(FORMS[form](tmp_path), size=5)
    halved = IMAGES.astype(float).reshape(N, 3, 5, 2, 6, 2).mean(axis=(3, 5))[..., :5]
    assert data.shape == (3, 5, 5)
    assert np.abs(everything(data) - halved).max() <= 1


def test_resizing_admits_images_of_different_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for index, (height, width) in enumerate([(8, 8), (20, 9), (3, 4), (8, 30)]):
        picture(np.full((3, height, width), 10 * index, np.uint8)).save(folder / f"{index}.png")
    data = open_images(folder, size=8)
    np.testing.assert_array_equal(
        everything(data), np.ones((4, 3, 8, 8)) * np.arange(0, 40, 10)[:, None, None, None]
    )


def test_a_size_that_fits_changes_nothing(tmp_path: Path) -> None:
    square = IMAGES[..., :H]
    np.savez(tmp_path / "set.npz", square)
    for path in (write(tmp_path / "set", square), tmp_path / "set.npz"):
        np.testing.assert_array_equal(everything(open_images(path, size=H)), square)


# The data sets that are prepared by hand


def test_downsampled_imagenet(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (1002, 3, 64, 64), np.uint8)
    labels = np.arange(1002) % 1000 + 1  # the official files count from 1
    parts = {1: slice(0, 500), 2: slice(500, 501), 10: slice(501, 1002)}
    for number, part in parts.items():
        batch = {"data": images[part].reshape(-1, 12288), "labels": labels[part], "mean": np.zeros(12288)}
        np.savez(tmp_path / f"train_data_batch_{number}.npz", **batch)  # type: ignore[arg-type]
    data = open_dataset("imagenet64", tmp_path)
    assert (data.name, data.title, data.classes) == ("imagenet64", "ImageNet 64 × 64", 1000)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, labels - 1)
    np.testing.assert_array_equal(data.read([1001, 0, 500, 499, 501]), images[[1001, 0, 500, 499, 501]])


def test_lsun_from_a_nested_export_has_no_classes(tmp_path: Path, cache: Path) -> None:
    images = np.random.default_rng(5).integers(0, 256, (2, 3, 256, 256), np.uint8)
    write(cache / "data" / "lsun-cat", images, ["0/a.png", "1/b.png"])
    data = open_dataset("lsun-cat")
    np.testing.assert_array_equal(everything(data), images)
    assert (data.labels, data.classes, data.title) == (None, 0, "LSUN Cat 256 × 256")
    assert folders.LSUN_CAT.locate(None) == str(cache / "data" / "lsun-cat")


def test_another_size_is_refused_until_resizing_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    with pytest.raises(UsageError, match=f"3 × {H} × {W}.*3 × 64 × 64"):
        open_dataset("imagenet64", folder)
    assert open_dataset("imagenet64", folder, size=64).shape == (3, 64, 64)


def test_a_subset_of_the_classes_is_not_imagenet(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", np.zeros((2, 3, 64, 64), np.uint8), ["n1/0.png", "n2/0.png"])
    with pytest.raises(UsageError, match="2 classes"):
        open_dataset("imagenet64", folder)


def test_images_is_the_users_own(tmp_path: Path) -> None:
    data = open_dataset("images", write(tmp_path / "set"))
    assert (data.name, data.title) == ("images", "set")
    assert open_dataset("images", tmp_path / "set", size=4).shape == (3, 4, 4)


# What is told of bad input


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
