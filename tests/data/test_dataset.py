"""What all data sets have in common, and the built-in digits."""

import csv
import pickle
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cmbench import registry
from cmbench.data import DatasetSpec, ImageData, open_dataset
from cmbench.data.base import ArraySource
from cmbench.errors import UsageError


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 4, 6), np.uint8)


def in_memory(array: np.ndarray, labels: np.ndarray | None = None) -> ImageData:
    return ImageData("set", "Set", ArraySource(array), labels)


def test_importing_data_sets_does_not_import_torch() -> None:
    code = "import sys, cmbench.data.cifar10, cmbench.data.mnist, cmbench.data.digits, cmbench.data.folders"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)


def test_every_registered_set_describes_itself() -> None:
    names = registry.names("data set")
    assert {"digits", "mnist", "cifar10", "imagenet64", "lsun-bedroom", "lsun-cat", "images"} <= set(names)
    for name in names:
        spec = registry.load("data set", name)
        assert isinstance(spec, DatasetSpec)
        assert spec.name == name
        assert spec.how_to_get and "\n" not in spec.how_to_get


def test_titles_are_those_of_the_published_tables() -> None:
    with (files("cmbench_published") / "table2_imagenet64_lsun256.csv").open(encoding="utf-8") as file:
        groups = {row["group"] for row in csv.DictReader(file)}
    titles = {registry.load("data set", name).title for name in ("imagenet64", "lsun-bedroom", "lsun-cat")}
    assert titles == groups


def test_read_gives_the_rows_asked_for_as_a_copy() -> None:
    array = images()
    data = in_memory(array)
    batch = data.read([3, 0, 3])
    np.testing.assert_array_equal(batch, array[[3, 0, 3]])
    batch[:] = 0
    np.testing.assert_array_equal(data.read([3]), images()[[3]])
    assert data.read([]).shape == (0, 3, 4, 6)
    assert len(data) == 5


@pytest.mark.parametrize("indices", [[5], [-1], [[0]], [0.5], [True, False], 0])
def test_read_refuses_what_is_no_index(indices: object) -> None:
    with pytest.raises(IndexError):
        in_memory(images()).read(indices)  # type: ignore[arg-type]


def test_the_fingerprint_follows_images_shape_and_labels() -> None:
    array, labels = images(), np.arange(5)
    changed = array.copy()
    changed[4, 2, 3, 5] ^= 1
    variants = [
        in_memory(array),
        in_memory(changed),
        in_memory(array[::-1]),
        in_memory(array[:4]),
        in_memory(array.reshape(5, 3, 6, 4)),
        in_memory(array, labels),
        in_memory(array, labels[::-1]),
    ]
    assert len({data.fingerprint for data in variants}) == len(variants)
    assert in_memory(np.asfortranarray(array), labels).fingerprint == variants[5].fingerprint
    assert len(variants[0].fingerprint) == 16


def test_digits() -> None:
    data = open_dataset("digits", download=False)
    assert (len(data), data.shape, data.classes, data.name) == (1797, (1, 8, 8), 10, "digits")
    read, grey = data.read(np.arange(1797)), load_digits().images
    assert read.dtype == np.uint8
    levels = {
        int(grey_level): int(level) for grey_level, level in zip(grey.ravel(), read.ravel(), strict=True)
    }
    assert (levels[0], levels[4], levels[8], levels[16]) == (0, 64, 128, 255)
    np.testing.assert_array_equal(read[:, 0], np.vectorize(levels.get)(grey.astype(int)))
    assert data.labels is not None and data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.labels, load_digits().target)
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint == data.fingerprint == open_dataset("digits").fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: open_dataset("cifar"), "did you mean 'cifar10'"),
        (lambda path: open_dataset("cifar10", path / "nowhere"), "nowhere"),
        (lambda path: open_dataset("digits", path), "built in"),
        (lambda path: open_dataset("digits", size=32), "one size"),
        (lambda path: open_dataset("mnist", path), "train-images-idx3-ubyte"),
        (lambda path: open_dataset("mnist", download=False), "train-images-idx3-ubyte"),
        (lambda path: open_dataset("cifar10", path), "cifar-10-binary.tar.gz"),
        (lambda path: open_dataset("cifar10", download=False).read([0]), "cifar-10-binary.tar.gz"),
        (lambda path: open_dataset("images"), "--data PATH"),
        (lambda path: open_dataset("images", path, size=0), "0"),
        (lambda path: open_dataset("imagenet64"), "--data PATH"),
        (lambda path: open_dataset("lsun-cat", path, size=128), "256"),
    ],
)
def test_wrong_use_is_told_in_one_line(call, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as error:
        call(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_data_is_not_located(tmp_path: Path) -> None:
    for name in ("mnist", "cifar10", "imagenet64", "images"):
        assert registry.load("data set", name).locate(None) is None
        assert registry.load("data set", name).locate(tmp_path / "nowhere") is None
    assert registry.load("data set", "digits").locate(None) == "built in"
