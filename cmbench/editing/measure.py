"""Editing measured: real images, what each task gives of them, how near the results come. -> :mod:`editing.records`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from cmbench import environment, methods
from cmbench import records as run_records
from cmbench.consistency.editing import editing_levels
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.editing import records, tasks
from cmbench.editing.judge import Judge
from cmbench.editing.originals import Originals, choose_tasks, mean_image
from cmbench.editing.records import BASELINE, CONSISTENCY, DIFFUSION, TRUTH, Cell, Editing, Task
from cmbench.editing.tasks import ARMS, TITLES, Arm, Pixels, Problem, Solver, to_pixels
from cmbench.errors import UsageError
from cmbench.methods import Method, Model
from cmbench.report.grid import PER_ROW, write_preview
from cmbench.sampling.generate import EvaluationCounter

if TYPE_CHECKING:
    from cmbench.checkpoints import Checkpoint
    from cmbench.data import ImageData
    from cmbench.workshop import Need, Workshop

NFES = (1, 2, 5, 9, 17, 33, 65)
"""Evaluations at which every method is measured, where it can; all three baselines can do 5, 9, 17, 33, 65."""
IMAGES = 200
REVISION = 1  # raised when a change of the code changes results


def run_editing(
    workshop: "Workshop",
    *,
    chosen: Sequence[Method] = (),
    wanted: Sequence[str] = (),
    nfes: Sequence[int] = NFES,
    seeds: Sequence[int] = (0,),
    images: int = IMAGES,
    originals: "ImageData | None" = None,
    batch_size: int | None = None,
    download: bool = True,
    force: bool = False,
    on_images: Callable[[str, int, int], None] = lambda _title, _done, _total: None,
) -> Editing:
    """Measure editing and store it under ``workshop.out``, cell by cell; what is finished is not computed again.

    Args:
        workshop: data set, recipes, where checkpoints come from; missing ones are trained.
        chosen: methods with a consistency function; CD where none is named.
        wanted: names of tasks; see :func:`choose_tasks`.
        nfes: numbers of evaluations.
        seeds: of training and of noise. The images are the same for all.
        images: how many.
        originals: images to edit; by default a choice of the data set's own.
        batch_size: images at a time; moves no result.
        download: whether the backbone of LPIPS may be fetched.
        force: measure again what is stored.
        on_images: called with (title, images done, in all).

    Raises:
        UsageError: a method without a consistency function, a wrong task, or stored results of other images.
        WorkError: a training diverged, a damaged file.
    """
    methods_ = tuple(chosen) or (methods.get("cd"),)
    for method in methods_:
        tasks.check_able(method)
    source = workshop.images if originals is None else originals
    if source.shape != workshop.images.shape:
        raise UsageError(
            f"--originals: images of shape {source.shape}, {workshop.images.name} has {workshop.images.shape}"
        )
    of = Originals(source, images)
    names = choose_tasks(wanted, source.shape[0])
    makers = _Makers(workshop, of)
    needs = [makers.need(method, seed) for method in methods_ for seed in seeds]
    workshop.check_given([*needs, makers.teacher_need])
    size = batch_size or workshop.common.batch_size
    judge = Judge(workshop, of, download, lambda done, total: on_images("reference features", done, total))
    made = _begin(workshop, of, force)
    made = replace(made, tasks=_tasks(workshop.out, made, of, names, seeds[0]))
    before = made.cells if not force else ()
    for one in list(makers.cells(methods_, names, dict.fromkeys(nfes), dict.fromkeys(seeds))):
        found = next((cell for cell in before if cell.key == one.key), None)
        if found and not judge.gained(found, made):
            continue
        cell = _measure(one, makers, judge, size, on_images)
        # also replaces what a former state of the method, its checkpoint or the settings has left
        cells = [*(old for old in made.cells if old.place != cell.place), cell]
        made = replace(
            made,
            cells=tuple(sorted(cells, key=lambda cell: _ORDER[cell.kind])),
            titles=judge.titles,
            missing=judge.missing,
            environment=environment.describe(workshop.device),
        )
        records.write(workshop.out, made)
    return made


def _begin(workshop: "Workshop", of: Originals, force: bool) -> Editing:
    """The stored results, or empty ones. Raises UsageError where those are of other images."""
    if of.source is workshop.images:
        words = f"{of.count} of the {len(workshop.images):,} training images"
    else:
        words = f"{of.count} of {len(of.source):,} images of {of.source.title}"
    identity = run_records.fingerprint(
        {"dataset": workshop.images.fingerprint, "originals": of.source.fingerprint, "images": of.count}
    )
    stored = records.read(workshop.out, workshop.images.name)
    if stored and stored.identity == identity:
        return stored
    if stored and not force:
        raise UsageError(
            f"{records.path(workshop.out, workshop.images.name)} was measured on {stored.originals}, this would be on "
            f"{words}: the same --images and --originals, another --out, or --force to begin anew"
        )
    return Editing(workshop.images.name, workshop.images.title, of.count, words, identity)


def _tasks(out: Path, made: Editing, of: Originals, names: Sequence[str], seed: int) -> tuple[Task, ...]:
    """The tasks of the results and these, with the pictures of what they give."""
    folder = records.pictures(out, made.dataset)
    known = {task.name: task for task in made.tasks}
    for name in names:
        shown = {"input": to_pixels(of.problem(name, seed).shown), "truth": of.pixels}
        for kind, images in shown.items():
            _picture(folder / f"{name}-{kind}.png", images)
        paths = {kind: f"{folder.name}/{name}-{kind}.png" for kind in shown}
        known[name] = Task(name, TITLES[name], of.setting.words(name), **paths)
    return tuple(known.values())


# --- who edits ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """What edits, the network whose evaluations are counted, and the labels [N] that it is conditioned on."""

    solver: Solver
    network: torch.nn.Module | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class _Wanted:
    """A cell to be made: ``prepare`` gives what makes its images."""

    task: str
    kind: str
    method: str
    label: str
    nfe: int
    seed: int
    identity: Mapping[str, Any]
    prepare: Callable[[], _Maker] = field(repr=False)

    @property
    def key(self) -> str:
        """Fingerprint of all that determines it, the images left out."""
        named = {"task": self.task, "method": self.method, "nfe": self.nfe, "seed": self.seed}
        return run_records.fingerprint({"kind": "editing", "revision": REVISION, **named, **self.identity})

    @property
    def title(self) -> str:
        """For progress bars."""
        return f"{TITLES[self.task]}: {self.label}" + (
            f", NFE {self.nfe}, seed {self.seed}" if self.nfe else ""
        )


@dataclass(frozen=True)
class _Makers:
    """All who edit: methods with a consistency function, diffusion, and what needs no network."""

    workshop: "Workshop"
    of: Originals

    def need(self, method: Method, seed: int) -> "Need":
        """The method's checkpoint."""
        return self.workshop.need(method, 1, seed)

    @cached_property
    def teacher_need(self) -> "Need":
        """The network of the baselines."""
        return self.workshop.need(methods.get("edm"), 1, 0)

    @cached_property
    def teacher(self) -> "tuple[Checkpoint, torch.nn.Module]":
        """Its checkpoint and network."""
        checkpoint = self.workshop.ensure(self.teacher_need)
        return checkpoint, checkpoint.network(self.workshop.device)

    def cells(
        self, chosen: Sequence[Method], names: Sequence[str], nfes: Iterable[int], seeds: Iterable[int]
    ) -> Iterator[_Wanted]:
        """All cells, in order."""
        first, *_ = seeds
        for task in names:
            yield from self.without_network(task, seeds if task == "denoise" else (first,))
            yield self._still(task, TRUTH, "truth", "the originals", first, lambda _: self.of.truth)
            for method in chosen:
                yield from (self._consistent(task, method, nfe, seed) for nfe in nfes for seed in seeds)
            for arm in ARMS:
                able = [nfe for nfe in nfes if arm.can(task, nfe)]
                yield from (self._diffused(task, arm, nfe, seed) for nfe in able for seed in seeds)

    def without_network(self, task: str, seeds: Iterable[int]) -> Iterator[_Wanted]:
        """What is there without any model."""
        for seed in seeds:
            yield self._still(task, BASELINE, "input", _INPUT[task], seed, lambda problem: problem.shown)
            if task == "inpaint":
                yield self._still(task, BASELINE, "mean", "mean of the data", seed, self._fill)
            if task == "superres":
                yield self._still(task, BASELINE, "bicubic", "bicubic", seed, self._bicubic)

    def _still(
        self, task: str, kind: str, name: str, label: str, seed: int, make: Callable[[Problem], Tensor]
    ) -> _Wanted:
        maker = _Maker(lambda problem, _rng, _labels: make(problem))
        return _Wanted(task, kind, name, label, 0, seed, self._identity(task), lambda: maker)

    def _identity(self, task: str, **more: Any) -> dict[str, Any]:
        return {"setting": self.of.setting.words(task), **more}

    def _fill(self, problem: Problem) -> Tensor:
        known = problem.given.forward(problem.y)
        return problem.given.finish(known, mean_image(self.workshop.images).expand_as(problem.y))

    def _bicubic(self, problem: Problem) -> Tensor:
        small = functional.avg_pool2d(problem.y, self.of.setting.factor)
        return functional.interpolate(small, problem.y.shape[-2:], mode="bicubic").clamp(-1, 1)

    def _consistent(self, task: str, method: Method, nfe: int, seed: int) -> _Wanted:
        shop, need = self.workshop, self.need(method, seed)

        def prepare() -> _Maker:
            checkpoint = shop.ensure(need)
            network = checkpoint.network(shop.device)
            recipe = tasks.trained_recipe(method, checkpoint)
            model = tasks.consistency_model(method, recipe, Model(network, checkpoint.header.noise))
            sigmas = editing_levels(model, nfe, self.of.problem(task, seed).high)
            return _Maker(
                lambda problem, rng, labels: tasks.solve(model, problem, sigmas, rng, labels),
                network,
                self.of.labels(checkpoint.header.classes, seed),
            )

        identity = self._identity(task, method_revision=method.revision, checkpoint=shop.identity(need))
        return _Wanted(task, CONSISTENCY, method.name, method.label, nfe, seed, identity, prepare)

    def _diffused(self, task: str, arm: Arm, nfe: int, seed: int) -> _Wanted:
        def prepare() -> _Maker:
            checkpoint, network = self.teacher
            noise = checkpoint.header.noise
            denoise = Denoiser(network, noise.sigma_data)
            return _Maker(
                lambda problem, rng, labels: arm.solve(denoise, noise, problem, nfe, rng, labels),
                network,
                self.of.labels(checkpoint.header.classes, seed),
            )

        identity = self._identity(task, checkpoint=self.workshop.identity(self.teacher_need))
        return _Wanted(task, DIFFUSION, arm.name, arm.label, nfe, seed, identity, prepare)


_ORDER = {BASELINE: 0, CONSISTENCY: 1, DIFFUSION: 2, TRUTH: 3}
_INPUT = {
    "inpaint": "grey in the hole",
    "superres": "block means",
    "colorize": "luma alone",
    "stroke": "the painting",
    "denoise": "the noisy image",
}


def _measure(
    one: _Wanted, makers: _Makers, judge: Judge, size: int, on_images: Callable[[str, int, int], None]
) -> Cell:
    shop, of = makers.workshop, makers.of
    problem, maker = of.problem(one.task, one.seed), one.prepare()
    counter = EvaluationCounter(maker.network) if maker.network is not None else None
    started = time.perf_counter()
    made = tasks.in_batches(
        maker.solver, problem, one.seed, range(of.count), maker.labels,
        size if counter else of.count, shop.device if counter else torch.device("cpu"),
        lambda done, total: on_images(one.title, done, total),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    evaluations = counter.rows / of.count if counter else 0.0
    if counter:
        counter.close()
    pixels = to_pixels(made)
    folder = records.pictures(shop.out, shop.images.name)
    name = f"{one.task}-{one.method}" + (f"-nfe{one.nfe}-seed{one.seed}" if one.nfe else "")
    _picture(folder / f"{name}.png", pixels)
    return Cell(
        key=one.key,
        task=one.task,
        kind=one.kind,
        method=one.method,
        label=one.label,
        nfe=one.nfe,
        evaluations=evaluations,
        seed=one.seed,
        seconds=round(seconds, 4),
        metrics=judge.metrics(problem, pixels, truth=one.kind == TRUTH),
        picture=f"{folder.name}/{name}.png",
    )


def _picture(path: Path, pixels: Pixels) -> None:
    """The first eight images in a row."""
    write_preview(path, pixels[:PER_ROW].transpose(0, 2, 3, 1))
