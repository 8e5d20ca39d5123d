"""What a choice of protocol moves: the same samples under other quantisers and other ways of resizing."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.engine import Engine
from cmbench.metrics.figures import Influences
from cmbench.metrics.paired import compare, compare_flags
from cmbench.metrics.protocols import QUANTIZERS, Protocol, ReferenceSpec
from cmbench.metrics.quantize import quantize
from cmbench.records import Metric

if TYPE_CHECKING:
    from cmbench.data import ImageData
    from cmbench.methods import Method
    from cmbench.workshop import Workshop

RESIZES = ("tf1-bilinear", "pil-bicubic", "half-pixel-bilinear")
STORED = "as stored"
"""The quantiser of samples that are uint8 already."""

Batches = Iterable[tuple[int, Tensor]]
"""``(first index, images)``: float [B, C, H, W] in [-1, 1], or uint8."""


@dataclass(frozen=True)
class Sensitivity:
    """The figures of one variant, and how far they are from those of the first.

    ``shifts`` maps a metric to (difference, its standard error from the pairs of samples), where both exist.
    """

    quantizer: str
    resize: str
    metrics: Mapping[str, Metric]
    shifts: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain data; empty fields of metrics are left out."""
        shown = {
            name: {key: value for key, value in dataclasses.asdict(metric).items() if value is not None}
            for name, metric in self.metrics.items()
        }
        shifts = {name: {"difference": d, "std": std} for name, (d, std) in self.shifts.items()}
        return {"quantizer": self.quantizer, "resize": self.resize, "metrics": shown, "shifts": shifts}


def measure(
    engines: Mapping[str, Engine],
    quantizers: Sequence[str],
    batches: Batches,
    data: "ImageData",
    progress: Callable[[str, int, int], None],
) -> list[Sensitivity]:
    """Measure the samples under every combination, in one pass over them.

    The reference of each way of resizing is the data set itself, resized alike.

    Args:
        engines: resize -> engine of the protocol with that resize, from :func:`open_engines`; the first is the
            protocol's own.
        quantizers: of :data:`~cmbench.metrics.protocols.QUANTIZERS`, the protocol's own first; or :data:`STORED`.
        batches: the samples.
        data: the data set.
        progress: called with (title, images done, images to do) while references are computed.

    Raises:
        WorkError: no samples, a sample that is not finite.
    """
    shards = {(q, r): engine.shard() for q in quantizers for r, engine in engines.items()}
    for first, images in batches:
        for q in quantizers:
            levels = images if q == STORED else quantize(images, q)
            for r, engine in engines.items():
                engine.update(shards[q, r], levels, first)
    out: list[Sensitivity] = []
    base: tuple[Mapping[str, Metric], Influences] | None = None
    for r, engine in engines.items():
        title = f"reference {data.title}, {r}"
        reference = engine.reference(data, lambda done, all_, title=title: progress(title, done, all_))  # type: ignore[misc]
        for q in quantizers:
            found = engine.measure(shards[q, r], reference)
            base = base or (found.metrics, found.influences)
            shifts = _shifts(found.metrics, found.influences, *base) if out else {}
            out.append(Sensitivity(q, r, found.metrics, shifts))
    return out


def _shifts(
    metrics: Mapping[str, Metric],
    influences: Influences,
    base: Mapping[str, Metric],
    base_influences: Influences,
) -> dict[str, tuple[float, float]]:
    shifts = {}
    for name in influences.keys() & base_influences.keys():
        mine, theirs = influences[name], base_influences[name]
        if mine.dtype == np.bool_:
            result = compare_flags(mine, theirs)
        else:
            value, other = metrics[name].value, base[name].value
            assert value is not None and other is not None  # what has influences has a value
            result = compare(value, mine.astype(np.float64), other, theirs.astype(np.float64))
        shifts[name] = (result.difference, result.std)
    return shifts


def open_engines(protocol: Protocol, **options: Any) -> dict[str, Engine]:
    """An engine for each way of resizing that makes sense for the protocol, its own first.

    Args:
        protocol: to vary.
        **options: of :meth:`cmbench.metrics.engine.Engine.open`.

    Raises:
        WorkError: an extractor is missing.
    """
    own = next((spec.resize for spec in protocol.extractors if spec.resize != "none"), "none")
    modes = [own] if own == "none" else [own, *(mode for mode in RESIZES if mode != own)]
    engines = {}
    for mode in modes:
        extractors = tuple(
            spec if spec.resize == "none" else dataclasses.replace(spec, resize=mode)
            for spec in protocol.extractors
        )
        varied = dataclasses.replace(
            protocol, extractors=extractors, references={"*": ReferenceSpec("training set")}
        )
        engines[mode] = Engine.open(varied, **options)
        if engines[mode].missing:
            raise WorkError(next(iter(engines[mode].missing.values())))
    return engines


def quantizers(protocol: Protocol, floats: bool) -> list[str]:
    """The quantisers to compare, the protocol's own first; uint8 samples have been through one already."""
    return sorted(QUANTIZERS, key=lambda q: q != protocol.quantizer) if floats else [STORED]


def generated(workshop: "Workshop", method: "Method", nfe: int, seed: int, count: int, batch: int) -> Batches:
    """The float images of a method, made again from their seeds; trains what is missing.

    Raises UsageError where the method cannot do this.
    """
    from cmbench.sampling.generate import open_source

    if reason := workshop.refusal(method, nfe):
        raise UsageError(f"{method.name} at NFE {nfe}: {reason}")
    checkpoint = workshop.ensure(workshop.need(method, nfe, seed))
    network = checkpoint.network(workshop.device)
    return open_source(workshop, method, checkpoint, network, nfe=nfe, seed=seed).batches(0, count, batch)


def stored(path: Path, count: int | None, batch: int) -> tuple[Batches, int, bool]:
    """Samples from a file: (batches, how many, whether they are floats).

    Float images are an ``.npz`` with ``arr_0`` or ``images`` [N, H, W, C] or [N, C, H, W] in [-1, 1], accepted for
    this comparison only; anything else is read as :func:`cmbench.data.open_images` does.

    Raises:
        UsageError: floats of another range or shape; as ``open_images``.
        WorkError: a damaged file.
    """
    floats = _floats(path) if path.suffix == ".npz" and path.is_file() else None
    if floats is not None:
        total = min(count or len(floats), len(floats))
        return (
            ((i, torch.from_numpy(floats[i : min(i + batch, total)])) for i in range(0, total, batch)),
            total,
            True,
        )
    from cmbench.data import open_images

    images = open_images(path)
    total = min(count or len(images), len(images))
    starts = range(0, total, batch)
    return (
        ((i, torch.from_numpy(images.read(np.arange(i, min(i + batch, total))))) for i in starts),
        total,
        False,
    )


def _floats(path: Path) -> "np.ndarray[Any, Any] | None":
    """Float images [N, C, H, W] of an npz; None where its images are no floats, or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array = next((file[key] for key in ("arr_0", "images") if key in file), None)
    except (OSError, ValueError, EOFError) as error:
        raise WorkError(f"cannot read {path}: {error}") from error
    if array is None or array.dtype.kind != "f":
        return None
    if array.ndim != 4 or not {array.shape[1], array.shape[3]} & {1, 3} or len(array) == 0:
        raise UsageError(f"{path}: float images are [N, H, W, C] or [N, C, H, W], not {list(array.shape)}")
    low, high = float(array.min()), float(array.max())
    if not (-2 <= low < 0 and high <= 2):  # samplers overshoot [-1, 1] a little; NaN fails as well
        raise UsageError(
            f"{path}: float images lie in [-1, 1], and these in [{low:g}, {high:g}]: rescale them"
        )
    array = array if array.shape[1] in (1, 3) else array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array, np.float32)
