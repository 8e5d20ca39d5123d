"""Measured rows against the paper's: differences where the figures are the same, places where they are not."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import StatisticsError, correlation

from cmbench.errors import unknown
from cmbench.records import Record, select
from cmbench.report import published
from cmbench.report.aggregate import Measured, over_seeds
from cmbench.report.layout import METRICS, Cell, Column, Group, Row, Table
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
    rows belong to none. Each metric is a table of the rows that have both figures; so are rows under different
    protocols or sample counts.

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
    made = []
    for kind in dict.fromkeys(_kind(item) for item, _ in pairs):
        alike = [pair for pair in pairs if _kind(pair[0]) == kind]
        for metric in columns or _COMPARED:
            if both := [pair for pair in alike if _figures(metric, *pair)]:
                made.append(_table(both, metric))
    return made


def _same_row(item: Measured, row: PublishedRow) -> bool:
    record = item.first
    return record.label == row.method and row.nfe in (record.nfe, item.nfe_counted) and not item.guidance


def _kind(item: Measured) -> tuple[object, ...]:
    return item.conditions, tuple(item.title(metric) for metric in _COMPARED)


def _table(pairs: Sequence[Pair], metric: str) -> Table:
    items = [item for item, _ in pairs]
    first, row = pairs[0]
    own, default = first.title(metric), METRICS[metric].title
    reason = _incomparable(metric, first, row)
    columns = _places(metric, pairs) if reason else _differences(metric, pairs)
    across = zip(*columns.values(), strict=True)
    notes = row_notes(items)
    rows = [_row(*pair, own, note) for pair, own, note in zip(pairs, across, notes, strict=True)]
    groups = tuple(
        Group(name, tuple(line for _, line in lines))
        for name, lines in groupby(
            zip([row.group for _, row in pairs], rows, strict=True), lambda pair: pair[0]
        )
    )
    remarks = [f"measured: {described_conditions(first)}", *seed_remarks(items)]
    remarks.append(f"published: {row.source}; Inception features, {PUBLISHED_SAMPLES:,} samples")
    remarks += [reason, *_agreement(metric, pairs)] if reason else ["difference: measured − published"]
    where = f" on {published.title(row.dataset)}" if row.dataset != first.first.dataset else ""
    title = f"{published.title(first.first.dataset)}: {own} against the published {default}{where}"
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
    ranks = "no difference is taken, each has its place among these rows"
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
    for pair in pairs:
        measured, printed = _figures(metric, *pair) or (0.0, 0.0)
        text = f"{measured - printed:+.{METRICS[metric].decimals}f}".replace("-", "−")
        cells.append(Cell(text, measured - printed))
    return {
        own: [metric_cell(item, own) for item, _ in pairs],
        theirs: [_printed(metric, row) for _, row in pairs],
        difference: cells,
    }


def _places(metric: str, pairs: Sequence[Pair]) -> Mapping[Column, list[Cell]]:
    own, theirs = _columns(metric, pairs)
    ours, paper = ([Cell(f"{rank:g}", rank) for rank in ranks] for ranks in _ranks(metric, pairs))
    return {
        own: [metric_cell(item, own) for item, _ in pairs],
        Column(metric, "place", f"{metric}_place", None, derived=True): ours,
        theirs: [_printed(metric, row) for _, row in pairs],
        Column(metric, "place", f"{metric}_published_place", None, derived=True): paper,
    }


def _columns(metric: str, pairs: Sequence[Pair]) -> tuple[Column, Column]:
    title = pairs[0][0].title(metric)
    return (
        Column(metric, title, metric, METRICS[metric].better),
        Column(metric, "published", f"{metric}_published", None, derived=True),
    )


def _printed(metric: str, row: PublishedRow) -> Cell:
    return Cell(row.texts[metric], row.value(metric))


def _ranks(metric: str, pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Places of the measured and of the published figures, 1 the best; equal figures share their mean place."""
    found = [_figures(metric, *pair) or (0.0, 0.0) for pair in pairs]
    sign = 1 if METRICS[metric].better == "lower" else -1

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(sign * value for value in values)
        return [ordered.index(sign * value) + (ordered.count(sign * value) + 1) / 2 for value in values]

    return ranks([own for own, _ in found]), ranks([printed for _, printed in found])


def _agreement(metric: str, pairs: Sequence[Pair]) -> list[str]:
    if len(pairs) < _FEWEST:
        return []
    try:
        rho = correlation(*_ranks(metric, pairs))
    except StatisticsError:  # all figures alike
        return []
    text = f"{rho:.2f}".replace("-", "−")
    return [f"rank correlation (Spearman) of the two: {text}, {len(pairs)} rows"]
