"""Images of the user's own: any folder, zip or npz, and the data sets that have to be prepared by hand."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmbench.data.base import DatasetSpec, ImageData, Labels, Source
from cmbench.data.files import FileSource, open_files
from cmbench.data.npz import Joined, open_npz
from cmbench.data.resize import Resized
from cmbench.errors import UsageError, WorkError
from cmbench.paths import cache_dir

BATCHES = "train_data_batch_*.npz"  # the downsampled ImageNet of Chrabaszcz et al. (2017)


def open_images(path: Path, size: int | None = None) -> ImageData:
    """Open a folder, a ``.zip`` or an ``.npz`` of images of one size, or crop and resize them to ``size``.

    Folders and zips are searched recursively, sorted by relative path, and decoded when read. Labels come
    from a ``dataset.json`` beside the images (the layout of EDM and StyleGAN), else from the top-level
    subfolders, sorted, if every image lies in one and there are several. For arrays see
    :func:`cmbench.data.npz.open_npz`.

    Raises:
        UsageError: nothing there, no images, or images that differ in size or mode or are not 8-bit grayscale
            or RGB.
        WorkError: damaged files.
    """
    source: Source
    if path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
        source = files = open_files(path, size)
        labels = _file_labels(files)
    elif path.suffix.lower() == ".npz" and path.is_file():
        source, labels = open_npz(path)
        if size is not None and source.shape[1:] != (size, size):
            source = Resized(source, size)
    elif path.exists():
        raise UsageError(f"{path} is neither a folder nor a .zip or .npz of images")
    else:
        raise UsageError(f"there is nothing at {path}: give a folder, .zip or .npz of images")
    classes = 0 if labels is None else int(labels.max()) + 1
    return ImageData(path.stem, path.name, source, labels, classes)


def _file_labels(files: FileSource) -> Labels | None:
    names = files.names
    if "dataset.json" in files.container.names:
        return _json_labels(files, names)
    folders = sorted({name.split("/")[0] for name in names})
    if len(folders) < 2 or not all("/" in name for name in names):
        return None
    label = {folder: index for index, folder in enumerate(folders)}
    return np.array([label[name.split("/")[0]] for name in names], np.int64)


def _json_labels(files: FileSource, names: list[str]) -> Labels | None:
    """The labels of ``{"labels": [["00000/img00000000.png", 6], ...]}``; None where they are null."""
    container = files.container
    where = f"{container.path}: dataset.json"
    try:
        pairs = json.loads(container.content(container.names.index("dataset.json")))["labels"]
        table: dict[str, Any] | None = None if pairs is None else dict(pairs)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WorkError(f"{where} is damaged or lacks 'labels': {error!r}") from error
    if table is None:
        return None
    for name in names:
        if type(table.get(name)) is not int or table[name] < 0:
            raise UsageError(f"{where} gives {name} the label {table.get(name)}, not an integer from 0 up")
    return np.array([table[name] for name in names], np.int64)


def _load_images(data: Path | None, download: bool = False, size: int | None = None) -> ImageData:  # noqa: ARG001
    if data is None:
        raise UsageError(
            "the data set 'images' is your own: say where with --data PATH (a folder, .zip or .npz)"
        )
    return replace(open_images(data, size), name=IMAGES.name)


def _locate_images(data: Path | None) -> str | None:
    return str(data) if data is not None and data.exists() else None


IMAGES = DatasetSpec(
    name="images",
    title="Images",
    shape=None,
    classes=0,
    load=_load_images,
    how_to_get="your own: --data PATH with a folder, .zip or .npz",
    locate=_locate_images,
    load_resized=lambda data, size: _load_images(data, size=size),
)


def _prepared(name: str, title: str, size: int, classes: int, how_to_get: str) -> DatasetSpec:
    """A data set that cannot be downloaded: read from the user's path, or from its place in the cache."""

    def locate(data: Path | None) -> str | None:
        place = data or cache_dir() / "data" / name
        return str(place) if place.exists() else None

    def load(data: Path | None, download: bool = False, resize: int | None = None) -> ImageData:  # noqa: ARG001
        place = locate(data)
        if place is None:
            raise UsageError(f"{title} cannot be downloaded: {how_to_get}")
        opened = _open_prepared(Path(place), resize)
        if opened.shape != (3, size, size):
            found = " × ".join(map(str, opened.shape))
            raise UsageError(
                f"{place} holds {found} images, but {title} needs 3 × {size} × {size}: resize them"
            )
        if classes == 0:  # subfolders of an unlabelled set are no classes
            return replace(opened, name=name, title=title, labels=None, classes=0)
        if opened.labels is not None and opened.classes != classes:
            wrong = f"{place} has {opened.classes} classes, but {title} has {classes}"
            raise UsageError(f"{wrong}: open it as the data set 'images'")
        return replace(opened, name=name, title=title)

    return DatasetSpec(
        name=name,
        title=title,
        shape=(3, size, size),
        classes=classes,
        load=load,
        how_to_get=how_to_get,
        locate=locate,
        load_resized=lambda data, size: load(data, resize=size),
    )


def _open_prepared(place: Path, size: int | None) -> ImageData:
    batches = sorted(place.glob(BATCHES), key=lambda path: int(path.stem.rpartition("_")[2]))
    if not batches:
        return open_images(place, size)
    opened = [open_images(path, size) for path in batches]
    labels = None
    if all(batch.labels is not None for batch in opened):
        labels = np.concatenate([batch.labels for batch in opened if batch.labels is not None])
    classes = max(batch.classes for batch in opened)
    return ImageData(place.name, place.name, Joined([batch.source for batch in opened]), labels, classes)


_lsun = partial(_prepared, size=256, classes=0)

IMAGENET64 = _prepared(
    name="imagenet64",
    title="ImageNet 64 × 64",
    size=64,
    classes=1000,
    how_to_get=f"--data PATH with {BATCHES} of image-net.org, or a folder or .zip of 64 × 64 RGB images",
)
LSUN_BEDROOM = _lsun(
    name="lsun-bedroom",
    title="LSUN Bedroom 256 × 256",
    how_to_get="--data PATH with a folder or .zip of 256 × 256 RGB images, exported from bedroom_train_lmdb",
)
LSUN_CAT = _lsun(
    name="lsun-cat",
    title="LSUN Cat 256 × 256",
    how_to_get="--data PATH with a folder or .zip of 256 × 256 RGB images, exported from LSUN's cat lmdb",
)
