"""Folders, zips and npz files of the user's own: what they hold, and that all forms agree."""

import json
import multiprocessing
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_files import IMAGES, H, N, W, everything, pack, picture, write

from cmbench.data import folders, open_dataset, open_images
from cmbench.errors import UsageError

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
