"""Every table and figure of a results folder, made again from its records, manifests and previews."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cmbench import records
from cmbench.editing import records as edits
from cmbench.editing import strips
from cmbench.errors import UsageError
from cmbench.experiments import manifest
from cmbench.paths import atomic
from cmbench.records import Record
from cmbench.report import curves, editing_figure, figures, interpolation_figure, pareto, published, tables
from cmbench.report.compare import compare
from cmbench.report.grid import preview_path
from cmbench.report.layout import Table
from cmbench.report.render import render

FILES = {"md": "md", "latex": "tex", "csv": "csv", "html": "html"}
"""Format -> ending of the files that tables are written to."""


def regenerate(out: Path) -> tuple[list[Path], list[str]]:
    """Write ``OUT/tables`` and ``OUT/figures``; the same records give the same bytes.

    Tables, each as Markdown, LaTeX (a document that compiles), CSV and HTML: ``table1`` and ``table2`` (the paper's,
    with what was measured on their data sets), ``<data set>`` and ``<data set>-compare``. Figures, each as PNG, PDF
    and SVG: ``nfe-``, ``pareto-`` and ``samples-<data set>``, one for each experiment, and those of
    editing and interpolation.

    Returns:
        The files, and for what could not be made the reasons, a line each.

    Raises:
        WorkError: a record, a manifest or a preview is damaged.
    """
    found = records.read(out)
    made: list[Path] = []
    skipped: list[str] = []

    def attempt(name: str, work: Callable[[], list[Path]]) -> None:
        try:
            made.extend(work())
        except UsageError as error:
            skipped.append(f"{name}: {error}")

    datasets = list(dict.fromkeys(record.dataset for record in found))
    for paper in (1, 2):
        made += _write(out, f"table{paper}", [tables.build_paper(found, paper)])
    for name in datasets:
        made += _write(out, name, [tables.build(found, dataset=name, later=True)])
        compared = compare(found, name)
        if compared:
            made += _write(out, f"{name}-compare", compared)
        else:
            skipped.append(f"tables/{name}-compare: the paper has none of the rows measured on {name}")
        attempt(f"figures/nfe-{name}", partial(figures.nfe, found, name, out))
        attempt(f"figures/pareto-{name}", partial(pareto.pareto, found, name, out))
        attempt(f"figures/samples-{name}", partial(_samples, found, name, out))
    if not found:
        skipped.append(f"tables and figures of data sets: no records under {out}/runs")
    _experiments(out, attempt, skipped)
    for name in edits.datasets(out):
        edited = edits.read(out, name)
        assert edited is not None  # datasets() has seen its file
        attempt(f"figures/editing-{name}", partial(editing_figure.panels, edited, out))
        attempt(f"figures/editing-nfe-{name}", partial(editing_figure.quality, edited, out))
    kept = strips.read_all(out)
    for name in sorted({strip.dataset for strip in kept}):
        attempt(f"figures/interpolation-{name}", partial(interpolation_figure.draw, kept, name, out))
    return made, skipped


def _experiments(
    out: Path, attempt: Callable[[str, Callable[[], list[Path]]], None], skipped: list[str]
) -> None:
    found = manifest.read_all(out)
    if not found:
        skipped.append(f"figures of experiments: none has been run, {out}/{manifest.FOLDER} has no manifest")
    for one in found:
        name = f"figures/{one.name}-{one.dataset}"
        attempt(name, partial(curves.draw, [one], out, one.name))
    for name, parts in curves.PANELS.items():
        for dataset in dict.fromkeys(one.dataset for one in found if one.name in parts):
            own, missing = curves.measured(out, name, dataset)
            if missing:
                skipped.append(f"figures/{name}-{dataset} lacks {', '.join(missing)}: not run yet")
            attempt(f"figures/{name}-{dataset}", partial(curves.draw, own, out, name))


def _write(out: Path, name: str, made: Sequence[Table]) -> list[Path]:
    paths = []
    for format, ending in FILES.items():
        path = out / "tables" / f"{name}.{ending}"
        with atomic(path) as temporary:
            temporary.write_text(str(render(made, format, standalone=True)), encoding="utf-8")
        paths.append(path)
    return paths


def _samples(found: Sequence[Record], dataset: str, out: Path) -> list[Path]:
    """The figure of samples of the least seed that has a preview."""
    previews = out / "previews"
    own = records.select(found, dataset)
    seeds = [record.seed for record in own if preview_path(previews, record).exists()]
    if not seeds:
        raise UsageError(f"no previews of {published.title(dataset)} under {previews}")
    return figures.samples(own, dataset, min(seeds), previews, out)
