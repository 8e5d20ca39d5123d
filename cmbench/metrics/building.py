"""Where a reference comes from: the user's file, a published one, or one pass over the data set."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmbench.errors import UsageError, WorkError
from cmbench.metrics import references, shards
from cmbench.metrics.extractors import definition, file_hash
from cmbench.metrics.protocols import ReferenceSpec
from cmbench.metrics.references import Reference, Statistics
from cmbench.paths import cache_dir
from cmbench.records import fingerprint
from cmbench.sharing import claim

if TYPE_CHECKING:
    from cmbench.data import ImageData
    from cmbench.metrics.engine import Engine

PART = 4096  # images between two saves while features are computed


def find(
    engine: "Engine", data: "ImageData | None", progress: Callable[[int, int], None] | None = None
) -> Reference:
    """What the engine's protocol compares with, for this data set.

    A statistics file is the user's, or the published one in ``cache_dir()/references``, fetched if that is
    allowed. Where the protocol's reference is the data set itself, its features are computed in one pass (in
    parts that a later call continues) and cached. What cannot be had comes back with the reason, not as an
    error.

    Args:
        engine: with the extractors to use.
        data: the data set; None where the reference is a file.
        progress: called with images done and images to do while features are computed.

    Raises:
        UsageError: the file's dimensions are not the extractor's; the protocol has no reference for the data.
        WorkError: the file is damaged.
    """
    known = engine.protocol.references
    name = data.name if data is not None else "*"
    spec = known.get(name, known.get("*"))
    if spec is None:
        whom = f"for {name}" if data is not None else "without a data set"
        has = ", ".join(known)
        raise UsageError(f"protocol '{engine.protocol.name}' has no reference {whom}: it has them for {has}")
    if not engine.reference_layers():
        return Reference(spec.name, {})
    path, absent = _file(spec, engine.download)
    if path is not None:
        return _from_file(engine, spec, path)
    if data is not None and (spec.file is None or spec.rebuild):
        built = from_data(engine, spec, data, progress)
        note = f"reference computed from {data.title}: {absent}" if absent else None
        return dataclasses.replace(built, note=note)
    return Reference(
        spec.name, {}, missing=f"no reference: {absent or 'give a data set or a reference file'}"
    )


def _file(spec: ReferenceSpec, download: bool) -> tuple[Path | None, str | None]:
    """The statistics file, or None and why it is absent (None as well where the protocol names no file)."""
    if spec.path is not None or spec.file is None:
        return spec.path, None
    path = references.kept_at(spec.file)
    if path.is_file():
        return path, None
    if spec.url is None or not download:
        return None, f"{spec.file} is not at {path}" + (f" (get it from {spec.url})" if spec.url else "")
    from cmbench.download import fetch

    try:
        return fetch(spec.url, path, sha256=spec.sha256), None
    except WorkError as error:
        return None, str(error)


def _from_file(engine: "Engine", spec: ReferenceSpec, path: Path) -> Reference:
    digest = file_hash(path)
    if spec.sha256 is not None and digest != spec.sha256:
        raise WorkError(f"{path} has SHA-256 {digest[:16]}..., the protocol says {spec.sha256[:16]}...")
    found, images = references.read(path)
    layers, needed = dict(found.layers), engine.reference_layers()
    lacking = [n for n, keep in needed.items() if n not in layers or (keep and layers[n].features is None)]
    if images is not None and lacking:
        shard = engine.empty(dict.fromkeys(lacking, True))
        for start in range(0, len(images), engine.batch_size):
            engine.update(shard, images[start : start + engine.batch_size], start)
        engine.flush(shard)
        for layer, state in shard.layers.items():
            moments = state.moments()
            # Where the file states statistics they are of the whole set, of which its images are a part.
            stated = layers.get(layer, Statistics(moments.mean, moments.covariance(), moments.n))
            layers[layer] = dataclasses.replace(stated, features=state.rows())
    for layer in needed.keys() & layers.keys():
        extractor, _, name = layer.partition("/")
        references.check(layer, layers[layer], definition(extractor).layers[name], path.name)
    if needed and spec.path is not None and not needed.keys() & layers.keys():
        raise UsageError(
            f"{path} holds {', '.join(layers) or 'nothing'} and protocol '{engine.protocol.name}' needs "
            f"{', '.join(needed)}: it was made with another extractor"
        )
    provenance = {"file": path.name, "sha256": digest, **found.provenance}
    return Reference(spec.name, {name: layers[name] for name in needed if name in layers}, provenance)


def _identity(engine: "Engine", data: "ImageData") -> dict[str, Any]:
    """Everything that moves its features, and nothing else: protocols that agree on these share the file."""
    return {
        "fingerprint": data.fingerprint,
        "extractors": [dataclasses.asdict(x) for x in engine.protocol.extractors if x.name in engine.weights],
        "weights": engine.weights,
        "arithmetic": [engine.protocol.precision, engine.protocol.compile, engine.batch_size],
        "layers": engine.reference_layers(),
    }


def place(engine: "Engine", data: "ImageData") -> Path:
    """Where the statistics of a data set are kept once they are computed."""
    return cache_dir() / "references" / f"{data.name}-{fingerprint(_identity(engine, data))}.npz"


def from_data(
    engine: "Engine",
    spec: ReferenceSpec,
    data: "ImageData",
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """The statistics of the data set itself, computed now or cached before; arguments as for :func:`find`."""
    path = place(engine, data)
    if not path.is_file():
        with claim(path.with_suffix(".lock"), wait=True):  # another process may be at it
            if not path.is_file():
                return _computed(engine, spec, data, path, progress)
    return dataclasses.replace(references.read(path)[0], name=spec.name)


def _computed(
    engine: "Engine",
    spec: ReferenceSpec,
    data: "ImageData",
    path: Path,
    progress: Callable[[int, int], None] | None,
) -> Reference:
    needed, identity = engine.reference_layers(), _identity(engine, data)
    folder = path.with_suffix(".parts")
    parts = {start: folder / f"{start:08d}.npz" for start in range(0, len(data), PART)}
    for start, part in parts.items():
        if part.is_file():
            continue
        shard, stop = engine.empty(needed, identity), min(start + PART, len(data))
        for first in range(start, stop, engine.batch_size):
            last = min(first + engine.batch_size, stop)
            engine.update(shard, data.read(np.arange(first, last)), first)
            if progress is not None:
                progress(last, len(data))
        engine.save(shard, part)
    loaded = (shards.load(part, engine.empty(needed, identity)) for part in parts.values())
    whole = shards.merge(loaded, engine.empty(needed, identity))
    layers = {}
    for layer, state in whole.layers.items():
        if state.failure:
            raise WorkError(f"reference {spec.name}: {state.failure}")
        moments = state.moments()
        kept = state.rows() if state.keep else None
        layers[layer] = Statistics(moments.mean, moments.covariance(), moments.n, kept)
    provenance = {"data": data.name, "images": len(data), **identity}
    reference = Reference(spec.name, layers, provenance)
    references.write(path, reference)
    shutil.rmtree(folder, ignore_errors=True)
    return reference
