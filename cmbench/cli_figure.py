"""`cmbench figure`: pictures made from records alone."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cmbench.options import MultiValue, Out

figure_app = typer.Typer(no_args_is_help=True, help="Draw figures from the records.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(figure_app, name="figure")


Datasets = Annotated[list[str] | None, typer.Option("--dataset", "-d", help="Data sets; all by default.")]


@figure_app.command("nfe", cls=MultiValue)
def figure_nfe(dataset: Datasets = None, out: Out = Path("results")) -> None:
    """FID against the number of evaluations, a line a method; PNG and PDF."""
    from cmbench.report import figures

    found = _records(out)
    for name in dataset or sorted({record.dataset for record in found}):
        for path in figures.nfe(found, name, out):
            print(path)


@figure_app.command("samples", cls=MultiValue)
def figure_samples(
    dataset: Datasets = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    out: Out = Path("results"),
) -> None:
    """Samples of every method and NFE, the same seeds side by side; PNG and PDF."""
    from cmbench.report import figures

    found = _records(out)
    for name in dataset or sorted({record.dataset for record in found}):
        for path in figures.samples(found, name, seed, out / "previews", out):
            print(path)


def _records(out: Path) -> list[Any]:
    from cmbench import records
    from cmbench.errors import UsageError

    if found := records.read(out):
        return found
    raise UsageError(f"no records under {out}/runs: `cmbench run --method cd --nfe 1 2` makes some")
