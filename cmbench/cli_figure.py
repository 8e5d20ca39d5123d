"""`cmbench figure` and `cmbench regenerate`: pictures and tables made from records alone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmbench import console
from cmbench.errors import UsageError
from cmbench.options import MultiValue, Out

if TYPE_CHECKING:
    from cmbench.records import Record

figure_app = typer.Typer(no_args_is_help=True, help="Draw figures from the records: PNG, PDF and SVG.")

Datasets = Annotated[list[str] | None, typer.Option("--dataset", "-d", help="Data sets; all by default.")]
Name = Annotated[str, typer.Option("--name", help="Of the files: figures/NAME-<data set>.")]
Only = Annotated[list[str] | None, typer.Option("--method", "-m", help="Methods to show; all by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(figure_app, name="figure")
    app.command("regenerate")(regenerate)


@figure_app.command("nfe", cls=MultiValue)
def figure_nfe(
    dataset: Datasets = None, method: Only = None, name: Name = "nfe", out: Out = Path("results")
) -> None:
    """FID against the number of evaluations, a line a method."""
    from cmbench.report import figures

    _each(out, dataset, method, lambda found, of: figures.nfe(found, of, out, name=name))


@figure_app.command("pareto", cls=MultiValue)
def figure_pareto(
    dataset: Datasets = None, method: Only = None, name: Name = "pareto", out: Out = Path("results")
) -> None:
    """FID against evaluations, time an image and training time; the Pareto front marked."""
    from cmbench.report import pareto

    _each(out, dataset, method, lambda found, of: pareto.pareto(found, of, out, name=name))


@figure_app.command("samples", cls=MultiValue)
def figure_samples(
    dataset: Datasets = None,
    method: Only = None,
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="NFE to show; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    name: Name = "samples",
    out: Out = Path("results"),
) -> None:
    """Samples of every method and NFE, the same seeds side by side."""
    from cmbench.report import figures

    def draw(found: "list[Record]", of: str) -> list[Path]:
        shown = [record for record in found if not nfe or record.nfe in nfe]
        return figures.samples(shown, of, seed, out / "previews", out, name=name)

    _each(out, dataset, method, draw)


@figure_app.command("experiment", cls=MultiValue)
def figure_experiment(
    name: Annotated[str, typer.Argument(help="Name of the experiment; see `cmbench experiment`.")],
    dataset: Datasets = None,
    out: Out = Path("results"),
) -> None:
    """Any experiment, a line an arm: FID over training, or over evaluations."""
    _experiment(name, dataset, out)


def _paper_figure(name: str, what: str) -> None:
    def command(dataset: Datasets = None, out: Out = Path("results")) -> None:
        _experiment(name, dataset, out)

    figure_app.command(name, cls=MultiValue, help=what)(command)


for _name, _what in {
    "fig3": "Figure 3 of the paper: its panels (a) to (d), as far as they have been measured.",
    "fig3a": "Figure 3 (a): metric functions in CD over training.",
    "fig3b": "Figure 3 (b): Euler and Heun in CD over training.",
    "fig3c": "Figure 3 (c): numbers of discretisation points N in CD over training.",
    "fig3d": "Figure 3 (d): adaptive against fixed N and mu in CT over training.",
    "fig4": "Figure 4: PD and CD over the number of evaluations.",
}.items():
    _paper_figure(_name, _what)


@figure_app.command("editing", cls=MultiValue)
def figure_editing(
    dataset: Datasets = None,
    nfe: Annotated[
        int | None, typer.Option("--nfe", min=1, help="Evaluations of the results shown; 17, or the nearest.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=8, help="Images in each panel.")] = 4,
    out: Out = Path("results"),
) -> None:
    """Editing: inputs, results and originals side by side, and quality against evaluations; PNG, PDF, SVG."""
    from cmbench.editing import records
    from cmbench.report import editing_figure

    for name in dataset or records.datasets(out):
        made = records.read(out, name)
        if made is None:
            raise UsageError(f"no editing measured on '{name}': `cmbench edit measure --dataset {name}` does")
        for path in [
            *editing_figure.panels(made, out, nfe=nfe, rows=rows),
            *editing_figure.quality(made, out),
        ]:
            print(path)
    if not dataset and not records.datasets(out):
        raise UsageError(f"no editing measured under {out}: `cmbench edit measure --dataset digits` does")


@figure_app.command("interpolation", cls=MultiValue)
def figure_interpolation(
    dataset: Datasets = None,
    method: Only = None,
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="NFE to show; all by default.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Seeds to show; all by default.")
    ] = None,
    between: Annotated[
        list[int] | None,
        typer.Option("--between", help="Pairs of samples to show; all by default."),
    ] = None,
    name: Name = "interpolation",
    out: Out = Path("results"),
) -> None:
    """Strips between the same pairs of samples, a row a method and NFE; PNG, PDF, SVG."""
    from cmbench.editing import strips
    from cmbench.errors import unknown
    from cmbench.report import interpolation_figure

    pairs = strips.pairs(between) if between else []
    found = strips.read_all(out)
    known = {strip.method for strip in found}
    if not found:
        raise UsageError(
            f"no strips under {out}/{strips.FOLDER}: `cmbench edit interpolate --out {out}` makes them"
        )
    for one in method or ():
        if one not in known:
            raise unknown("method with strips", one, known)
    chosen = [
        strip
        for strip in found
        if (not method or strip.method in method)
        and (not nfe or strip.nfe in nfe)
        and (not seed or strip.seed in seed)
        and (not pairs or strip.between in pairs)
    ]
    for one in dataset or sorted({strip.dataset for strip in chosen or found}):
        for path in interpolation_figure.draw(chosen, one, out, name=name):
            print(path)


def regenerate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Results folder.")] = Path("results/shipped"),
) -> None:
    """Make every table and figure of a results folder again, from its records alone."""
    from cmbench.report.regenerate import regenerate

    if not out.is_dir():
        raise UsageError(f"there is no folder {out}: `cmbench run --out {out}` makes it")
    made, skipped = regenerate(out)
    for path in made:
        print(path)
    for reason in skipped:
        console.say(f"not made: {reason}")


def _each(
    out: Path,
    datasets: list[str] | None,
    methods: list[str] | None,
    draw: "Callable[[list[Record], str], list[Path]]",
) -> None:
    from cmbench import records
    from cmbench.errors import unknown

    found = records.read(out)
    if not found:
        raise UsageError(f"no records under {out}/runs: `cmbench run --method cd --nfe 1 2` makes some")
    names = {record.method for record in found}
    for method in methods or ():
        if method not in names:
            raise unknown("measured method", method, names)
    chosen = [record for record in found if not methods or record.method in methods]
    for name in datasets or sorted({record.dataset for record in chosen}):
        for path in draw(chosen, name):
            print(path)


def _experiment(name: str, datasets: list[str] | None, out: Path) -> None:
    from cmbench.experiments import manifest
    from cmbench.report import curves

    parts = curves.PANELS.get(name, (name,))
    known = [one for one in manifest.read_all(out) if one.name in parts]
    names = datasets or sorted({one.dataset for one in known}) or ["digits"]
    for dataset in names:
        found, missing = curves.measured(out, name, dataset)
        if not found:
            run = f"`cmbench experiment {parts[0]} --dataset {dataset} --out {out}` runs it"
            raise UsageError(f"experiment '{name}' has not been run on '{dataset}' in {out}: {run}")
        if missing:
            console.say(f"{name} on {dataset} without {', '.join(missing)}: not run yet")
        for path in curves.draw(found, out, name):
            print(path)
