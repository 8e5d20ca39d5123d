"""Tables in a terminal, made for the width at hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.report.layout import MARKS, Cell, Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

_RAISED = dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))
_WIDE = 100


@dataclass(frozen=True)
class Terminal:
    """A rich renderable. Published rows beside measured ones are dim and in italics.

    Methods are followed by their references from 100 columns on; where a table is wider than the terminal,
    standard deviations move below their means.
    """

    tables: Sequence[Table]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from rich.measure import Measurement
        from rich.text import Text

        for place, table in enumerate(self.tables):
            if place:
                yield ""
            grid = _grid(table, references=options.max_width >= _WIDE)
            unbounded = options.update(max_width=10_000)
            if Measurement.get(console, unbounded, grid).maximum > options.max_width:
                grid = _grid(table, references=False, compact=True)
            yield Text(table.title, style="bold")
            yield grid
            for note in table.footnotes:
                yield Text(f"{_raised(note.mark)} {note.text}" if note.mark else note.text, style="dim")


def _grid(table: Table, *, references: bool, compact: bool = False) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    letters = table.letters
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    method, *figures = table.headers[: 2 + len(table.columns)]
    words = [len(word) for _, row in table.rows() for word in row.method.text.split()]
    grid.add_column(Text(method), min_width=max(words, default=0) + 1, overflow="fold")
    for header in figures:
        grid.add_column(Text(header), justify="right", overflow="fold")
    if table.origins:
        grid.add_column(Text(table.origins), min_width=len(table.origins), overflow="fold")
    for group in table.groups:
        grid.add_section()
        grid.add_row(Text(group.title, style="bold"))
        for row in group.rows:
            name = _text(row.method, letters)
            name.append(MARKS[row.mark][0] if row.mark else "")
            if references and row.reference:
                name.append(f" ({row.reference})", style="dim")
            cells = [_text(cell, letters, compact) for cell in (row.nfe, *row.cells)]
            if table.origins:
                origin = table.origin(row)
                cells.append(Text(origin.replace(", ", "\n") if compact else origin))
            style = "dim italic" if table.measured and row.source == "published" else ""
            grid.add_row(name, *cells, style=style)
    return grid


def _text(cell: Cell, letters: dict[str, str], compact: bool = False) -> "Text":
    from rich.text import Text

    shown = cell.text.replace(" ±", "\n±") if compact else cell.text
    text = Text(shown, style="bold" if cell.bold else "")
    for note in cell.notes:
        text.append(_raised(letters[note]))
    return text


def _raised(mark: str) -> str:
    return "".join(_RAISED.get(letter, letter) for letter in mark)
