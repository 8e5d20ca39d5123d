"""The sweep: methods x NFE x seeds -> records. Where the parts meet."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmbench import comparing, environment, records
from cmbench.methods import Method, Model
from cmbench.metrics.engine import Engine
from cmbench.metrics.figures import Measurement
from cmbench.records import Record
from cmbench.sampling.generate import EvaluationCounter, Source, shard_ranges
from cmbench.sharing import claim, ensure, share
from cmbench.workshop import Need, Workshop

if TYPE_CHECKING:
    from cmbench.checkpoints import Checkpoint
    from cmbench.metrics.references import Reference

PREVIEW = 64  # samples kept as a picture beside each record


@dataclass(frozen=True)
class Plan:
    """One record that is wanted."""

    method: Method
    nfe: int
    seed: int
    need: Need
    identity: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The record's key."""
        return records.fingerprint(self.identity)

    @property
    def title(self) -> str:
        """For progress bars and messages."""
        return f"{self.method.label}, NFE {self.nfe}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """A record, and whether it was computed now or had been before."""

    record: Record
    computed: bool


@dataclass(frozen=True)
class Sweep:
    """A benchmark on one data set.

    Attributes:
        workshop: where checkpoints come from.
        engine: the metrics of one protocol.
        samples: samples a record is measured on.
        batch_size: samples at a time; moves no result.
        on_samples: called with (title, samples done, samples in all).
    """

    workshop: Workshop
    engine: Engine
    samples: int
    batch_size: int
    on_samples: Callable[[str, int, int], None] = field(default=lambda _title, _done, _total: None)
    _renewed: set[str] = field(default_factory=set, repr=False)  # checkpoints that --force has trained anew

    def plans(
        self, chosen: Sequence[Method], nfes: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Plan | str]:
        """Every combination, in order: a plan, or a line that says why a method cannot do an NFE."""
        for method in chosen:
            recipe = self.workshop.recipe(method)
            for nfe in nfes:
                if reason := method.refuses(nfe, recipe):
                    yield f"{method.name} at NFE {nfe} is left out: {reason}"
                    continue
                for seed in seeds:
                    yield self._plan(method, recipe, nfe, seed)

    def _plan(self, method: Method, recipe: Any, nfe: int, seed: int) -> Plan:
        from cmbench.recipes import differences

        shop, protocol = self.workshop, self.engine.protocol
        need = shop.need(method, nfe, seed)
        identity = {
            "kind": "record",
            "method": method.name,
            "revision": method.revision,
            "recipe": differences(recipe),
            "preset": shop.preset,
            "nfe": nfe,
            "seed": seed,
            "samples": self.samples,
            "shard": shop.common.shard,
            "dataset": shop.images.fingerprint,
            "training": records.fingerprint(shop.lineage(need)),
            "checkpoint": shop.identity(need),
            "protocol": {**protocol.to_json(), "metric_titles": protocol.metric_titles},
        }
        return Plan(method, nfe, seed, need, identity)

    def run(self, plan: Plan, *, force: bool = False) -> Outcome:
        """The record of a plan: the stored one, or computed now.

        A stored record counts only where it has every metric that can be computed here; one whose weights were
        missing when it was made is computed again. ``force`` computes it again, and trains the method's own
        checkpoint again (once, however many records use it), though never a network it shares with other methods.
        """
        out = self.workshop.out
        before = records.find(out, plan.key)
        if not force and before and self._complete(before):
            return Outcome(before, computed=False)
        renew = force and plan.need.method is plan.method and plan.need.key not in self._renewed
        checkpoint = ensure(self.workshop, plan.need, force=renew)
        self._renewed.add(plan.need.key)
        shards = out / "shards" / f"{plan.key}-{records.fingerprint(sorted(self.engine.missing))}"
        if force:
            shutil.rmtree(shards, ignore_errors=True)

        def elsewhere() -> Record | None:
            """The record, where another process has made it meanwhile."""
            found = records.find(out, plan.key)
            return None if found == before else found

        record, computed = self._measure(plan, checkpoint, shards, elsewhere)
        return Outcome(record, computed)

    def _complete(self, stored: Record) -> bool:
        missed = set(stored.environment.get("missing", ()))
        return not missed or missed <= self._missing()

    def _missing(self) -> set[str]:
        """What metrics cannot be computed for want of: extractors, the reference."""
        absent = {"reference"} if self._reference().missing else set()
        return absent | set(self.engine.missing)

    def _reference(self) -> "Reference":
        images = self.workshop.images
        title = f"reference features of {images.title}"
        return self.engine.reference(images, lambda done, total: self.on_samples(title, done, total))

    def _measure(
        self, plan: Plan, checkpoint: "Checkpoint", shards: Path, elsewhere: Callable[[], Record | None]
    ) -> tuple[Record, bool]:
        """Sample and measure, sharing the shards with other processes: the record, and whether it was made here."""
        shop, engine, device = self.workshop, self.engine, self.workshop.device
        head = checkpoint.header
        network = checkpoint.network(device)
        sampler = plan.method.sampler(Model(network, head.noise), shop.recipe(plan.method), plan.nfe)
        source = Source(sampler, head.shape, head.classes, plan.seed, device)
        reference = self._reference()

        ranges = shard_ranges(self.samples, shop.common.shard)
        paths = [shards / f"{number:05d}.npz" for number in range(len(ranges))]
        counter = EvaluationCounter(network)
        sampled, seconds = 0, 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def make(number: int) -> None:
            nonlocal sampled, seconds
            shard = engine.shard()
            start, stop = ranges[number]
            for first, images, took in timed(source.batches(start, stop, self.batch_size), device):
                raw = engine.quantize(images)
                engine.update(shard, raw, first)
                sampled, seconds = sampled + len(raw), seconds + took
                self.on_samples(plan.title, first + len(raw), self.samples)
            engine.save(shard, paths[number])

        locks = shop.out / "locks" / shards.name
        share(paths, make, locks, lambda: elsewhere() is not None)
        counter.close()
        with claim(locks.with_name(f"{locks.name}.lock"), wait=True):
            if found := elsewhere():
                return found, sampled > 0
            evaluations = counter.rows / sampled if sampled else self._count_once(source, network)
            merged = engine.merge(map(engine.load, paths))
            measured = engine.measure(merged, reference)
            record = self._record(plan, checkpoint, measured, evaluations, sampled, seconds)
            comparing.write(shop.out, plan.key, measured.influences)
            self._preview(plan, source)
            records.write(shop.out, record)
            shutil.rmtree(shards, ignore_errors=True)
            return record, True

    def _record(
        self,
        plan: Plan,
        checkpoint: "Checkpoint",
        measured: Measurement,
        evaluations: float,
        sampled: int,
        seconds: float,
    ) -> Record:
        """The record; ``sampled`` samples were made here, in ``seconds``."""
        shop, engine, device = self.workshop, self.engine, self.workshop.device
        head = checkpoint.header
        cost: dict[str, Any] = {"training_seconds": training_seconds(shop, plan.need)}
        if sampled:
            rate = sampled / seconds
            cost |= {"sampling_seconds": round(seconds, 3), "images_per_second": round(rate, 2)}
        if device.type == "cuda":
            cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        method = plan.method
        return Record(
            method=method.name,
            label=method.label,
            group=method.group,
            reference=method.reference,
            dataset=shop.images.name,
            nfe=plan.nfe,
            nfe_counted=evaluations,
            seed=plan.seed,
            samples=self.samples,
            metrics=measured.metrics,
            protocol=engine.protocol.name,
            protocol_fingerprint=engine.protocol.fingerprint,
            identity=plan.identity,
            checkpoint=checkpoint.sha256,
            cost=cost,
            environment={**environment.describe(device), "missing": sorted(self._missing())},
            notes=(*head.notes, *method.notes(shop.recipe(method))),
        )

    def _count_once(self, source: Source, network: torch.nn.Module) -> float:
        """Evaluations of one sample, for a run that found all its shards finished."""
        counter = EvaluationCounter(network)
        source.images([0])
        counter.close()
        return float(counter.rows)

    def _preview(self, plan: Plan, source: Source) -> None:
        from cmbench.report.grid import write_preview

        count = min(PREVIEW, self.samples)
        images = self.engine.quantize(source.images(range(count))).cpu().numpy()
        write_preview(self.workshop.out / "previews" / f"{plan.key}.png", images.transpose(0, 2, 3, 1))


def timed(
    batches: Iterator[tuple[int, torch.Tensor]], device: torch.device
) -> Iterator[tuple[int, torch.Tensor, float]]:
    """The batches with the seconds that each took to make."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield *batch, time.perf_counter() - started


def training_seconds(shop: Workshop, need: Need) -> float | None:
    """Training time of a checkpoint and its parents; None where one of them is not there."""
    checkpoint = shop.find(need)
    if checkpoint is None:
        return None
    above = training_seconds(shop, need.parent) if need.parent else 0.0
    return None if above is None else round(checkpoint.header.seconds + above, 1)
