"""The engine: every image goes once through each extractor, and every metric is fed from that one pass."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmbench.errors import CmbenchError, UsageError, WorkError, unknown
from cmbench.metrics import building, references, shards
from cmbench.metrics.extractors import Extractor, definition, open_extractor
from cmbench.metrics.figures import KEEPS_REFERENCE, KEEPS_SAMPLES, NO_REFERENCE, Case, Measurement, figures
from cmbench.metrics.protocols import MetricSpec, Protocol
from cmbench.metrics.quantize import quantize
from cmbench.metrics.references import Reference
from cmbench.metrics.shards import LayerState, Shard
from cmbench.records import Metric

if TYPE_CHECKING:
    from cmbench.data import ImageData

BATCH = 64

Progress = Callable[[int, int], None]


class Engine:
    """Measures uint8 images under one protocol; made by :meth:`open`.

    Extractors always run whole batches whose borders are multiples of ``batch_size`` in sample index (short
    ones are padded), so that the features of a sample depend neither on how a caller cuts its batches and
    shards nor on what else was measured. Shards whose borders are such multiples waste nothing.

    Attributes:
        protocol: what is measured.
        batch_size: images per pass; another one changes features in the last bits.
        missing: extractor -> why it could not be opened.
        device: where the extractors run.
        download: whether published statistics may be fetched.
    """

    def __init__(
        self,
        protocol: Protocol,
        extractors: dict[str, Extractor],
        missing: dict[str, str],
        batch_size: int,
        device: torch.device,
        download: bool,
    ) -> None:
        self.protocol = protocol
        self.download = download
        self.device = device
        self.batch_size = batch_size
        self.missing = missing
        self._extractors = extractors
        self.half: int | None = None
        self._whole: Engine | None = None  # of which this one is a part (see :meth:`only`)
        self._known: dict[str, Reference] = {}

    @classmethod
    def open(
        cls,
        protocol: Protocol,
        *,
        device: str | torch.device = "cpu",
        weights: Path | None = None,
        batch_size: int = BATCH,
        download: bool = True,
    ) -> "Engine":
        """Load the protocol's extractors.

        One that cannot be had is remembered with its reason: its metrics are reported as missing, the others
        are computed.

        Args:
            protocol: what to measure.
            device: where the extractors run.
            weights: the user's weight file, or a folder of such files.
            batch_size: images per pass through an extractor.
            download: whether absent weights and published statistics may be fetched.

        Raises:
            UsageError: unknown extractor or layer, nothing at ``weights``, a batch size below 1.
        """
        if batch_size < 1:
            raise UsageError(f"a batch has at least one image, not {batch_size}")
        for metric in protocol.metrics:
            layers = definition(metric.extractor).layers
            if metric.layer not in layers:
                raise unknown(f"layer of {metric.extractor}", metric.layer, layers)
        opened, missing = {}, {}
        for spec in protocol.extractors:
            try:
                extractor = open_extractor(
                    spec, device=device, precision=protocol.precision, weights=weights, download=download
                )
                opened[spec.name] = extractor.compile() if protocol.compile else extractor
            except WorkError as error:
                missing[spec.name] = str(error)
        return cls(protocol, opened, missing, batch_size, torch.device(device), download)

    def only(self, metric: str, half: int | None = None) -> "Engine":
        """An engine for one figure alone, with the same extractors and the reference that is there for all of them.

        Args:
            metric: its name in records.
            half: compare with every other image of the reference alone, from number 0 or 1 on.

        Raises:
            UsageError: the protocol has no such metric.
            WorkError: its extractor cannot be had.
        """
        spec = next((spec for spec in self.protocol.metrics if metric in spec.titles), None)
        if spec is None:
            raise unknown(f"metric of protocol {self.protocol.name}", metric, self.protocol.metric_titles)
        if spec.extractor in self.missing:
            raise WorkError(self.missing[spec.extractor])
        protocol = dataclasses.replace(
            self.protocol, metrics=(spec,), extractors=(self.protocol.extractor(spec.extractor),)
        )
        extractors = {spec.extractor: self._extractors[spec.extractor]}
        made = Engine(protocol, extractors, {}, self.batch_size, self.device, self.download)
        made._whole, made.half = self, half
        return made

    @property
    def provenance(self) -> dict[str, Any]:
        """Protocol and the SHA-256 of the weights that are really in use, for records."""
        return {
            "protocol": self.protocol.name,
            "fingerprint": self.protocol.fingerprint,
            "weights": self.weights,
        }

    @property
    def weights(self) -> dict[str, str]:
        """Extractor -> SHA-256 of the weights in use."""
        return {name: extractor.weights for name, extractor in sorted(self._extractors.items())}

    def quantize(self, images: Tensor) -> Tensor:
        """Float images [B, C, H, W] in [-1, 1] to uint8, as the protocol says."""
        return quantize(images, self.protocol.quantizer)

    # --- samples ---------------------------------------------------------------------------------

    def shard(self) -> Shard:
        """An empty shard, for a contiguous range of sample indices."""
        needed = {
            self._layer(spec): False for spec in self.protocol.metrics if spec.extractor in self._extractors
        }
        for spec in self.protocol.metrics:
            if spec.kind in KEEPS_SAMPLES and self._layer(spec) in needed:
                needed[self._layer(spec)] = True
        return self.empty(needed)

    def update(self, shard: Shard, images: Tensor | NDArray[np.uint8], first_index: int) -> None:
        """Add images to a shard.

        Args:
            shard: of this engine.
            images: uint8 [B, C, H, W] with C of 1 or 3; gray becomes three equal channels.
            first_index: sample index of the first image; continues where the shard ends.

        Raises:
            UsageError: images of another type or shape, indices that do not continue.
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8:
            raise UsageError(f"images are measured as uint8, not {images.dtype}: quantise floats first")
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UsageError(f"images have shape [B, 1 or 3, H, W], not {list(images.shape)}")
        if len(images) == 0:
            return
        if shard.first is None:
            shard.first = first_index
        elif first_index != shard.stop:
            raise UsageError(f"the next image of this shard is number {shard.stop}, not {first_index}")
        if shard.waiting and images.shape[1:] != shard.waiting[0].shape[1:]:
            shapes = list(shard.waiting[0].shape[1:]), list(images.shape[1:])
            raise UsageError(f"the images of a shard have one shape, not {shapes[0]} and {shapes[1]}")
        shard.count += len(images)
        shard.waiting.append(images)
        self._run(shard, flush=False)

    def flush(self, shard: Shard) -> None:
        """Run the images of a shard that still wait for a full batch."""
        self._run(shard, flush=True)

    def save(self, shard: Shard, path: Path) -> None:
        """Run what waits and write the shard atomically as ``.npz``."""
        self.flush(shard)
        shards.save(shard, path)

    def load(self, path: Path) -> Shard:
        """Read a shard.

        Raises:
            UsageError: it is of another protocol, other weights or another batch size.
            WorkError: it is damaged.
        """
        return shards.load(path, self.shard())

    def merge(self, parts: Iterable[Shard]) -> Shard:
        """Join shards in the order of their sample indices, whatever order they come in.

        Raises:
            UsageError: shards of another protocol.
            WorkError: samples are missing in between, or come twice.
        """
        ready = []
        for part in parts:
            self.flush(part)
            ready.append(part)
        return shards.merge(ready, self.shard())

    # --- reference -------------------------------------------------------------------------------

    def reference(self, data: "ImageData | None", progress: Progress | None = None) -> Reference:
        """What the protocol compares with, for this data set; see :func:`cmbench.metrics.building.find`.

        Args:
            data: the data set; None where the reference is a file.
            progress: called with images done and images to do while features are computed.

        Raises:
            UsageError: the file's dimensions are not the extractor's; no reference for the data.
            WorkError: the file is damaged.
        """
        if self._whole is None:
            return building.find(self, data, progress)
        name = data.fingerprint if data is not None else ""
        if name not in self._known:
            found = self._whole.reference(data, progress)
            self._known[name] = found if self.half is None else references.half(found, self.half)
        return self._known[name]

    def reference_layers(self) -> dict[str, bool]:
        """Layers that the reference needs -> whether its features are kept."""
        needed: dict[str, bool] = {}
        for spec in self.protocol.metrics:
            if spec.kind not in NO_REFERENCE and spec.extractor in self._extractors:
                keep = needed.get(self._layer(spec), False) or spec.kind in KEEPS_REFERENCE
                needed[self._layer(spec)] = keep
        return needed

    # --- metrics ---------------------------------------------------------------------------------

    def compute(self, shard: Shard, reference: Reference) -> dict[str, Metric]:
        """The metrics of :meth:`measure` alone."""
        return dict(self.measure(shard, reference).metrics)

    def measure(self, shard: Shard, reference: Reference) -> Measurement:
        """All figures of the protocol, in its order; what cannot be computed says why.

        Args:
            shard: all samples (see :meth:`merge`).
            reference: from :meth:`reference`.
        """
        self.flush(shard)
        metrics: dict[str, Metric] = {}
        influences: dict[str, NDArray[Any]] = {}
        for spec in self.protocol.metrics:
            try:
                part = self._figures(spec, shard, reference)
                metrics |= part.metrics
                influences |= part.influences
            except CmbenchError as error:
                metrics |= {key: Metric.missing(str(error)) for key in spec.titles}
        return Measurement(metrics, influences)

    def _figures(self, spec: MetricSpec, shard: Shard, reference: Reference) -> Measurement:
        layer = self._layer(spec)
        if spec.extractor in self.missing:
            raise WorkError(self.missing[spec.extractor])
        state = shard.layers[layer]
        if state.failure is not None:
            raise WorkError(state.failure)
        if shard.count < 2:
            raise WorkError(f"{shard.count} samples are too few for any statistics")
        statistics = reference.layers.get(layer)
        notes = []
        if spec.kind not in NO_REFERENCE:
            if reference.missing is not None:
                raise WorkError(reference.missing)
            if statistics is None or (spec.kind in KEEPS_REFERENCE and statistics.features is None):
                what = "features" if statistics else "statistics"
                raise WorkError(f"reference {reference.name} holds no {what} of {layer}")
            notes = [reference.note] if reference.note else []
        if shard.count < self.protocol.samples:
            notes.append(f"{shard.count} samples; the protocol asks for {self.protocol.samples}")
        return figures(spec, Case(state, statistics, spec.settings, self.device), tuple(notes))

    # --- one pass --------------------------------------------------------------------------------

    def _layer(self, spec: MetricSpec) -> str:
        return f"{spec.extractor}/{spec.layer}"

    def _identity(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.fingerprint,
            "weights": self.weights,
            "batch size": self.batch_size,
        }

    def empty(self, needed: dict[str, bool], identity: dict[str, Any] | None = None) -> Shard:
        """An empty shard of these layers -> whether their features are kept."""
        layers = {}
        for layer, keep in needed.items():
            extractor, _, name = layer.partition("/")
            layers[layer] = LayerState(definition(extractor).layers[name], keep)
        return Shard(self._identity() if identity is None else identity, layers)

    def _run(self, shard: Shard, flush: bool) -> None:
        """Run the images that wait through the extractors in aligned batches, and the rest if ``flush``."""
        if not shard.waiting:
            return
        B = self.batch_size
        images = torch.cat(shard.waiting)
        index = shard.stop - len(images)
        while len(images):
            before = index % B
            take = min(B - before, len(images))
            if before + take < B and not flush:
                break
            batch = images[:take]
            if take < B:
                padded = batch.new_zeros(B, *batch.shape[1:])
                padded[before : before + take] = batch
                batch = padded
            batch = batch.expand(-1, 3, -1, -1)
            for name, extractor in self._extractors.items():
                wanted = [layer for layer in shard.layers if layer.startswith(f"{name}/")]
                features = extractor(batch) if wanted else {}
                for layer in wanted:
                    rows = features[layer.partition("/")[2]][before : before + take]
                    shard.layers[layer].update(rows.float().cpu().numpy(), index)
            images, index = images[take:], index + take
        shard.waiting = [images] if len(images) else []
