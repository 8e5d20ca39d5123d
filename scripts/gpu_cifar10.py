"""CIFAR-10 on one GPU, from the data to records and small checkpoints, in calls of so many minutes (docs/gpu.md).

    python scripts/gpu_cifar10.py --data DIR --minutes 9.5

Trains the EDM teacher, CD, ECT, PD and CT, draws and measures the samples of each, and at the end of every call puts
what there is into OUT/collected: the records in one archive, one bf16 checkpoint for each network that samples.
Exit codes: 0 all is done; 75 the time is up, or Ctrl-C (the same command goes on where it stopped); 1 failed work, or a
call that did not let itself be interrupted (the same command goes on as well); 2 wrong use.
"""

import argparse
import faulthandler
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmbench import checkpoints, methods, records
from cmbench.errors import CmbenchError
from cmbench.paths import atomic
from cmbench.session import Options, open_sweep, open_workshop

if TYPE_CHECKING:  # torch is imported when the clock runs: that is part of a call
    from cmbench.benchmark import Plan, Sweep
    from cmbench.training.loop import Progress

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: no failure, try again
MEASURED = {"cd": (1, 2), "ect": (1, 2), "pd": (1, 2), "ct": (1, 2), "edm": (35,)}  # method -> NFE
RESERVE = 20.0  # seconds of a call that are kept for collecting; a tenth of a short one


def main(words: Sequence[str] | None = None) -> int:
    """Work until all is done or the time is up, then collect; the exit code."""
    given = options(words)
    seconds = 60 * given.minutes
    plans: list[Plan] = []
    sweep: Sweep | None = None
    faulthandler.dump_traceback_later(seconds, exit=True)  # should the interruption not get through
    try:
        with interrupted_after(seconds - min(RESERVE, seconds / 10)):
            chosen = Options(
                "cifar10", given.data, given.preset, given.settings, given.checkpoint, given.device, given.out,
                given.samples, download=False, begin=training,
            )  # fmt: skip
            sweep = open_sweep(chosen, open_workshop(chosen), on_samples=every(10, sampling))
            for name in given.methods:
                wanted = sweep.plans([methods.get(name)], MEASURED[name], [0])
                plans += [plan for plan in wanted if not isinstance(plan, str)]
            failures = [work(sweep, plan) for plan in plans]
            status = int(any(failures))
    except KeyboardInterrupt:
        status = AGAIN
    except CmbenchError as error:
        say(f"error: {error}")
        status = error.exit_code
    if sweep is not None:
        collect(sweep, plans, given.out / "collected")
        for plan in plans:
            say(standing(sweep, plan))
    ends = {0: "all done", AGAIN: "the time is up: the same command goes on"}
    say(ends.get(status, "not all could be done"))
    faulthandler.cancel_dump_traceback_later()
    return status


def options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, packed or not")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="results folder")
    parser.add_argument("--minutes", type=float, default=9.5, help="the most that this call may take")
    parser.add_argument("--methods", nargs="*", default=list(MEASURED), choices=MEASURED)
    parser.add_argument("--preset", default="gpu", help="of the recipes")
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="as in cmbench run")
    parser.add_argument("--samples", type=int, help="by default the preset's")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="collected on another machine")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt the block as Ctrl-C would, after so many seconds; every 5 again, should some code swallow it."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def work(sweep: "Sweep", plan: "Plan") -> bool:
    """Make one record, and what it needs; whether that failed."""
    from cmbench.benchmark import Failure

    for made in sweep.run_all([plan]):
        if isinstance(made, Failure):
            say(f"{plan.title} could not be made: {made.reason}")
            return True
    return False


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


def every(seconds: float, tell: Callable[..., None]) -> Callable[..., None]:
    """``tell``, called at most so often."""
    last = 0.0

    def limited(*news: object) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(*news)

    return limited


def sampling(title: str, done: int, total: int) -> None:
    """Progress of samples, or of reference features."""
    say(f"{title}: {done}/{total}")


def training(title: str) -> "Callable[[Progress], None]":
    """What receives the progress of a training."""
    return every(10, lambda now: say(f"train {title}: step {now.step}/{now.steps}, loss {now.loss or 0:.4g}"))


def standing(sweep: "Sweep", plan: "Plan") -> str:
    """What has been measured, or what is left to do for it."""
    from cmbench.training import state as states

    if found := records.find(sweep.home(plan), plan.key):
        figures = [f"{name} {one.value:.4g}" for name, one in found.metrics.items() if one.value is not None]
        return f"done: {plan.title}: {', '.join(figures)}; {found.samples} samples"
    left, need, shop = ["sample and measure"], plan.need, sweep.workshop
    while need is not None and shop.find(need) is None:
        step = states.step(shop.path(need).with_suffix(".state"))
        left.append(
            f"train {need.method.name} {need.variant}".strip() + (f" from step {step}" if step else "")
        )
        need = need.parent
    return f"left: {plan.title}: {', '.join(reversed(left))}"


def collect(sweep: "Sweep", plans: "Sequence[Plan]", folder: Path) -> None:
    """Put the records, and the networks that they are made with, into one folder to carry away."""
    folder.mkdir(parents=True, exist_ok=True)
    needs = {plan.need.key: plan.need for plan in plans}
    for checkpoint in filter(None, map(sweep.workshop.find, needs.values())):
        target = folder / checkpoint.path.name
        if not target.exists():
            checkpoints.save_rounded(checkpoint, target)
    with atomic(folder / "records.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name in ("runs", "samples", "previews"):
            if (sweep.out / name).is_dir():
                archive.add(sweep.out / name, name)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for what the compiler's processes may still be at
