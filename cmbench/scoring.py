"""Samples made elsewhere -> a record like any other."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmbench import comparing, environment, records, registry
from cmbench.data import DatasetSpec, ImageData, open_dataset, open_images
from cmbench.data.base import Deferred
from cmbench.errors import CmbenchError, UsageError
from cmbench.methods import DISTILLATION
from cmbench.metrics.engine import Engine
from cmbench.metrics.figures import Measurement
from cmbench.metrics.protocols import Protocol
from cmbench.records import Record
from cmbench.report import published
from cmbench.report.grid import MOST, write_preview
from cmbench.sharing import claim, share

if TYPE_CHECKING:
    from cmbench.benchmark import Outcome

OTHERS = "Scored samples"
"""The group of systems that the paper's tables do not have."""

SHARD = 4096  # samples between two saves; a multiple of the engine's batch


@dataclass(frozen=True)
class System:
    """Who made the samples: what a record says of a method, and the seed that the maker used."""

    method: str
    label: str
    group: str
    reference: str
    nfe: int
    seed: int = 0


def system(
    dataset: str,
    label: str,
    nfe: int,
    *,
    group: str | None = None,
    reference: str | None = None,
    method: str | None = None,
    seed: int = 0,
) -> System:
    """Describe a system; what is not given comes from the paper's tables if they have a method of this label.

    Args:
        dataset: registered name; its own table is asked first.
        label: what tables print; the paper's spelling is used where only the case differs.
        nfe: network evaluations a sample took, as its maker states them.
        group: section of the table; :data:`OTHERS` for a system that the paper does not have.
        reference: authors and year.
        method: name for files and selectors; made from the label by default.
        seed: the maker's seed.

    Raises:
        UsageError: an empty label or name, an NFE below 1.
    """
    if nfe < 1:
        raise UsageError(f"--nfe {nfe}: a sample takes at least 1 evaluation")
    rows = chain(published.for_dataset(dataset), published.load(1), published.load(2))
    known = next((row for row in rows if row.method.casefold() == label.casefold()), None)
    if known is not None:
        label, reference = known.method, reference or known.reference
        if group is None and known.group not in published.BLOCKS.values():
            group = known.group
        elif group is None and known.mark == "distillation":
            group = DISTILLATION
    name = re.sub(r"[^a-z0-9.]+", "-", (method or label).lower()).strip("-.")
    if not name:
        raise UsageError(f"--label '{label}': a name with letters or digits is needed")
    return System(name, label, group or OTHERS, reference or "", nfe, seed)


def open_known(name: str, data: Path | None, download: bool, protocol: Protocol) -> ImageData:
    """The data set that samples are compared with, or its name alone where a statistics file stands for it.

    Raises as :func:`cmbench.data.open_dataset`, except for an absent data set that the protocol can do without.
    """
    spec: DatasetSpec = registry.load("data set", name)
    reference = protocol.references.get(name, protocol.references.get("*"))
    by_file = reference is not None and reference.file is not None
    try:
        # Where a file stands for it, a large data set is used if it is there and not fetched.
        return open_dataset(name, data, download and not by_file)
    except CmbenchError:
        if not by_file or data is not None or spec.shape is None:
            raise
        # Whoever wants to read an image learns the reason.
        late = Deferred(spec.shape, 0, None, partial(open_dataset, name, None, download=False))
        return ImageData(name, spec.title, late)


def open_samples(path: Path) -> ImageData:
    """The samples in a folder, zip or npz (:func:`cmbench.data.open_images`); class folders are no labels."""
    return replace(open_images(path), labels=None, classes=0)


@dataclass(frozen=True)
class Scoring:
    """Measures one system's samples.

    Attributes:
        engine: the metrics of one protocol.
        known: the data set that the samples imitate, from :func:`open_known`.
        images: the samples.
        samples: how many of them count, from the first on.
        out: results folder.
        on_samples: called with (title, samples done, samples in all).
    """

    engine: Engine
    known: ImageData
    images: ImageData
    samples: int
    out: Path
    on_samples: Callable[[str, int, int], None] = field(default=lambda _title, _done, _total: None)

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise UsageError(f"{self.images.title} holds one image: statistics take at least two")
        if not 2 <= self.samples <= len(self.images):
            raise UsageError(f"--samples {self.samples}: {self.images.title} holds {len(self.images)} images")
        if self.images.shape[1:] != self.known.shape[1:]:
            own, wanted = (" × ".join(map(str, data.shape[1:])) for data in (self.images, self.known))
            raise UsageError(
                f"{self.images.title} holds {own} images and {self.known.title} is {wanted}: "
                "score samples of the data set's own size, since resizing them here would move every figure"
            )

    def identity(self, of: System) -> Mapping[str, Any]:
        """Everything that determines the record. Label, group and reference may be corrected later."""
        protocol = self.engine.protocol
        reference = protocol.references.get(self.known.name, protocol.references.get("*"))
        itself = reference is not None and reference.file is None
        return {
            "kind": "scored samples",
            "method": of.method,
            "nfe": of.nfe,
            "seed": of.seed,
            "content": self.images.fingerprint,
            "samples": self.samples,
            "dataset": self.known.fingerprint if itself else self.known.name,
            "protocol": {**protocol.to_json(), "metric_titles": protocol.metric_titles},
        }

    def run(self, of: System, *, force: bool = False) -> "Outcome":
        """The record of these samples: the stored one, or measured now (again, with ``force``).

        A measurement that was interrupted goes on from its last shard.

        Raises:
            WorkError: a damaged image, by name.
        """
        from cmbench.benchmark import Outcome

        identity = self.identity(of)
        key = records.fingerprint(identity)
        title = f"{of.label}, NFE {of.nfe}, seed {of.seed}"
        reference = self.engine.reference(
            self.known, lambda done, total: self.on_samples(f"reference {self.known.title}", done, total)
        )
        missing = set(self.engine.missing) | ({"reference"} if reference.missing else set())
        before = records.find(self.out, key)
        if not force and before and set(before.environment.get("missing", ())) <= missing:
            corrected = replace(before, label=of.label, group=of.group, reference=of.reference)
            if corrected != before:
                records.write(self.out, corrected)
            return Outcome(corrected, computed=False)
        shards = self.out / "shards" / f"{key}-{records.fingerprint(sorted(self.engine.missing))}"
        if force:
            shutil.rmtree(shards, ignore_errors=True)

        def elsewhere() -> Record | None:
            """The record, where another process has made it meanwhile."""
            found = records.find(self.out, key)
            return None if found == before else found

        locks = self.out / "locks" / shards.name
        paths = self._pass(shards, locks, title, lambda: elsewhere() is not None)
        with claim(locks.with_name(f"{locks.name}.lock"), wait=True):
            if found := elsewhere():
                return Outcome(found, computed=True)
            measured = self.engine.measure(self.engine.merge(map(self.engine.load, paths)), reference)
            self._preview(key)
            comparing.write(self.out, key, measured.influences)
            record = self._record(of, identity, measured, missing)
            records.write(self.out, record)
            shutil.rmtree(shards, ignore_errors=True)
        return Outcome(record, computed=True)

    def _record(
        self, of: System, identity: Mapping[str, Any], measured: Measurement, missing: set[str]
    ) -> Record:
        return Record(
            method=of.method,
            label=of.label,
            group=of.group,
            reference=of.reference,
            dataset=self.known.name,
            nfe=of.nfe,
            nfe_counted=float(of.nfe),
            seed=of.seed,
            samples=self.samples,
            metrics=measured.metrics,
            protocol=self.engine.protocol.name,
            protocol_fingerprint=self.engine.protocol.fingerprint,
            identity=identity,
            environment={**environment.describe(self.engine.device), "missing": sorted(missing)},
            notes=self._notes(),
        )

    def _pass(self, shards: Path, locks: Path, title: str, finished: Callable[[], bool]) -> list[Path]:
        """Run all samples through the engine, shard by shard; finished shards are not run again."""
        from cmbench.sampling.generate import shard_ranges

        step = 4 * self.engine.batch_size
        ranges = shard_ranges(self.samples, SHARD)
        paths = [shards / f"{number:05d}.npz" for number in range(len(ranges))]

        def make(number: int) -> None:
            start, stop = ranges[number]
            shard = self.engine.shard()
            for first in range(start, stop, step):
                last = min(first + step, stop)
                self.engine.update(shard, self.images.read(np.arange(first, last)), first)
                self.on_samples(title, last, self.samples)
            self.engine.save(shard, paths[number])

        share(paths, make, locks, finished)
        return paths

    def _preview(self, key: str) -> None:
        _, height, width = self.images.shape
        if height == width:  # the sheet has square tiles
            first = self.images.read(np.arange(min(MOST, self.samples)))
            write_preview(self.out / "previews" / f"{key}.png", first.transpose(0, 2, 3, 1))

    def _notes(self) -> tuple[str, ...]:
        notes = [f"scored from {self.images.title}", "network evaluations as stated, not counted"]
        if self.samples < len(self.images):
            notes.append(f"the first {self.samples} of {len(self.images)} images")
        channels, wanted = self.images.shape[0], self.known.shape[0]
        if channels < wanted:
            notes.append("grayscale samples of a colour data set, measured as three equal channels")
        elif channels > wanted:
            notes.append("colour samples of a grayscale data set, measured as they are")
        return tuple(notes)
