"""The smallest experiment that is still one, and ways to run it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_runs import options

from cmbench import records, session
from cmbench.experiments import engine, recipe
from cmbench.experiments.manifest import Manifest, Point

MILESTONES = (10, 25, 40)
CONSTANT = {"cd": {"fit": {"schedule": "constant"}}}


def arm(name: str, method: str = "cd", **settings: Any) -> dict[str, Any]:
    return {"name": name, "label": name.upper(), "method": method, "settings": settings}


def experiment(arms: Sequence[Mapping[str, Any]], **changes: Any) -> recipe.Experiment:
    """On the digits; by default over the milestones of a training of 40 steps."""
    content = {"title": "Tiny", "x": "step", "milestones": list(MILESTONES), "settings": CONSTANT}
    return recipe.on("tiny", recipe.parse({**content, "arms": arms, **changes}, "tiny"), "digits")


def prepare(
    out: Path,
    made: recipe.Experiment,
    seeds: Sequence[int] = (0,),
    tell: Callable[[str], None] = lambda _line: None,
    on_samples: Callable[[str, int, int], None] = lambda *_: None,
    **changes: Any,
) -> engine.Run:
    chosen = options(out, preset=made.preset, **changes)
    workshop = session.open_workshop(chosen, under=made.settings)
    sweep = session.open_sweep(chosen, workshop, on_samples=on_samples)
    return engine.Run(engine.resolved(made), sweep, tuple(seeds), tell)


def records_of(made: Manifest, out: Path) -> dict[tuple[str, Point], dict[str, Any]]:
    """Arm and point -> all of the record but its cost and its circumstances."""
    found = {(one.name, point): point.read(out).to_json() for one in made.arms for point in one.points}
    return {
        place: {k: v for k, v in record.items() if k not in ("cost", "environment")}
        for place, record in found.items()
    }


def stored(out: Path) -> set[str]:
    """The names of the records of milestones."""
    return {records.record_path(Path(), record).name for record in records.read(out / "experiments")}
