"""Running an experiment: every arm at every milestone or NFE and seed, resumable, together with other processes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cmbench import methods, recipes
from cmbench.benchmark import Outcome, Plan, Sweep
from cmbench.errors import UsageError, WorkError
from cmbench.experiments import manifest
from cmbench.experiments.manifest import Manifest
from cmbench.experiments.recipe import Arm, Experiment
from cmbench.sharing import Busy, claim

POLL = 1.0  # seconds between looks at what other processes have left


@dataclass(frozen=True)
class Unit:
    """An arm at one seed: the records that hang on one training."""

    arm: Arm
    sweep: Sweep
    plans: tuple[Plan, ...]

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.arm.name}, seed {self.plans[0].seed}"


@dataclass(frozen=True)
class Run:
    """An experiment over an open benchmark, whose settings are those of the experiment.

    Attributes:
        experiment: what to run; :func:`resolved`.
        sweep: the benchmark that all arms share: data set, teacher, reference, metrics.
        seeds: of training and sampling.
        tell: called with a line now and then.
    """

    experiment: Experiment
    sweep: Sweep
    seeds: tuple[int, ...]
    tell: Callable[[str], None] = field(default=lambda _line: None)
    _failed: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # training -> why: not tried for every point
    _failures: dict[str, list[str]] = field(default_factory=dict, repr=False)  # arm -> lines

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.sweep.workshop.out

    def units(self) -> list[Unit]:
        """Everything that is wanted, in order: all arms of the first seed, then of the next.

        Raises UsageError for an arm that makes no sense, before any work is done.
        """
        sweeps = {arm.name: self._sweep(arm) for arm in self.experiment.arms}
        made = []
        for seed in self.seeds:
            for arm in self.experiment.arms:
                if plans := self._plans(arm, sweeps[arm.name], seed):
                    made.append(Unit(arm, sweeps[arm.name], plans))
        if not made:
            raise UsageError(f"{self.experiment.name}: none of its arms can do what is asked for")
        return made

    def _sweep(self, arm: Arm) -> Sweep:
        shop = self.sweep.workshop
        settings = recipes.merge(shop.settings, {arm.method: arm.settings})
        shop = replace(shop, settings=settings)
        recipe = shop.recipe(methods.get(arm.method))
        steps = self.experiment.milestones
        fit = getattr(recipe, "fit", None)
        if steps and (fit is None or steps[-1] > fit.steps):
            has = f"a training of {fit.steps} steps" if fit else "no training"
            raise UsageError(f"{self.experiment.name}: milestone {steps[-1]}, but arm {arm.name} has {has}")
        return replace(self.sweep, workshop=shop)

    def _plans(self, arm: Arm, sweep: Sweep, seed: int) -> tuple[Plan, ...]:
        method, steps = methods.get(arm.method), self.experiment.milestones
        plans = []
        for nfe in arm.nfe or self.experiment.nfe or method.nfes:
            if reason := sweep.workshop.refusal(method, nfe):
                if seed == self.seeds[0]:
                    self.tell(f"{arm.name} at NFE {nfe} is left out: {reason}")
                continue
            wanted: tuple[int | None, ...] = steps or (None,)
            plans += [sweep.plan(method, nfe, seed, step, steps) for step in wanted]
        return tuple(plans)

    def run(self) -> Manifest:
        """Make what is missing; the manifest is written after every point.

        What another process is at is left for later, so that the same command, started once a core, shares the work.
        An arm that fails does not keep the others from being made; the manifest says why it failed.
        """
        units = self.units()
        self.sweep.workshop.check_given([plan.need for unit in units for plan in unit.plans])
        self.write(units)
        waiting: list[tuple[Unit, tuple[Plan, ...]]] = [(unit, unit.plans) for unit in units]
        while waiting:
            left = [(unit, self._advance(units, unit, plans)) for unit, plans in waiting]
            waiting, before = [(unit, plans) for unit, plans in left if plans], waiting
            if waiting == before:
                time.sleep(POLL)
        return self.write(units)

    def _advance(self, units: Sequence[Unit], unit: Unit, plans: tuple[Plan, ...]) -> tuple[Plan, ...]:
        """Make what can be made of a unit now; what another process is at is left over."""
        for place, plan in enumerate(plans):
            try:
                outcome = self._attempt(unit.sweep, plan)
            except Busy:
                return plans[place:]
            except WorkError as error:
                self._fail(unit, plan, str(error))
                continue
            if outcome.computed:
                self.write(units)
                metric = outcome.record.metrics.get(self.experiment.metric)
                value = "not computed" if metric is None or metric.value is None else f"{metric.value:.4g}"
                at = f"NFE {plan.nfe}" if plan.step is None else f"step {plan.step}"
                self.tell(f"{unit.title}, {at}: {self.experiment.metric} {value}")
        return ()

    def _attempt(self, sweep: Sweep, plan: Plan) -> Outcome:
        there = self._there(sweep, plan)
        if not there and plan.need.key in self._failed and not sweep.record_path(plan).exists():
            raise WorkError(self._failed[plan.need.key])
        try:
            return sweep.run(plan, wait=False)
        except Busy:
            raise
        except WorkError as error:
            if there:
                raise
            self._failed[plan.need.key] = str(error)
            if self._there(sweep, plan):  # it diverged, but after this point
                return sweep.run(plan, wait=False)
            raise

    @staticmethod
    def _there(sweep: Sweep, plan: Plan) -> bool:
        if plan.step is None:
            return sweep.workshop.find(plan.need) is not None
        return sweep.workshop.milestone_path(plan.need, plan.step).exists()

    def _fail(self, unit: Unit, plan: Plan, reason: str) -> None:
        lines = self._failures.setdefault(unit.arm.name, [])
        line = f"seed {plan.seed}: {reason}"
        if line not in lines:
            lines.append(line)
            self.tell(f"{unit.arm.name}, {line}")

    def write(self, units: Sequence[Unit]) -> Manifest:
        """Store the manifest of all that is there: by this process, by others, and of seeds that were run before."""
        trial = self.experiment
        with claim(self.out / "locks" / f"{trial.name}-{trial.dataset}.lock", wait=True):
            made = self._collect(units)
            manifest.write(self.out, made)
        return made

    def _collect(self, units: Sequence[Unit]) -> Manifest:
        trial = self.experiment
        setup = self._setup()
        before = manifest.read(self.out, trial.name, trial.dataset)
        kept = {arm.name: arm for arm in before.arms} if before and before.setup == setup else {}
        arms = []
        for arm in trial.arms:
            points = [
                manifest.Point(plan.step, plan.nfe, plan.seed, path.relative_to(self.out).as_posix())
                for unit in units
                if unit.arm is arm
                for plan in unit.plans
                if (path := unit.sweep.record_path(plan)).exists()
            ]
            earlier = kept.get(arm.name)
            if earlier and (earlier.method, earlier.settings) == (arm.method, arm.settings):
                points += [
                    p for p in earlier.points if p.seed not in self.seeds and (self.out / p.record).exists()
                ]
            points.sort(key=lambda p: (p.seed, p.nfe, p.step or 0))
            failures = tuple(self._failures.get(arm.name, ()))
            arms.append(
                manifest.Arm(arm.name, arm.label, arm.method, arm.settings, tuple(points), arm.note, failures)
            )
        return Manifest(
            trial.name, trial.title, trial.paper, trial.dataset, trial.x, trial.metric, tuple(arms), setup
        )

    def _setup(self) -> dict[str, Any]:
        """What all points have in common; points of another setup do not stand in one manifest."""
        shop = self.sweep.workshop
        return {
            "preset": shop.preset,
            "settings": recipes.merge({}, shop.settings),
            "samples": self.sweep.samples,
            "protocol": self.sweep.engine.protocol.name,
            "protocol_fingerprint": self.sweep.engine.protocol.fingerprint,
            "data": shop.images.fingerprint,
            "milestones": list(self.experiment.milestones),
        }


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with ``metric = "perceptual"`` as LPIPS, or as what takes its place where it cannot be had.

    LPIPS itself where its VGG16 weights are in torch's cache; else its formula on our own classifier of the data set,
    if there is one. ``{perceptual}`` in a label becomes the name of what is used.
    """
    return replace(experiment, arms=tuple(_resolved_arm(arm, experiment.dataset) for arm in experiment.arms))


def _resolved_arm(arm: Arm, dataset: str) -> Arm:
    from cmbench.metrics.perceptual import OWN

    metric = arm.settings.get("metric")
    if metric == "perceptual":
        metric = "lpips" if lpips_is_there() or dataset not in OWN else "features"
    if metric not in ("lpips", "features"):
        return arm
    title = "LPIPS" if metric == "lpips" else f"LPIPS formula, {OWN.get(dataset, 'own')} features"
    settings = {**arm.settings, "metric": metric}
    return replace(arm, label=arm.label.replace("{perceptual}", title), settings=settings)


def lpips_is_there() -> bool:
    """Whether the weights of LPIPS's backbone are in torch's cache."""
    from cmbench.consistency.distance import VGG16

    return (Path(torch.hub.get_dir()) / "checkpoints" / VGG16).is_file()
