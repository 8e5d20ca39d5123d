"""Measured rows against the paper's: differences where the figures are the same, places where they are not."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import StatisticsError, correlation

from cmbench.errors import unknown
from cmbench.records import Record, select
from cmbench.report import published
from cmbench.report.aggregate import Measured, over_seeds
from cmbench.report.layout import METRICS, MISSING, Cell, Column, Group, Row, Table
from cmbench.report.published import PublishedRow
from cmbench.report.tables import described_conditions, metric_cell, row_notes, seed_remarks

PUBLISHED_SAMPLES = 50_000
"""The paper's figures are those of so many samples."""

_COMPARED = ("fid", "is", "precision", "recall")
_FEWEST = 3  # rows that an order makes sense of

Pair = tuple[Measured, PublishedRow]


def compare(records: Iterable[Record], dataset: str, *, columns: Sequence[str] | None = None) -> list[Table]:
    """For each row of the paper that was measured: both figures, and how they differ.

    A measured row belongs to the published one of its method whose NFE is the number asked for or counted; guided
    rows belong to none. Rows under different protocols or sample counts are different tables.

    Where a figure is the paper's (its data set, Inception features, 50,000 samples), the third column is the
    difference. Elsewhere a difference would mean nothing; then each of the two has its place among the rows that have
    both, and a remark says why and how far the two orders agree. A data set that the paper lacks is set against its
    Table 1.

    Args:
        records: of any data sets; those of ``dataset`` are used.
        dataset: registered name.
        columns: metrics to compare; default all that the paper has: FID, IS, precision, recall.

    Returns:
        No table where the paper has none of the measured rows.

    Raises:
        UsageError: the paper has no such metric.
    """
    for name in columns or ():
        if name not in _COMPARED:
            raise unknown("column", name, _COMPARED)
    paper = published.for_dataset(dataset) or published.load(1)
    measured = over_seeds(select(records, dataset))
    pairs = [(item, row) for row in paper for item in measured if _same_row(item, row)]
    kinds = dict.fromkeys(_kind(item) for item, _ in pairs)
    made = (
        _table([pair for pair in pairs if _kind(pair[0]) == kind], columns or _COMPARED) for kind in kinds
    )
    return [table for table in made if table.columns]


def _same_row(item: Measured, row: PublishedRow) -> bool:
    record = item.first
    return record.label == row.method and row.nfe in (record.nfe, item.nfe_counted) and not item.guidance


def _kind(item: Measured) -> tuple[object, ...]:
    return item.conditions, tuple(item.title(metric) for metric in _COMPARED)


def _table(pairs: Sequence[Pair], metrics: Sequence[str]) -> Table:
    columns: list[Column] = []
    cells: list[list[Cell]] = []  # of each column
    remarks = [f"measured: {described_conditions(pairs[0][0])}", *seed_remarks([item for item, _ in pairs])]
    remarks.append(f"published: {pairs[0][1].source}; Inception features, {PUBLISHED_SAMPLES:,} samples")
    for metric in metrics:
        both = [place for place, (item, row) in enumerate(pairs) if _figures(metric, item, row)]
        if not both:
            continue
        reason = _incomparable(metric, *pairs[both[0]])
        made = _places(metric, pairs, both) if reason else _differences(metric, pairs)
        columns += made
        cells += list(made.values())
        if reason:
            remarks += [reason, *_agreement(metric, pairs, both)]
    if any(column.title == "difference" for column in columns):
        remarks.append("difference: measured − published")
    notes = row_notes([item for item, _ in pairs])
    across = list(zip(*cells, strict=True)) if cells else [()] * len(pairs)
    rows = [_row(*pair, own, note) for pair, own, note in zip(pairs, across, notes, strict=True)]
    named = zip([row.group for _, row in pairs], rows, strict=True)
    groups = tuple(
        Group(name, tuple(row for _, row in own)) for name, own in groupby(named, lambda entry: entry[0])
    )
    title = f"{published.title(pairs[0][0].first.dataset)}: measured against published"
    return Table(title, tuple(columns), groups, tuple(remarks))


def _row(item: Measured, row: PublishedRow, cells: Sequence[Cell], notes: Sequence[str]) -> Row:
    record = item.first
    counted = () if item.nfe_counted == row.nfe else (f"{item.nfe_counted:.4g} network evaluations counted",)
    return Row(
        dataset=record.dataset,
        method=Cell(row.method, notes=tuple(notes)),
        reference=row.reference,
        mark=row.mark,
        source="measured",
        nfe=Cell(str(row.nfe), row.nfe, notes=counted),
        cells=tuple(cells),
        nfe_asked=record.nfe,
        seeds=item.seeds,
        samples=record.samples,
        protocol=record.protocol,
        fingerprint=record.protocol_fingerprint,
    )


def _figures(metric: str, item: Measured, row: PublishedRow) -> tuple[float, float] | None:
    """The measured and the published figure, where there are both."""
    summary, printed = item.metrics.get(metric), row.value(metric)
    if summary is None or summary.mean is None or printed is None:
        return None
    return summary.mean, printed


def _incomparable(metric: str, item: Measured, row: PublishedRow) -> str:
    """Why the two figures cannot be subtracted, empty where they can."""
    own, default, samples = item.title(metric), METRICS[metric].title, item.first.samples
    ranks = "no difference is taken, each has its place among the rows with both"
    if own != default:
        return f"{own} and the paper's {default} are figures of other features: {ranks}"
    if item.first.dataset != row.dataset:
        return f"{own} here and in the paper are of other images ({published.title(row.dataset)}): {ranks}"
    if samples != PUBLISHED_SAMPLES:
        return f"{own} moves with the number of samples, here {samples:,}: {ranks}"
    return ""


def _differences(metric: str, pairs: Sequence[Pair]) -> Mapping[Column, list[Cell]]:
    own, theirs = _columns(metric, pairs)
    difference = Column(metric, "difference", f"{metric}_difference", None, derived=True)
    cells = []
    for item, row in pairs:
        figures = _figures(metric, item, row)
        value = figures and figures[0] - figures[1]
        text = MISSING if value is None else f"{value:+.{METRICS[metric].decimals}f}".replace("-", "−")
        cells.append(Cell(text, value))
    return {
        own: [metric_cell(item, own) for item, _ in pairs],
        theirs: [_printed(metric, row) for _, row in pairs],
        difference: cells,
    }


def _places(metric: str, pairs: Sequence[Pair], both: Sequence[int]) -> Mapping[Column, list[Cell]]:
    own, theirs = _columns(metric, pairs)
    made = {own: [metric_cell(item, own) for item, _ in pairs]}
    ranks = _ranks(metric, pairs, both)
    for which, (after, key) in enumerate(((own, metric), (theirs, f"{metric}_published"))):
        if after is theirs:
            made[theirs] = [_printed(metric, row) for _, row in pairs]
        cells = [Cell(MISSING)] * len(pairs)
        for place, rank in zip(both, ranks[which], strict=True):
            cells[place] = Cell(f"{rank:g}", rank)
        made[Column(metric, "place", f"{key}_place", None, derived=True)] = cells
    return made


def _columns(metric: str, pairs: Sequence[Pair]) -> tuple[Column, Column]:
    item, row = pairs[0]
    style, own = METRICS[metric], item.title(metric)
    where = published.title(row.dataset) if row.dataset != item.first.dataset else ""
    theirs = f"{style.title if own != style.title or where else ''} published {where}".strip()
    return (
        Column(metric, own, metric, style.better),
        Column(metric, theirs, f"{metric}_published", None, derived=True),
    )


def _printed(metric: str, row: PublishedRow) -> Cell:
    return Cell(row.texts.get(metric, "") or MISSING, row.value(metric))


def _ranks(metric: str, pairs: Sequence[Pair], both: Sequence[int]) -> tuple[list[float], list[float]]:
    """Places of the measured and of the published figures, 1 the best; equal figures share their mean place."""
    found = [_figures(metric, *pairs[place]) or (0.0, 0.0) for place in both]
    sign = 1 if METRICS[metric].better == "lower" else -1

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(sign * value for value in values)
        return [ordered.index(sign * value) + (ordered.count(sign * value) + 1) / 2 for value in values]

    return ranks([own for own, _ in found]), ranks([printed for _, printed in found])


def _agreement(metric: str, pairs: Sequence[Pair], both: Sequence[int]) -> list[str]:
    if len(both) < _FEWEST:
        return []
    try:
        rho = correlation(*_ranks(metric, pairs, both))
    except StatisticsError:  # all figures alike
        return []
    title, published_title = pairs[both[0]][0].title(metric), METRICS[metric].title
    text = f"{rho:.2f}".replace("-", "−")
    return [
        f"rank correlation (Spearman) of {title} with the paper's {published_title}: {text}, {len(both)} rows"
    ]
