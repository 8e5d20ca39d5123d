"""What a person sees: progress on stderr, results on stdout, errors as one line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from cmbench.training.loop import Progress as TrainingProgress

out = Console()
err = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """A remark, on stderr."""
    err.print(line, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """An error, on one line of stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


class RateColumn(ProgressColumn):
    """Steps or samples a second."""

    def render(self, task: Task) -> Text:
        """The rate over the last seconds, or nothing before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class Bars:
    """Progress bars with rate and time left; where stderr is no terminal, a line now and then."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def advance(self, title: str, done: int, total: int, detail: str = "") -> None:
        """Show that ``done`` of ``total`` steps of a task are finished."""
        if title not in self._tasks:
            # The work may begin where an earlier run stopped: rate and time left count from here.
            task = self._progress.add_task(title, total=total, completed=done, detail=detail)
            self._tasks[title] = (task, 0.0)
        task, reported = self._tasks[title]
        self._progress.update(task, completed=done, detail=detail)
        if not err.is_terminal and (done >= total or done / total >= reported + 0.25) and reported < 1:
            self._tasks[title] = (task, done / total)
            say(f"{title}: {done}/{total}  {detail}".rstrip())

    def training(self, title: str) -> "Callable[[TrainingProgress], None]":
        """What receives the progress of a training."""
        return lambda p: self.advance(f"train {title}", p.step, p.steps, f"loss {p.loss:.4g}")


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars for the length of a block."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield Bars(progress)
