"""The command ``report``: one HTML page of all that was measured."""

from pathlib import Path
from typing import Annotated

import typer

from cmbench import console
from cmbench.errors import WorkError
from cmbench.options import MultiValue, Out


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=MultiValue)(report)


def report(
    to: Annotated[
        Path | None, typer.Option("--to", help="The file to write; OUT/report.html by default.")
    ] = None,
    title: Annotated[
        str, typer.Option("--title", help="Title of the page.")
    ] = "Few-step image generators, measured",
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="Data sets; all by default.")
    ] = None,
    out: Out = Path("results"),
) -> None:
    """Write one self-contained HTML page: tables, interactive charts, samples, provenance of every row."""
    from cmbench import records
    from cmbench.editing import records as edits
    from cmbench.experiments import manifest
    from cmbench.paths import atomic
    from cmbench.report.page import write_page

    def wanted(name: str) -> bool:
        return not dataset or name in dataset

    edited = [one for name in edits.datasets(out) if wanted(name) and (one := edits.read(out, name))]
    found = [record for record in records.read(out) if wanted(record.dataset)]
    manifests = [one for one in manifest.read_all(out) if wanted(one.dataset)]
    page = write_page(found, manifests, out, title, edited)
    path = to or out / "report.html"
    try:
        with atomic(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise WorkError(f"{path} cannot be written: {error}") from error
    console.say(f"{len(page.encode()) / 1e6:.1f} MB, {len(found)} records")
    print(path)
