"""The smallest benchmark that is still one: seconds on a CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbench import methods, session
from cmbench.benchmark import Outcome, Plan, Sweep
from cmbench.workshop import Workshop

FLOWS = ("rf1", "rf2", "rf3", "rf1-distill", "rf2-distill", "rf3-distill")
SETTINGS = (
    "network.width=16",
    "network.blocks=1",
    "network.embedding=16",
    "shard=40",
    *(
        f"{method}.fit.{key}={value}"
        for method in ("edm", "cd", "ct", "pd", "kd", "dfno", *FLOWS)
        for key, value in (("steps", 40), ("batch_size", 16), ("checkpoint_every", 10))
    ),
    "edm.fit.warmup_steps=0",
    "rf1.fit.warmup_steps=0",
    "pd.start=4",
    *(f"{method}.pairs={{count=60, points=4, keep=2}}" for method in ("kd", "dfno")),
    "dfno.modes=2",
    *(f"{method}.pairs={{count=60, steps=2}}" for method in FLOWS if method != "rf1"),
)
SMALL = ("--set", *SETTINGS, "--device", "cpu", "--offline")
"""The same for a command line."""
SAMPLES = 100


def options(out: Path, *extra: str, **changes: Any) -> session.Options:
    """``extra`` are further ``--set`` values."""
    given: dict[str, Any] = {"out": out, "samples": SAMPLES, "device": "cpu", "download": False}
    return session.Options(settings=(*SETTINGS, *extra), **{**given, **changes})


def shop(out: Path, *extra: str, **changes: Any) -> Workshop:
    return session.open_workshop(options(out, *extra, **changes))


def sweep(out: Path, *extra: str, on_samples=lambda *_: None, **changes: Any) -> Sweep:
    chosen = options(out, *extra, **changes)
    return session.open_sweep(chosen, session.open_workshop(chosen), on_samples=on_samples)


def run(
    made: Sweep,
    names: Sequence[str],
    nfes: Sequence[int] = (1,),
    seeds: Sequence[int] = (0,),
    force: bool = False,
) -> list[Outcome]:
    plans = list(made.plans([methods.get(name) for name in names], nfes, seeds))
    return [made.run(plan, force=force) for plan in plans if isinstance(plan, Plan)]


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder and when it was last written."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()
    }
