"""What a table is, before it has a format: columns, groups of rows, cells, footnotes."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, log10
from typing import Literal

Better = Literal["lower", "higher"]
Source = Literal["measured", "published"]

MISSING = "–"

MARKS = {
    "synthetic-data": ("*", "builds a synthetic data set for distillation"),
    "distillation": ("†", "distillation technique"),
}
"""The paper's marks on methods: name in the CSV files -> symbol and meaning."""


@dataclass(frozen=True)
class MetricStyle:
    """How a metric prints: its default title, which direction is better, its least number of decimals."""

    title: str
    better: Better
    decimals: int


METRICS = {
    "fid": MetricStyle("FID", "lower", 2),
    "is": MetricStyle("IS", "higher", 2),
    "precision": MetricStyle("Prec.", "higher", 3),
    "recall": MetricStyle("Rec.", "higher", 3),
    "sfid": MetricStyle("sFID", "lower", 2),
    "kid": MetricStyle("KID", "lower", 5),
    "density": MetricStyle("Density", "higher", 3),
    "coverage": MetricStyle("Coverage", "higher", 3),
}
"""The metrics whose names and directions are known; any other prints under its own name, never in bold."""


@dataclass(frozen=True)
class Column:
    """A metric's column. Figures of one metric whose titles differ (other features) are different columns.

    ``key`` names the column in CSV and JSON: the metric's name, or for other than the default title the
    title in lower case with underscores (``FD (digits-cnn)`` -> ``fd_digits_cnn``). ``derived`` columns are made
    from others, as a difference is, and have no standard deviation in CSV.
    """

    metric: str
    title: str
    key: str
    better: Better | None
    derived: bool = False

    @property
    def header(self) -> str:
        """The title with its arrow."""
        return self.title + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]


@dataclass(frozen=True)
class Cell:
    """One cell: the printed text, the figure behind it, and the footnotes that it carries.

    ``reason`` says why a figure, or that of some seeds, was not computed. ``std`` is the standard
    deviation over ``n`` seeds (ddof 1), None with a single seed.
    """

    text: str = ""
    value: float | None = None
    std: float | None = None
    n: int = 0
    bold: bool = False
    notes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """A method at one NFE. ``mark`` is the paper's mark on it, a key of :data:`MARKS` or empty.

    ``cells`` follow the table's columns; ``method`` carries the row's footnotes. The fields after ``cells``
    are empty for published rows. ``keys`` names the records behind a measured one, by ascending seed.
    """

    dataset: str
    method: Cell
    reference: str
    mark: str
    source: Source
    nfe: Cell
    cells: tuple[Cell, ...]
    nfe_asked: int | None = None
    seeds: tuple[int, ...] = ()
    samples: int | None = None
    protocol: str = ""
    fingerprint: str = ""
    keys: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """``published``, ``measured``, or with several seeds ``measured, n=3``."""
        return f"{self.source}, n={len(self.seeds)}" if len(self.seeds) > 1 else self.source


@dataclass(frozen=True)
class Group:
    """Rows under one section title."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Footnote:
    """A line under the table. ``mark`` is a letter, the paper's ``*`` or ``†``, or empty for a remark."""

    mark: str
    text: str


@dataclass(frozen=True)
class Table:
    """A finished table, still without a format. ``remarks`` are lines under it that no cell refers to."""

    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    remarks: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Every row with the title of its group, from top to bottom."""
        for group in self.groups:
            for row in group.rows:
                yield group.title, row

    @property
    def headers(self) -> list[str]:
        """The column headers as people read them; see :attr:`origins` for the last one."""
        figures = ["NFE ↓", *(column.header for column in self.columns)]
        return ["METHOD", *figures, *([self.origins] if self.origins else [])]

    @property
    def origins(self) -> str:
        """Header of the column that tells where rows come from, empty where all come from the same.

        ``SOURCE`` where measured rows stand beside published ones, ``SEEDS`` where measured rows differ in the
        number of their seeds.
        """
        if len({row.source for _, row in self.rows()}) > 1:
            return "SOURCE"
        return "SEEDS" if len({len(row.seeds) for _, row in self.rows()}) > 1 else ""

    def origin(self, row: Row) -> str:
        """The row's entry in the column of :attr:`origins`."""
        return row.origin if self.origins == "SOURCE" else str(len(row.seeds))

    @property
    def measured(self) -> bool:
        """Whether any row was measured; a table without one is the paper's."""
        return any(row.source == "measured" for _, row in self.rows())

    @property
    def letters(self) -> dict[str, str]:
        """Footnote -> its letter (a, b, ... z, aa, ...), in reading order; equal footnotes share one."""
        cells = [cell for _, row in self.rows() for cell in (row.method, row.nfe, *row.cells)]
        notes = dict.fromkeys(note for cell in cells for note in cell.notes)
        return {note: chr(ord("a") + place % 26) * (1 + place // 26) for place, note in enumerate(notes)}

    @property
    def footnotes(self) -> list[Footnote]:
        """The lines under the table: the paper's marks, the lettered footnotes, the remarks."""
        marks = {row.mark for _, row in self.rows()}
        return [
            *(Footnote(*MARKS[mark]) for mark in MARKS if mark in marks),
            *(Footnote(letter, note) for note, letter in self.letters.items()),
            *(Footnote("", remark) for remark in self.remarks),
        ]


def number(metric: str, value: float, std: float | None = None) -> str:
    """``value`` or ``value ± std``, with the metric's decimals and at least three digits of the value."""
    decimals = METRICS[metric].decimals if metric in METRICS else 3
    if 0 < abs(value) < 1:
        decimals = max(decimals, 2 - floor(log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text if std is None else f"{text} ± {std:.{decimals}f}"
