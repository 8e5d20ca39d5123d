"""The sweep: methods x NFE x seeds -> records. Where the parts meet."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmbench import comparing, environment, records, tuned
from cmbench.errors import WorkError
from cmbench.methods import Method
from cmbench.metrics.engine import Engine
from cmbench.metrics.figures import Measurement
from cmbench.records import Record
from cmbench.sampling.generate import EvaluationCounter, Source, open_source, shard_ranges
from cmbench.sampling.seeds import RECORDS, Streams
from cmbench.sharing import Busy, claim, share
from cmbench.workshop import Need, Workshop

if TYPE_CHECKING:
    from cmbench.checkpoints import Checkpoint
    from cmbench.metrics.references import Reference

PREVIEW = 64  # samples kept as a picture beside each record


@dataclass(frozen=True)
class Plan:
    """One record that is wanted.

    ``step`` is that of a network along the training, where it is not the one at the end; ``steps`` are all that are
    wanted of that training.
    """

    method: Method
    nfe: int
    seed: int
    need: Need
    identity: Mapping[str, Any]
    recipe: Any
    notes: tuple[str, ...] = ()
    step: int | None = None
    steps: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The record's key."""
        return records.fingerprint(self.identity)

    @property
    def title(self) -> str:
        """For progress bars and messages."""
        step = "" if self.step is None else f", step {self.step}"
        return f"{self.method.label}{step}, NFE {self.nfe}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """A record, and whether it was computed now or had been before."""

    record: Record
    computed: bool


@dataclass(frozen=True)
class Failure:
    """A record that could not be made, and why."""

    plan: Plan
    reason: str


@dataclass(frozen=True)
class Sweep:
    """A benchmark on one data set.

    Attributes:
        workshop: where checkpoints come from.
        engine: the metrics of one protocol.
        samples: samples a record is measured on.
        batch_size: samples at a time; moves no result.
        on_samples: called with (title, samples done, samples in all).
        tuned: sample at the re-noising levels that `cmbench tune` has found for each checkpoint.
        folder: where records and shards go; the workshop's results folder where None.
        streams: the samples' randomness.
    """

    workshop: Workshop
    engine: Engine
    samples: int
    batch_size: int
    on_samples: Callable[[str, int, int], None] = field(default=lambda _title, _done, _total: None)
    tuned: bool = False
    folder: Path | None = None
    streams: Streams = RECORDS
    _renewed: set[str] = field(default_factory=set, repr=False)  # checkpoints that --force has trained anew

    def plans(
        self, chosen: Sequence[Method], nfes: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Plan | str]:
        """Every combination, in order: a plan, or a line that says why a method cannot do an NFE.

        Without ``nfes``, each method is measured at its usual ones.
        """
        for method in chosen:
            for nfe in nfes or method.nfes:
                if reason := self.workshop.refusal(method, nfe):
                    yield f"{method.name} at NFE {nfe} is left out: {reason}"
                    continue
                for seed in seeds:
                    plan = self.plan(method, nfe, seed)
                    yield self._at_tuned_levels(plan) if self.tuned else plan

    @property
    def out(self) -> Path:
        """Where records and shards go."""
        return self.folder or self.workshop.out

    def plan(
        self, method: Method, nfe: int, seed: int, step: int | None = None, steps: tuple[int, ...] = ()
    ) -> Plan:
        """The record of the network at the end of its training, or of that after ``step`` of its steps."""
        from cmbench.recipes import differences

        shop, protocol = self.workshop, self.engine.protocol
        recipe, need = shop.recipe(method), shop.need(method, nfe, seed)
        lineage = shop.lineage(need)
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
            "training": records.fingerprint(lineage if step is None else [{"step": step}, *lineage]),
            "checkpoint": shop.identity(need),
            "protocol": {**protocol.to_json(), "metric_titles": protocol.metric_titles},
        }
        if classes := shop.classes(need):
            identity["labels"] = f"uniform over {classes} classes"
        if shop.common.guided.active:
            identity["guidance"] = differences(shop.common.guided)
        if self.streams != RECORDS:
            identity["streams"] = list(self.streams)
        if self.engine.half is not None:
            identity["half"] = self.engine.half
        if step is not None:
            identity["step"] = step
        return Plan(method, nfe, seed, need, identity, recipe, step=step, steps=steps)

    def _at_tuned_levels(self, plan: Plan) -> Plan | str:
        """The plan with the levels that a search has found for its checkpoint, which its identity then names."""
        method, nfe, shop = plan.method, plan.nfe, self.workshop
        if method.renoising is None or nfe == 1:
            return plan
        checkpoint = shop.find(plan.need)
        found = tuned.read(checkpoint).get(nfe) if checkpoint else None
        if checkpoint is None or found is None:
            command = f"cmbench tune --method {method.name} --nfe {nfe} --seed {plan.seed}"
            return f"{method.name} at NFE {nfe}, seed {plan.seed} is left out: no levels were tuned for it ({command})"
        setting, own = next(iter(method.renoising.settings(found.taus, checkpoint.header.noise).items()))
        values = {key: tuple(value) for key, value in own.items()}
        recipe = replace(plan.recipe, **{setting: {**getattr(plan.recipe, setting), **values}})
        # How they were searched is the same for every seed; what was found is the checkpoint's own.
        identity = {**plan.identity, "tuned": dict(found.by), "taus": list(found.taus)}
        shown = ", ".join(f"{tau:.4g}" for tau in found.taus)
        note = f"re-noising levels {shown}, tuned by {found.by['metric']} on held-out samples"
        return replace(plan, recipe=recipe, identity=identity, notes=(note,))

    def home(self, plan: Plan) -> Path:
        """The folder under which its record and what belongs to it are kept.

        Records of networks along a training lie apart, so that tables of the results never show them.
        """
        return self.out if plan.step is None else self.out / "experiments"

    def record_path(self, plan: Plan) -> Path:
        """Where its record is, or will be."""
        images, step = self.workshop.images, plan.step
        return records.path_of(
            self.home(plan), images.name, plan.method.name, plan.nfe, plan.seed, plan.key, step
        )

    def run_all(self, plans: Sequence[Plan], *, force: bool = False) -> Iterator[Outcome | Failure]:
        """The outcome of every plan; one that fails does not keep the others from being made.

        What another process is at is left for last: the same command, started twice over one results folder, is
        done in half the time.
        """
        failed: dict[str, str] = {}  # checkpoint -> why it cannot be had: not tried again for every NFE
        waiting = list(plans)
        for wait in (False, True):
            tried, waiting = waiting, []
            for plan in tried:
                if plan.need.key in failed:
                    yield Failure(plan, failed[plan.need.key])
                    continue
                try:
                    yield self.run(plan, force=force, wait=wait)
                except Busy:
                    waiting.append(plan)
                except WorkError as error:
                    if self.workshop.find(plan.need) is None:
                        failed[plan.need.key] = str(error)
                    yield Failure(plan, str(error))

    def run(self, plan: Plan, *, force: bool = False, wait: bool = True) -> Outcome:
        """The record of a plan: the stored one, or computed now.

        A stored record counts only where it has every metric that can be computed here; one whose weights were
        missing when it was made is computed again. ``force`` computes it again, and trains the method's own
        checkpoint again (once, however many records use it), though never a network it shares with other methods.
        ``wait``: for another process that is training the checkpoint; a record that another process is measuring is
        then measured together with it, rather than left to it.

        Raises:
            WorkError: it could not be made; Busy, one of its kind: another process is at it.
        """
        before = records.find(self.home(plan), plan.key)
        if not force and before and self._complete(before):
            return Outcome(before, computed=False)
        with claim(self.out / "locks" / f"record-{plan.key}.lock", wait=False) as mine:
            if not mine and not wait:
                raise Busy(f"another process is measuring {plan.title}")
            # where it is another's as well, shard by shard together with that process
            return self._make(plan, before, force, wait)

    def _make(self, plan: Plan, before: Record | None, force: bool, wait: bool) -> Outcome:
        out = self.out
        if plan.step is None:
            renew = force and plan.need.method is plan.method and plan.need.key not in self._renewed
            checkpoint = self.workshop.ensure(plan.need, force=renew, wait=wait)
            self._renewed.add(plan.need.key)
        else:
            checkpoint = self.workshop.ensure_milestone(plan.need, plan.step, plan.steps, wait=wait)
        shards = out / "shards" / f"{plan.key}-{records.fingerprint(sorted(self.engine.missing))}"
        if force:
            shutil.rmtree(shards, ignore_errors=True)

        def elsewhere() -> Record | None:
            """The record, where another process has made it meanwhile."""
            found = records.find(self.home(plan), plan.key)
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
        network = checkpoint.network(device)
        source = open_source(
            shop, plan.method, checkpoint, network, nfe=plan.nfe, seed=plan.seed,
            recipe=plan.recipe, streams=self.streams,
        )  # fmt: skip
        reference = self._reference()

        ranges = shard_ranges(self.samples, shop.common.shard)
        paths = [shards / f"{number:05d}.npz" for number in range(len(ranges))]
        counter = EvaluationCounter(network)
        sampled, seconds = 0, 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def make(number: int) -> None:
            nonlocal sampled, seconds
            shard, earlier = engine.shard(), counter.rows
            start, stop = ranges[number]
            for first, images, took in timed(source.batches(start, stop, self.batch_size), device):
                raw = engine.quantize(images)
                engine.update(shard, raw, first)
                sampled, seconds = sampled + len(raw), seconds + took
                self.on_samples(plan.title, first + len(raw), self.samples)
            shard.evaluations = counter.rows - earlier
            engine.save(shard, paths[number])

        locks = self.out / "locks" / shards.name
        share(paths, make, locks, lambda: elsewhere() is not None)
        counter.close()
        with claim(locks.with_name(f"{locks.name}.lock"), wait=True):
            if found := elsewhere():
                return found, sampled > 0
            merged = engine.merge(map(engine.load, paths))
            measured, evaluations = engine.measure(merged, reference), merged.evaluations / merged.count
            record = self._record(plan, checkpoint, measured, evaluations, sampled, seconds)
            comparing.write(self.home(plan), plan.key, measured.influences)
            self._preview(plan, source)
            records.write(self.home(plan), record)
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
        cost: dict[str, Any] = training_cost(shop, plan.need, checkpoint)
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
            notes=tuple(dict.fromkeys((*checkpoint.header.notes, *method.notes(plan.recipe), *plan.notes))),
        )

    def _preview(self, plan: Plan, source: Source) -> None:
        from cmbench.report.grid import write_preview

        count = min(PREVIEW, self.samples)
        images = self.engine.quantize(source.images(range(count))).cpu().numpy()
        write_preview(self.home(plan) / "previews" / f"{plan.key}.png", images.transpose(0, 2, 3, 1))


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


def training_cost(shop: Workshop, need: Need, made: "Checkpoint | None" = None) -> dict[str, Any]:
    """What led to a checkpoint (``made``, where it is not the one at the end), its parents and their pairs included.

    ``training_seconds`` is None where a parent is not there. Only what has pairs behind it has ``pair_seconds`` (a part
    of ``training_seconds``) and ``pair_evaluations``; a set counts once, and in full, in every method that uses it.
    """
    trained: dict[str, float | None] = {}
    sets: dict[str, Mapping[str, Any]] = {}
    open_needs = [need]
    while open_needs:
        one = open_needs.pop()
        checkpoint = made if made and one is need else shop.find(one)
        trained[one.key] = checkpoint.header.seconds if checkpoint else None
        if checkpoint and checkpoint.header.pairs:
            sets[checkpoint.header.pairs["key"]] = checkpoint.header.pairs
        open_needs += one.above
    pair_seconds = sum(pairs["seconds"] for pairs in sets.values())
    known = [seconds for seconds in trained.values() if seconds is not None]
    whole = len(known) == len(trained)
    cost: dict[str, Any] = {"training_seconds": round(sum(known) + pair_seconds, 1) if whole else None}
    if sets:
        evaluations = sum(pairs["evaluations"] for pairs in sets.values())
        cost |= {"pair_seconds": round(pair_seconds, 1), "pair_evaluations": evaluations}
    return cost
