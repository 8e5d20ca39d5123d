"""Records and published rows -> tables; pure functions. :mod:`cmbench.report.render` prints them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from cmbench.errors import unknown
from cmbench.records import Record, select
from cmbench.report import published as paper_rows
from cmbench.report.aggregate import Measured, described, over_seeds, telling
from cmbench.report.layout import METRICS, MISSING, Cell, Column, Group, Row, Table, number
from cmbench.report.order import ranking
from cmbench.report.published import BLOCKS, PublishedRow

HINT = "nothing measured yet: `cmbench run --dataset digits --method ddim --nfe 1 2` makes a first record"
"""What to print, with exit code 0, where there is no table to show."""

_MAIN = ("fid", "is", "precision", "recall")
_DISTILLATION = "Diffusion + Distillation"


def build(
    records: Iterable[Record],
    *,
    dataset: str,
    published: Sequence[PublishedRow] | None = None,
    columns: Sequence[str] | None = None,
    later: bool = False,
) -> Table:
    """The table of one data set: measured rows beside published ones, in the paper's groups.

    - Records that differ only in their seed are one row: mean, standard deviation (ddof 1), number of seeds. With
      one seed, the standard deviation printed is the metric's own, and a remark says so.
    - A column is a metric under one title (the protocol's ``metric_titles``): figures of other features than
      Inception's never share a column with published ones.
    - Where protocols or sample counts differ between rows, each row has a footnote that names its own.
    - Bold is the best of a group among rows that compare: published ones, or ones measured under one protocol
      with one number of samples; a figure that nothing compares with is not bold.
    - NFE is the counted number; where it is not the one asked for, a footnote says so. Guided rows have one as well.
    - The paper's marks stand on measured rows too; on methods that it does not list, ``synthetic-data`` where the
      record's cost has synthetic pairs.
    - Order: see :func:`cmbench.report.order.ranking`; published rows stand above measured ones of their kind.

    Args:
        records: of any data sets; those of ``dataset`` are used.
        dataset: registered name, such as ``cifar10``.
        published: rows to show beside; default the paper's of this data set, ``()`` for none.
        columns: metrics to show, in order; default FID, IS, precision and recall where there are any.
        later: add the published rows of methods that the paper does not have.

    Raises:
        UsageError: a column is not the name of a metric.
    """
    shown = paper_rows.for_dataset(dataset) if published is None else list(published)
    shown += paper_rows.modern(dataset) if later else []
    return _assemble(paper_rows.title(dataset), over_seeds(select(records, dataset)), shown, columns)


def build_all(
    records: Sequence[Record], *, columns: Sequence[str] | None = None, later: bool = False
) -> list[Table]:
    """One table for every data set with records: the paper's data sets first, then by name."""
    names = {record.dataset for record in records}
    first = [name for name in ("cifar10", *BLOCKS) if name in names]
    ordered = [*first, *sorted(names.difference(first))]
    return [build(records, dataset=name, columns=columns, later=later) for name in ordered]


def build_published(paper: int, *, columns: Sequence[str] | None = None) -> Table:
    """Table 1 or Table 2 of Song et al. (2023), cell by cell.

    Raises:
        UsageError: there is no such table, or no such column.
    """
    return build_paper((), paper, columns=columns)


def build_paper(
    records: Iterable[Record], paper: int, *, columns: Sequence[str] | None = None, later: bool = False
) -> Table:
    """The paper's table with what was measured on its data sets beside it: as :func:`build`, in one table.

    Raises:
        UsageError: there is no such table, or no such column.
    """
    shown = paper_rows.load(paper)
    datasets = list(dict.fromkeys(row.dataset for row in shown))
    if later:
        modern = [row for name in datasets for row in paper_rows.modern(name)]
        several = len(datasets) > 1
        shown += [
            replace(row, group=f"{row.group}: {paper_rows.title(row.dataset)}") if several else row
            for row in modern
        ]
    measured = over_seeds(record for record in records if record.dataset in datasets)
    title = f"{_PAPER[paper]}: Song et al. (2023), Table {paper}"
    return _assemble(title, measured, shown, columns or PAPER_COLUMNS[paper])


_PAPER = {1: "CIFAR-10", 2: "ImageNet 64 × 64 and LSUN 256 × 256"}
PAPER_COLUMNS = {1: ("fid", "is"), 2: ("fid", "precision", "recall")}
"""The columns of the paper's two tables."""


def _assemble(
    title: str, measured: list[Measured], published: list[PublishedRow], names: Sequence[str] | None
) -> Table:
    columns = _columns(measured, published, names)
    known = any(not row.later for row in published)
    order = published if known else [*paper_rows.load(1), *published]
    blocks = {row.dataset: row.group for row in published if row.group == BLOCKS.get(row.dataset)}
    rows = [(row.group, row.method, float(row.nfe), _published_row(row, columns)) for row in published]
    for item, extra in zip(measured, row_notes(measured), strict=True):
        synthetic = "synthetic-data" if "pair_evaluations" in item.first.cost else ""
        mark = next((row.mark for row in order if row.method == item.first.label), synthetic)
        block = blocks.get(item.first.dataset)
        if block:
            mark = "distillation" if item.first.group == _DISTILLATION else mark
        row = _measured_row(item, columns, extra, mark)
        rows.append((block or item.first.group, item.first.label, item.nfe_counted, row))

    key = ranking(order)
    rows.sort(key=lambda row: key(*row[:3]))
    groups = tuple(
        Group(name, _bold([row for *_, row in own], columns))
        for name, own in groupby(rows, lambda row: row[0])
    )
    return Table(title, columns, groups, _remarks(measured, published))


def _columns(
    measured: Sequence[Measured], published: Sequence[PublishedRow], names: Sequence[str] | None
) -> tuple[Column, ...]:
    measured_names = list(dict.fromkeys(name for item in measured for name in item.metrics))
    printed = {name for row in published for name in row.texts}
    if names is None:
        names = [name for name in _MAIN if name in printed or name in measured_names] or measured_names
    for name in names:
        if name not in {*METRICS, *measured_names}:
            raise unknown("column", name, {*METRICS, *measured_names})
    columns: list[Column] = []
    apart: list[Column] = []  # published figures of a metric that was measured with other features
    for name in names:
        style = METRICS.get(name)
        default = style.title if style else name
        own = list(dict.fromkeys(item.title(name) for item in measured if name in item.metrics))
        titles = own if own and (default in own or name not in printed) else [*own, default]
        for title in titles:
            key = name if title == default else re.sub(r"\W+", "_", title.lower()).strip("_")
            place = apart if title not in own and own else columns
            place.append(Column(name, title, key, style.better if style else None))
    return (*columns, *apart)


def _published_row(row: PublishedRow, columns: Sequence[Column]) -> Row:
    def cell(column: Column) -> Cell:
        if column.key != column.metric:
            return Cell()
        return Cell(row.texts.get(column.metric, ""), row.value(column.metric))

    return Row(
        dataset=row.dataset,
        method=Cell(row.method, notes=(row.note,) if row.note else ()),
        reference=row.reference,
        mark=row.mark,
        source="published",
        nfe=Cell(str(row.nfe), row.nfe),
        cells=tuple(cell(column) for column in columns),
    )


def _measured_row(item: Measured, columns: Sequence[Column], notes: Sequence[str], mark: str) -> Row:
    record, counted = item.first, item.nfe_counted
    asked = () if counted == record.nfe else (f"network evaluations counted; {record.nfe} asked for",)
    return Row(
        dataset=record.dataset,
        method=Cell(record.label, notes=tuple(notes)),
        reference=record.reference,
        mark=mark,
        source="measured",
        nfe=Cell(f"{round(counted, 1):g}", counted, notes=asked),
        cells=tuple(metric_cell(item, column) for column in columns),
        nfe_asked=record.nfe,
        seeds=item.seeds,
        samples=record.samples,
        protocol=record.protocol,
        fingerprint=record.protocol_fingerprint,
        keys=tuple(one.key for one in item.records),
    )


def metric_cell(item: Measured, column: Column) -> Cell:
    """The measured figure of a column, with the footnotes of what is missing; empty where it is another column's."""
    if column.metric not in item.metrics or item.title(column.metric) != column.title:
        return Cell()
    summary = item.metrics[column.metric]
    reason = "; ".join(dict.fromkeys(summary.reasons)) or None
    if summary.mean is None:
        return Cell(MISSING, notes=(f"not computed: {reason}",), reason=reason)
    count, seeds = len(summary.values), len(item.seeds)
    partial: tuple[str, ...] = ()
    if count < seeds:
        why = f"; not computed for the others: {reason}" if reason else ""
        partial = (f"over {count} of {seeds} seeds{why}",)
    text = number(column.metric, summary.mean, summary.std if summary.own is None else summary.own)
    return Cell(text, summary.mean, summary.std, count, notes=partial, reason=reason)


def row_notes(measured: Sequence[Measured]) -> list[list[str]]:
    """For each row: its protocol and samples where rows differ in them, and what tells it from its twins."""
    notes: list[list[str]] = [[] for _ in measured]
    if len({item.conditions for item in measured}) > 1:
        for own, item in zip(notes, measured, strict=True):
            own.append(described_conditions(item))
    for own, item in zip(notes, measured, strict=True):
        if item.guidance:
            own.append(f"classifier-free {item.guidance}")
        if item.tuned:
            own.append(item.tuned)
    twins: dict[object, list[int]] = {}
    for place, item in enumerate(measured):
        record = item.first
        same = (record.dataset, record.group, record.label, item.nfe_counted)
        alike = (*same, item.conditions, item.guidance, item.tuned)
        twins.setdefault(alike, []).append(place)
    for places in twins.values():
        if len(places) > 1:
            names = telling([measured[place].first for place in places])
            for place in places:
                notes[place].append(described(measured[place].first, names))
    return notes


def described_conditions(item: Measured) -> str:
    """``protocol digits (3ee0a668), 5,000 samples``."""
    protocol, fingerprint, samples = item.conditions
    return f"protocol {protocol} ({fingerprint[:8]}), {samples:,} samples"


def _remarks(measured: Sequence[Measured], published: Sequence[PublishedRow]) -> tuple[str, ...]:
    """How all measured rows were measured where they agree, and where published ones come from."""
    remarks = []
    if len({item.conditions for item in measured}) == 1:
        remarks.append(f"measured: {described_conditions(measured[0])}")
    remarks += seed_remarks(measured)
    paper = dict.fromkeys(row.source for row in published if not row.later)
    if measured and paper:
        remarks.append(f"published: {', '.join(paper)}; Inception features, 50,000 samples")
    if any(row.later for row in published):
        remarks.append("later methods: Inception features, as reported by their authors")
    return tuple(remarks)


def seed_remarks(measured: Sequence[Measured]) -> list[str]:
    """What ``±`` means in a table of these rows, and over how many seeds they are where that is one number."""
    remarks = []
    counts = {len(item.seeds) for item in measured}
    if counts - {1}:
        over = f"{counts.pop()} seeds" if len(counts) == 1 else "seeds"
        remarks.append(f"means over {over}; ±: standard deviation over seeds")
    alone = [item for item in measured if any(one.own is not None for one in item.metrics.values())]
    if alone:
        of = " of a single seed" if len(alone) < len(measured) else ""
        remarks.append(
            f"±{of}: standard deviation of the figure itself (IS: over splits, else over draws of samples)"
        )
    return remarks


def _bold(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """The rows with the best figure of each column in bold, among rows that compare; ties all count."""
    cells = [list(row.cells) for row in rows]
    for place, column in enumerate(columns):
        pick: Callable[[Iterable[float]], float] = min if column.better == "lower" else max
        classes: dict[object, list[tuple[float, int]]] = {}
        for index, row in enumerate(rows):
            if column.better and row.cells[place].value is not None:
                like = (row.source, row.fingerprint, row.samples)
                classes.setdefault(like, []).append((float(row.cells[place].text.split()[0]), index))
        for figures in classes.values():
            best = pick(value for value, _ in figures)
            for value, index in figures:
                if value == best and len(figures) > 1:
                    cells[index][place] = replace(cells[index][place], bold=True)
    return tuple(replace(row, cells=tuple(own)) for row, own in zip(rows, cells, strict=True))
