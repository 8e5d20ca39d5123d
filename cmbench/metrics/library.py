"""The reference statistics on this machine: what is there, what protocols look for, and names for them."""

import dataclasses
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from cmbench import registry
from cmbench.errors import UsageError, WorkError, unknown
from cmbench.metrics import protocols, references
from cmbench.metrics.protocols import Protocol, ReferenceSpec
from cmbench.paths import cache_dir

if TYPE_CHECKING:
    from cmbench.data import ImageData
    from cmbench.metrics.engine import Engine, Progress

CLEANFID = "https://www.cs.cmu.edu/~clean-fid/stats/"
CLEANFID_NAME = re.compile(r"[a-z0-9_-]+_(clean|legacy_tensorflow|legacy_pytorch)_[a-z0-9]+_(\d+|na)")
CLEANFID_RESIZE = {
    "clean": "pil-bicubic",
    "legacy_tensorflow": "tf1-bilinear",
    "legacy_pytorch": "half-pixel-bilinear",
}
PUBLISHED = {"mu": "inception-v3/pool3", "mu_s": "inception-v3/spatial"}
SUFFIXES = (".npz", ".pkl")


def folder() -> Path:
    """Where reference statistics are kept."""
    return cache_dir() / "references"


def _folders() -> tuple[Path, ...]:
    """Those that come with the package, and those of the user."""
    return references.SHIPPED, folder()


# --- naming a reference --------------------------------------------------------------------------


def with_reference(protocol: Protocol, given: str, dataset: str, download: bool) -> Protocol:
    """The protocol with the reference that a user names.

    Args:
        protocol: to be changed; its fingerprint changes with the reference.
        given: a file; a name under :func:`folder`; a statistics name of clean-fid's, such as
            ``cifar10_clean_train_32``, fetched if need be; or ``<data set>-train`` (torch-fidelity's names),
            the images of the data set themselves.
        dataset: the data set at hand.
        download: whether clean-fid's files may be fetched.

    Raises:
        UsageError: no such file or name, another data set's images, statistics of another way of resizing.
        WorkError: the download failed.
    """
    path = Path(given)
    if path.is_file():
        return protocol.with_reference(path)
    whole = given.removesuffix("-train")
    if whole != given and whole in registry.names("data set"):
        if whole != dataset:
            raise UsageError(f"--against {given} are the images of {whole}, and the data set is {dataset}")
        return dataclasses.replace(protocol, references={"*": ReferenceSpec("training set")})
    match = CLEANFID_NAME.fullmatch(given)
    if match:
        _check_resize(protocol, given, CLEANFID_RESIZE[match[1]])
    kept = _kept(given)
    if kept is None and match:
        if not download:
            raise UsageError(f"--against {given}: not in {folder()}, and nothing is downloaded (--offline)")
        from cmbench.download import fetch

        kept = fetch(f"{CLEANFID}{given}.npz", folder() / f"{given}.npz")
    if kept is not None:
        return protocol.with_reference(kept)
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise UsageError(f"there is no reference file {given}")
    raise unknown("reference", given, [entry.name for entry in entries()])


def _kept(name: str) -> Path | None:
    """The file of this name, with or without its ending."""
    places = (where / f"{name}{end}" for where in _folders() for end in ("", *SUFFIXES))
    return next((place for place in places if place.is_file()), None)


def _check_resize(protocol: Protocol, name: str, resize: str) -> None:
    for spec in protocol.extractors:
        if spec.name == "inception-v3" and spec.resize != resize:
            raise UsageError(
                f"{name} was made with {resize} resizing and protocol '{protocol.name}' resizes by {spec.resize}: "
                "the two are not comparable"
            )


# --- what there is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Size of a layer's statistics; ``count`` 0 where the file does not say, ``features`` rows kept."""

    dimensions: int
    count: int = 0
    features: int = 0


@dataclass(frozen=True)
class Entry:
    """A reference that is kept, or that a protocol looks for.

    Attributes:
        name: what ``--against`` takes.
        path: where it is, or would be.
        layers: ``extractor/layer`` -> sizes; empty where it is absent or damaged.
        images: images that come with it, to take features of.
        origin: where it comes from, or how to get it.
        used_by: protocols (and data sets) that look for it.
        state: ``ok``, ``absent``, or what is wrong with the file.
    """

    name: str
    path: Path
    layers: Mapping[str, Layer] = field(default_factory=dict)
    images: int = 0
    origin: str = ""
    used_by: tuple[str, ...] = ()
    state: str = "ok"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def entries() -> list[Entry]:
    """All references that are kept, then those that built-in protocols look for in vain."""
    kept = [place for where in _folders() for end in SUFFIXES for place in sorted(where.glob(f"*{end}"))]
    looking = users()
    found = [dataclasses.replace(look(place), used_by=tuple(looking.get(place.name, ()))) for place in kept]
    there = {place.name for place in kept}
    absent = {spec.file: spec for _, _, spec in _wanted() if spec.file is not None and spec.file not in there}
    for file, spec in sorted(absent.items()):
        how = f"get it from {spec.url}" if spec.url else ""
        found.append(
            Entry(
                Path(file).stem,
                folder() / file,
                origin=how,
                used_by=tuple(looking[file]),
                state="absent",
            )
        )
    return found


def _wanted() -> Iterator[tuple[Protocol, str, ReferenceSpec]]:
    for name in protocols.names():
        protocol = protocols.get(name)
        for dataset, spec in protocol.references.items():
            yield protocol, dataset, spec


def users() -> dict[str, list[str]]:
    """Name of a statistics file -> the protocols, and their data sets, that look for it."""
    found: dict[str, list[str]] = {}
    for protocol, dataset, spec in _wanted():
        if spec.file is not None:
            found.setdefault(spec.file, []).append(f"{protocol.name} on {dataset}")
    return found


def look(path: Path) -> Entry:
    """What a reference file holds, from its headers; a damaged one comes back with ``state`` saying so."""
    try:
        if path.suffix == ".pkl":
            known = references.read(path)[0].layers
            layers = {name: Layer(known[name].mean.size) for name in known}
            return Entry(path.stem, path, layers, origin="published statistics")
        with zipfile.ZipFile(path) as archive:
            shapes = {name.removesuffix(".npy"): _shape(archive, name) for name in archive.namelist()}
        if "header" in shapes:
            return _ours(path, shapes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, WorkError) as error:
        return Entry(path.stem, path, state=f"damaged: {error}")
    layers = {layer: Layer(*shapes[key]) for key, layer in PUBLISHED.items() if len(shapes.get(key, ())) == 1}
    images = shapes.get("arr_0", (0,))[0]
    if not layers and not images:
        return Entry(path.stem, path, state=f"holds {', '.join(shapes) or 'nothing'}, no statistics")
    return Entry(path.stem, path, layers, images, "published statistics")


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        version = npy.read_magic(member)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return header(member)[0]


def _ours(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    layers = {}
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        for key in shapes:
            layer, _, part = key.rpartition("/")
            if part == "mean":
                rows = shapes.get(f"{layer}/features", (0,))[0]
                layers[layer] = Layer(shapes[key][0], int(file[f"{layer}/count"]), rows)
    source = header["provenance"]
    if "data" in source:
        origin = f"computed from {source['data']} ({source['images']} images)"
    else:
        origin = f"imported from {source.get('file', header['name'])}"
    return Entry(path.stem, path, layers, origin=origin)


def find(given: str) -> Path:
    """The file that a name or a path stands for. Raises UsageError where there is none."""
    if Path(given).is_file():
        return Path(given)
    if (kept := _kept(given)) is not None:
        return kept
    raise unknown("reference", given, [entry.name for entry in entries() if entry.state == "ok"])


def describe(path: Path) -> dict[str, Any]:
    """All that can be said of a reference file, as plain data: sizes, hash, origin, rank of the covariances.

    Raises:
        WorkError: the file is damaged.
    """
    from cmbench.metrics.extractors import file_hash
    from cmbench.metrics.frechet import covariance_factor

    entry = look(path)
    if entry.state != "ok":
        raise WorkError(f"{path}: {entry.state}")
    found, _ = references.read(path)
    layers = {}
    for name, known in found.layers.items():
        layers[name] = {
            **dataclasses.asdict(entry.layers[name]),
            "rank of the covariance": covariance_factor(known.covariance).shape[1],
            "total variance": float(np.trace(known.covariance)),
            "length of the mean": float(np.linalg.norm(known.mean)),
        }
    return {
        "name": entry.name,
        "path": str(path),
        "sha256": file_hash(path),
        "origin": entry.origin,
        "used by": users().get(path.name, []),
        "images": entry.images,
        "layers": layers,
        "provenance": dict(found.provenance),
    }


# --- making one ----------------------------------------------------------------------------------


def build(
    engine: "Engine",
    data: "ImageData",
    *,
    to: Path | None = None,
    force: bool = False,
    progress: "Progress | None" = None,
) -> Path:
    """Compute the statistics of a data set's images, as the engine's protocol wants them.

    Args:
        engine: with the protocol's extractors.
        data: the images.
        to: a file to write as well, for ``--against``.
        force: whether statistics that are kept already are computed again.
        progress: called with images done and images to do.

    Raises:
        UsageError: the protocol compares with a published file that these images do not give.
        WorkError: an extractor is missing.
    """
    from cmbench.metrics import building

    protocol = engine.protocol
    spec = protocol.references.get(data.name, protocol.references.get("*"))
    if spec is not None and spec.file is not None and not spec.rebuild:
        how = f": get {spec.url} and `cmbench reference import` it" if spec.url else ""
        raise UsageError(
            f"protocol '{protocol.name}' compares {data.title} with {spec.name}, not with what its images give{how}"
        )
    if engine.missing:
        raise WorkError(next(iter(engine.missing.values())))
    place = building.place(engine, data)
    if force:
        place.unlink(missing_ok=True)
    built = building.from_data(engine, spec or ReferenceSpec("training set"), data, progress)
    if to is None:
        return place
    references.write(to, built)
    return to
