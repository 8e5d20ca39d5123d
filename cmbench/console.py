"""What a person sees: progress on stderr, results on stdout, errors as one line."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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
    from cmbench.records import Record
    from cmbench.report.layout import Table
    from cmbench.training.loop import Progress as TrainingProgress

T = TypeVar("T", bound=Sized)

out = Console()
err = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """A remark, on stderr."""
    err.print(line, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """An error, on one line of stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def show_tables(made: "Sequence[Table]", format: str = "rich", *, standalone: bool = False) -> None:
    """Tables on stdout, in one of the formats of :mod:`cmbench.report.render`."""
    from cmbench.report.render import render

    shown = render(made, format, standalone=standalone)
    if isinstance(shown, str):
        print(shown, end="")
    else:
        out.print(shown)


def show_records(
    found: "Sequence[Record]", as_json: bool = False, columns: "Sequence[str] | None" = None
) -> None:
    """What a command has measured: one table a data set (with these metrics, if named), or the records as JSON."""
    if as_json:
        print(json.dumps([record.to_json() for record in found], indent=1))
        return
    from cmbench.report import tables

    names = dict.fromkeys(record.dataset for record in found)
    show_tables([tables.build(found, dataset=name, published=(), columns=columns) for name in names])


def show_json(data: Any) -> None:
    """Data for a script, on stdout."""
    print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))


def show_rows(heads: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    """A plain table on stdout; a column without any text is left out."""
    from rich.table import Table as Grid

    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for place in kept:
        grid.add_column(heads[place], overflow="fold", no_wrap=place == 0)
    for row in rows:
        grid.add_row(*(Text(row[place]) for place in kept))
    out.print(grid)


def show_facts(facts: "Mapping[str, Any]", indent: str = "") -> None:
    """Named facts, one a line; facts of facts are indented."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            out.print(f"{indent}{name}:", markup=False, highlight=False)
            show_facts(value, indent + "  ")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            show_facts({f"{name} {place}": item for place, item in enumerate(value, 1)}, indent)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            out.print(
                f"{indent}{name}: {'-' if shown is None or shown == '' else shown}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


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

    def counted(
        self, title: str, batches: "Iterable[tuple[int, T]]", total: int
    ) -> "Iterator[tuple[int, T]]":
        """The batches ``(first index, items)`` as they are, shown as they pass."""
        for first, batch in batches:
            yield first, batch
            self.advance(title, first + len(batch), total)

    def training(self, title: str) -> "Callable[[TrainingProgress], None]":
        """What receives the progress of a training."""

        def receive(p: "TrainingProgress") -> None:
            if p.loss is None:
                self.advance(f"make {title}", p.step, p.steps)
            else:
                self.advance(f"train {title}", p.step, p.steps, f"loss {p.loss:.4g}")

        return receive


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars for the length of a block."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield Bars(progress)
