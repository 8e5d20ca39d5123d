"""Statistics files that others publish: checked, and kept under the name that protocols look for."""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmbench.errors import UsageError, WorkError, unknown
from cmbench.metrics import library, references
from cmbench.metrics.protocols import Protocol, ReferenceSpec
from cmbench.metrics.references import Reference
from cmbench.paths import atomic


@dataclass(frozen=True)
class Imported:
    """A reference that was taken in, and what a user should know of it."""

    path: Path
    notes: tuple[str, ...]


def take(
    path: Path,
    *,
    protocol: Protocol | None = None,
    dataset: str | None = None,
    name: str | None = None,
    replace: bool = False,
) -> Imported:
    """Check a published or own statistics file and keep it under the name that protocols look for.

    ``.npz`` files are copied to the byte, so that their hash stays the publisher's; ``.pkl`` files are converted.

    Args:
        path: of ADM, EDM, EDM2, clean-fid, pytorch-fid or cmbench.
        protocol: whose reference it is to be; its name for the file is taken.
        dataset: which of the protocol's references, where it has several.
        name: another name; by default the file's own.
        replace: whether a file of this name may be replaced.

    Raises:
        UsageError: nothing there, the name is taken, statistics of another extractor, not what the protocol
            compares with.
        WorkError: the file is damaged, or its values can be no statistics.
    """
    from cmbench.metrics.extractors import file_hash

    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = _spec(protocol, dataset) if protocol is not None else None
    found, images = references.read(path)
    for layer in found.layers:
        _check(found, layer, path)
    digest = file_hash(path)
    if spec is not None and spec.sha256 is not None and digest != spec.sha256:
        raise UsageError(f"{path} has SHA-256 {digest[:16]}..., the protocol says {spec.sha256[:16]}...")
    stem = name or (Path(spec.file).stem if spec is not None and spec.file else path.stem)
    if Path(stem).name != stem or stem.startswith("."):
        raise UsageError(f"--as {stem}: a plain name is needed, without folders")
    target = library.folder() / f"{stem.removesuffix('.npz')}.npz"
    if target.exists() and not replace and digest not in (file_hash(target), _converted_from(target)):
        raise UsageError(
            f"{target} is there already and differs: --force replaces it, --as gives another name"
        )
    if path.suffix == ".npz":
        with atomic(target) as temporary:
            shutil.copyfile(path, temporary)
    else:
        origin = {"file": path.name, "sha256": digest}
        references.write(target, dataclasses.replace(found, provenance=origin))
    return Imported(target, tuple(_remarks(protocol, found, images is not None, target)))


def _converted_from(path: Path) -> str | None:
    """SHA-256 of the file that a converted reference was made from, if it was."""
    try:
        origin = references.read(path)[0].provenance.get("sha256")
    except WorkError:  # a damaged file is of no use, and of nobody
        return None
    return None if origin is None else str(origin)


def _spec(protocol: Protocol, dataset: str | None) -> ReferenceSpec:
    by_file = {name: spec for name, spec in protocol.references.items() if spec.file is not None}
    if not by_file:
        raise UsageError(
            f"protocol '{protocol.name}' compares with the data set itself: leave --protocol away, "
            "and use the file with --against"
        )
    if dataset is None and len(by_file) > 1:
        raise UsageError(
            f"protocol '{protocol.name}' has several references: say --dataset {', '.join(by_file)}"
        )
    if dataset is not None and dataset not in by_file:
        raise unknown(f"reference file of protocol '{protocol.name}'", dataset, by_file)
    return by_file[dataset] if dataset is not None else next(iter(by_file.values()))


def _check(found: Reference, layer: str, path: Path) -> None:
    from cmbench.metrics.extractors import definition
    from cmbench.metrics.frechet import covariance_factor

    known = found.layers[layer]
    extractor, _, name = layer.partition("/")
    references.check(layer, known, definition(extractor).layers[name], path.name)
    if not np.isfinite(known.mean).all():
        raise WorkError(f"{path}: the mean of {layer} is not finite")
    try:
        covariance_factor(known.covariance)
    except WorkError as error:
        raise WorkError(f"{path}, {layer}: {error}") from error


def _remarks(protocol: Protocol | None, found: Reference, images: bool, target: Path) -> Iterator[str]:
    users = library.users().get(target.name)
    yield f"used by {', '.join(users)}" if users else f"use it with --against {target.stem}"
    if protocol is None:
        return
    from cmbench.metrics.figures import KEEPS_REFERENCE, NO_REFERENCE

    for spec in protocol.metrics:
        if spec.kind in NO_REFERENCE or images:
            continue
        known = found.layers.get(f"{spec.extractor}/{spec.layer}")
        if known is None or (spec.kind in KEEPS_REFERENCE and known.features is None):
            what = "statistics" if known is None else "features"
            titles = ", ".join(spec.titles.values())
            yield f"it holds no {what} of {spec.extractor}/{spec.layer}: {titles} cannot be computed from it"
