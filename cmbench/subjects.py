"""What `cmbench examine` looks at: samples of a method at one NFE and seed, or samples made elsewhere."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmbench import records
from cmbench.errors import UsageError, WorkError
from cmbench.methods import Method
from cmbench.metrics.endpoint import POINTS, end_point, root_mean_square
from cmbench.metrics.quantize import quantize
from cmbench.paths import atomic
from cmbench.sampling.generate import EvaluationCounter, Source, open_source, shard_ranges
from cmbench.scoring import System
from cmbench.workshop import Need, Workshop

if TYPE_CHECKING:
    from cmbench.data import ImageData

Progress = Callable[[str, int, int], None]
CHECKED = 64  # samples on which the accuracy of the end points is measured


@dataclass(frozen=True)
class Samples:
    """Samples 0 .. N - 1: as a viewer sees them, and as the sampler left them.

    Attributes:
        images: uint8 [N, C, H, W].
        floats: float32 [N, C, H, W] in [-1, 1]; None for samples made elsewhere.
        evaluations: of the network, for a sample.
        checkpoint: SHA-256 of the network's file.
        notes: remarks of the checkpoint and the method.
    """

    images: NDArray[np.uint8]
    floats: NDArray[np.float32] | None = None
    evaluations: float = 0.0
    checkpoint: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ends:
    """The teacher's end points float32 [N, C, H, W], and how far twice as fine a grid moves them (RMS, mean)."""

    images: NDArray[np.float32]
    accuracy: float


@dataclass(frozen=True)
class Subject:
    """One row of the result.

    Attributes:
        of: who made the samples.
        identity: what determines them, and the other networks that they are compared with.
        samples: makes them.
        drift_from: the NFE that drift starts at; None where there is no other NFE to compare with.
        base: makes the samples of that NFE.
        ends: the teacher's end points, of the same noise; or why there are none.
    """

    of: System
    identity: Mapping[str, Any]
    samples: Callable[[], Samples]
    drift_from: int | None = None
    base: Callable[[], Samples] | None = None
    ends: Callable[[], Ends] | str = ""

    @property
    def title(self) -> str:
        """For progress bars and messages."""
        return f"{self.of.label}, NFE {self.of.nfe}, seed {self.of.seed}"


def stored(of: System, images: "ImageData", count: int, known: "ImageData") -> Subject:
    """Samples made elsewhere, the first ``count`` of ``images``, which imitate ``known``.

    Raises UsageError where there are fewer, or where they are of another size.
    """
    if images.shape[1:] != known.shape[1:]:
        own, wanted = (" × ".join(map(str, data.shape[1:])) for data in (images, known))
        raise UsageError(f"{images.title} holds {own} images and {known.title} is {wanted}")
    if not 4 <= count <= len(images):
        raise UsageError(
            f"{count} samples cannot be examined: {images.title} holds {len(images)}, and 4 are needed"
        )
    return Subject(
        of,
        {"method": of.method, "nfe": of.nfe, "seed": of.seed, "content": images.fingerprint},
        lambda: Samples(images.read(np.arange(count)), notes=(f"read from {images.title}",)),
        ends="these samples come without the noise that they were made from",
    )


@dataclass(frozen=True)
class Runs:
    """The subjects that methods make.

    Attributes:
        workshop: where checkpoints come from.
        count: samples a subject.
        batch_size: samples at a time; moves no result.
        quantizer: of the protocol.
        ends_folder: where the teacher's end points are kept.
        on_samples: called with (title, samples done, samples in all).
    """

    workshop: Workshop
    count: int
    batch_size: int
    quantizer: str
    ends_folder: Path
    on_samples: Progress = field(default=lambda _title, _done, _total: None)
    _bases: dict[tuple[str, int, int], Samples] = field(default_factory=dict, repr=False)

    def subjects(
        self, chosen: Sequence[Method], nfes: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Subject | str]:
        """Every combination, in order: a subject, or a line that says why a method cannot do an NFE."""
        for method in chosen:
            able = []
            for nfe in nfes:
                if reason := self.workshop.refusal(method, nfe):
                    yield f"{method.name} at NFE {nfe} is left out: {reason}"
                else:
                    able.append(nfe)
            for nfe in able:
                for seed in seeds:
                    yield self._subject(method, nfe, seed, min(able))

    def needs(self, chosen: Sequence[Method], nfes: Sequence[int], seeds: Sequence[int]) -> list[Need]:
        """All networks that :meth:`subjects` use, teachers included."""
        made = []
        for method in chosen:
            able = [nfe for nfe in nfes if self.workshop.refusal(method, nfe) is None]
            for nfe in able:
                for seed in seeds:
                    need = self.workshop.need(method, nfe, seed)
                    made += [need, _root(need)]
        return made

    def _subject(self, method: Method, nfe: int, seed: int, first: int) -> Subject:
        from cmbench.recipes import differences

        shop = self.workshop
        need = shop.need(method, nfe, seed)
        networks = {"own": need}
        teacher = _root(need)
        recipe = shop.recipe(method)
        ends: Callable[[], Ends] | str = f"{method.label} has no teacher"
        if method.parent(method.variant(nfe, recipe), recipe) is not None:
            ends = f"the teacher of {method.label} is not a denoiser, whose ODE could be followed"
            if teacher.method.denoiser:
                networks["teacher"] = teacher
                ends = lambda: self._ends(teacher, seed)  # noqa: E731
        drifts = nfe != first
        if drifts:
            networks["drift"] = shop.need(method, first, seed)
        identity = {
            "method": method.name,
            "revision": method.revision,
            "recipe": differences(recipe),
            "preset": shop.preset,
            "nfe": nfe,
            "seed": seed,
            "training": records.fingerprint([shop.lineage(one) for one in networks.values()]),
            "checkpoint": {name: shop.identity(one) for name, one in networks.items()},
        }
        if shop.common.guided.active:
            identity["guidance"] = differences(shop.common.guided)
        of = System(method.name, method.label, method.group, method.reference, nfe, seed)
        return Subject(
            of,
            identity,
            samples=lambda: self._samples(method, nfe, seed, keep=nfe == first),
            drift_from=first if drifts else None,
            base=(lambda: self._samples(method, first, seed, keep=True)) if drifts else None,
            ends=ends,
        )

    def _samples(self, method: Method, nfe: int, seed: int, keep: bool) -> Samples:
        key = (method.name, nfe, seed)
        if key in self._bases:
            return self._bases[key]
        shop = self.workshop
        checkpoint = shop.ensure(shop.need(method, nfe, seed))
        head, network = checkpoint.header, checkpoint.network(shop.device)
        source = open_source(shop, method, checkpoint, network, nfe=nfe, seed=seed)
        counter = EvaluationCounter(network)
        floats = np.empty((self.count, *head.shape), np.float32)
        images = np.empty((self.count, *head.shape), np.uint8)
        for first, batch in source.batches(0, self.count, self.batch_size):
            part = slice(first, first + len(batch))
            floats[part] = batch.cpu().numpy()
            images[part] = quantize(batch, self.quantizer).cpu().numpy()
            self.on_samples(f"{method.label}, NFE {nfe}, seed {seed}", part.stop, self.count)
        counter.close()
        notes = (*head.notes, *method.notes(shop.recipe(method)))
        made = Samples(images, floats, counter.rows / self.count, checkpoint.sha256, notes)
        if keep:
            self._bases[key] = made
        return made

    def _ends(self, teacher: Need, seed: int) -> Ends:
        """The end points of samples 0 .. count - 1, kept in parts that any later call goes on from.

        Raises WorkError where the teacher's network is not there: one is not trained for this.
        """
        from cmbench.diffusion.preconditioning import Denoiser

        shop = self.workshop
        checkpoint = shop.find(teacher)
        if checkpoint is None:
            raise WorkError(
                f"the teacher's network is not here: give it with --checkpoint, or `cmbench train --method "
                f"{teacher.method.name}`"
            )
        head = checkpoint.header
        denoise = Denoiser(checkpoint.network(shop.device), head.noise.sigma_data)

        def solved(points: int) -> Source:
            return Source(
                lambda noise, labels, _rng: end_point(denoise, noise, labels, head.noise, points),
                head.shape, head.classes, seed, shop.device,
            )  # fmt: skip

        key = records.fingerprint({"network": checkpoint.sha256, "seed": seed, "points": POINTS})
        folder, parts = self.ends_folder / key, []
        for start, stop in shard_ranges(self.count, shop.common.shard):
            path = folder / f"{start:08d}-{stop:08d}.npy"
            if not path.exists():
                made = []
                for first, batch in solved(POINTS).batches(start, stop, self.batch_size):
                    made.append(batch.cpu().numpy())
                    self.on_samples(
                        f"ODE of {teacher.method.label}, seed {seed}", first + len(batch), self.count
                    )
                with atomic(path) as temporary, temporary.open("wb") as file:
                    np.save(file, np.concatenate(made))
            parts.append(np.load(path, allow_pickle=False))
        place = folder / "accuracy.json"
        if not place.exists():
            coarse, fine = (
                solved(points).images(range(CHECKED)).cpu().numpy() for points in (POINTS, 2 * POINTS)
            )
            with atomic(place) as temporary:
                temporary.write_text(json.dumps(float(root_mean_square(coarse, fine).mean())))
        return Ends(np.concatenate(parts), float(json.loads(place.read_text())))


def _root(need: Need) -> Need:
    """The network at the beginning of a chain of distillations."""
    return need if need.parent is None else _root(need.parent)
