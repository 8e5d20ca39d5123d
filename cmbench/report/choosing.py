"""The tables that a command's options ask for."""

from collections.abc import Sequence

from cmbench.errors import UsageError
from cmbench.records import Record
from cmbench.report import published as figures
from cmbench.report import tables
from cmbench.report.compare import compare as compare_with_paper
from cmbench.report.layout import Table


def choose(
    found: Sequence[Record],
    datasets: Sequence[str] | None = None,
    paper: int | None = None,
    columns: Sequence[str] | None = None,
    *,
    published: bool = False,
    compare: bool = False,
    later: bool = False,
) -> list[Table]:
    """Tables of these records; an empty list where there is nothing to show.

    Args:
        found: records of any data sets.
        datasets: those to show; default all with records, or with ``paper`` the table's own.
        paper: the paper's Table 1 or 2: one table of its data sets, or with ``datasets`` one of each, and by default
            its columns.
        columns: metrics to show.
        published: published rows alone.
        compare: measured against published, see :mod:`cmbench.report.compare`.
        later: with the published rows of methods that the paper does not have.

    Raises:
        UsageError: options that do not go together, an unknown column.
    """
    if compare and (published or later):
        raise UsageError(
            "--compare sets what was measured against the paper's rows: not with --published or --later"
        )
    names = list(dict.fromkeys(datasets or ()))
    of_paper = list(dict.fromkeys(row.dataset for row in figures.load(paper))) if paper else []
    chosen = columns or (tables.PAPER_COLUMNS[paper] if paper else None)
    if compare:
        wanted = names or of_paper or list(dict.fromkeys(record.dataset for record in found))
        return [table for name in wanted for table in compare_with_paper(found, name, columns=chosen)]
    if published and not names:
        numbers = [paper] if paper else [1, 2]
        return [tables.build_paper((), number, columns=columns, later=later) for number in numbers]
    if names:
        known = [] if published else found
        made = [tables.build(known, dataset=name, columns=chosen, later=later) for name in names]
        return [table for table in made if table.groups]
    if paper:
        return [tables.build_paper(found, paper, columns=columns, later=later)]
    return tables.build_all(found, columns=columns, later=later)


def hint(found: Sequence[Record], *, compare: bool = False) -> str:
    """What to say where :func:`choose` gives no table."""
    if compare and found:
        return "none of the measured rows stands in the paper: same method, same number of evaluations"
    return tables.HINT
