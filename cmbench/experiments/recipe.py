"""Experiment files: TOML in, an experiment on one data set out. Imports no torch.

A file says what its arms are; ``[datasets.NAME]`` says what differs on a data set, and
``[datasets.NAME.presets.PRESET]`` what differs there with a preset. See docs/experiments.md.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from cmbench import recipes
from cmbench.errors import UsageError, unknown
from cmbench.experiments.manifest import Axis

PRESET = "quick"


@dataclass(frozen=True)
class Arm:
    """One curve, or one row.

    Attributes:
        name: short name, unique in its experiment.
        label: what figures print; ``{perceptual}`` stands for the name of the perceptual metric that is in use.
        method: registered name.
        settings: of this method, as ``--set METHOD.key=value``.
        nfe: evaluations, where they are not the experiment's.
        note: a remark that the manifest carries.
    """

    name: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    nfe: tuple[int, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class ArmChange:
    """What is different about an arm on a data set; ``settings`` are merged with the arm's."""

    label: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    nfe: tuple[int, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Change:
    """What a preset changes; what is empty stays as it was.

    Attributes:
        milestones: optimiser steps after which the network is measured (``x = "step"``).
        seeds: of training and sampling.
        nfe: evaluations, of the arms that name none.
        samples: that each record is measured on.
        settings: for all arms, nested as ``--set`` is dotted.
        only: the arms that are run, all where empty.
        arms: changes of arms, by name.
    """

    milestones: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    nfe: tuple[int, ...] = ()
    samples: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    arms: Mapping[str, ArmChange] = field(default_factory=dict)


@dataclass(frozen=True)
class OnDataset(Change):
    """What a data set changes. ``preset`` is the one that serves where the user names none."""

    preset: str = PRESET
    presets: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A whole experiment file.

    Without ``nfe``, networks along a training are sampled with one evaluation, and finished ones as is usual for their
    methods.
    """

    title: str
    x: Axis
    arms: tuple[Arm, ...]
    paper: str = ""
    metric: str = "fid"
    milestones: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    nfe: tuple[int, ...] = ()
    samples: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, OnDataset] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment on one data set with one preset, nothing left open."""

    name: str
    title: str
    paper: str
    x: Axis
    metric: str
    dataset: str
    preset: str
    arms: tuple[Arm, ...]
    milestones: tuple[int, ...]
    seeds: tuple[int, ...]
    nfe: tuple[int, ...]
    samples: int | None
    settings: Mapping[str, Any]


def names() -> list[str]:
    """The experiments that ship with the package."""
    return sorted(
        file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml")
    )


def _folder() -> Any:
    return files("cmbench") / "experiments"


def load(name: str) -> tuple[str, File]:
    """The short name and the content of an experiment: one of :func:`names`, or the path of a TOML file.

    Raises UsageError for an unknown name, a file that cannot be read, or one that makes no experiment.
    """
    own = name.endswith(".toml")
    if not own and name not in names():
        raise unknown("experiment", name, names())
    place = Path(name) if own else _folder() / f"{name}.toml"
    short = Path(name).stem
    try:
        data = tomllib.loads(place.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{place} is not a readable experiment: {error}") from error
    return short, parse(data, short)


def parse(data: Mapping[str, Any], where: str) -> File:
    """Check everything that can be checked without a data set. Raises UsageError that says what is wrong."""
    try:
        file = recipes.parse(File, data, where)
    except TypeError as error:  # a field without a default that is not there
        raise UsageError(f"{where}: {str(error).partition(' ')[2] or error}") from error
    known = [arm.name for arm in file.arms]
    if not known or len(set(known)) != len(known):
        raise UsageError(f"{where}: an experiment has arms, and their names differ from one another")
    changes: dict[str, Change] = {
        f"{where}.datasets.{name}": change for name, change in file.datasets.items()
    }
    for name, table in file.datasets.items():
        changes |= {f"{where}.datasets.{name}.presets.{p}": change for p, change in table.presets.items()}
    for place, change in changes.items():
        for arm in (*change.arms, *change.only):
            if arm not in known:
                raise unknown(f"arm in {place}", arm, known)
        _check_milestones(change.milestones, place)
    _check_milestones(file.milestones, where)
    return file


def _check_milestones(steps: tuple[int, ...], where: str) -> None:
    if any(step < 1 for step in steps) or any(a >= b for a, b in pairwise(steps)):
        raise UsageError(f"{where}.milestones: {list(steps)} must be positive and rise")


def on(name: str, file: File, dataset: str, preset: str | None = None) -> Experiment:
    """The experiment on a data set.

    Raises UsageError where it has no milestones there, which is how a data set is none of the experiment's.
    """
    table = file.datasets.get(dataset, OnDataset())
    chosen = preset or table.preset
    made = Experiment(
        name, file.title, file.paper, file.x, file.metric, dataset, chosen, file.arms,
        file.milestones, file.seeds, file.nfe, file.samples, file.settings,
    )  # fmt: skip
    for change in (table, table.presets.get(chosen, Change())):
        made = _changed(made, change)
    if made.x == "step" and not made.milestones:
        known = ", ".join(file.datasets) or "none"
        raise UsageError(
            f"{name} has no milestones for {dataset} (it knows: {known}); a file of your own may name them"
        )
    return replace(made, nfe=made.nfe or (1,)) if made.x == "step" else replace(made, milestones=())


def _changed(made: Experiment, change: Change) -> Experiment:
    arms = tuple(
        _changed_arm(arm, change.arms.get(arm.name, ArmChange()))
        for arm in made.arms
        if not change.only or arm.name in change.only
    )
    return replace(
        made,
        arms=arms,
        milestones=change.milestones or made.milestones,
        seeds=change.seeds or made.seeds,
        nfe=change.nfe or made.nfe,
        samples=change.samples or made.samples,
        settings=recipes.merge(made.settings, change.settings),
    )


def _changed_arm(arm: Arm, change: ArmChange) -> Arm:
    return replace(
        arm,
        label=change.label or arm.label,
        settings=recipes.merge(arm.settings, change.settings),
        nfe=change.nfe or arm.nfe,
        note=change.note or arm.note,
    )
