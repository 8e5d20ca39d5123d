"""The command line: parse, call, render."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cmbench import (
    cli_edit,
    cli_examine,
    cli_experiment,
    cli_figure,
    cli_metrics,
    cli_report,
    cli_tune,
    console,
)
from cmbench.errors import CmbenchError, UsageError, WorkError
from cmbench.options import (
    Against,
    BatchSize,
    Checkpoints,
    Data,
    Dataset,
    DeviceName,
    Force,
    Format,
    Json,
    Methods,
    MultiValue,
    Nfe,
    Offline,
    Out,
    Precision,
    Preset,
    ProtocolName,
    Samples,
    Seeds,
    Settings,
    Weights,
)


class Ordered(TyperGroup):
    """Lists commands in the order in which they are defined here."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The commands, unsorted."""
        return list(self.commands)


INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended

app = typer.Typer(
    cls=Ordered,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How good is this few-step image generator, at 1, 2, 4 evaluations, against the others?",
)


@app.command(cls=MultiValue)
def run(
    method: Methods,
    nfe: Nfe = None,
    dataset: Dataset = "digits",
    seed: Seeds = [0],  # noqa: B006 (typer reads it, nothing changes it)
    samples: Samples = None,
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    protocol: ProtocolName = None,
    against: Against = None,
    weights: Weights = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    force: Force = False,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Re-noise to the levels that `cmbench tune` has found.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train or load, sample, measure: one record for each method, NFE and seed."""
    from cmbench import session

    chosen = session.choose_methods(method)  # before torch is imported: a typo is answered at once

    from cmbench.benchmark import Failure, Plan

    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out, samples, batch_size,
            protocol, weights, precision, not offline, progress.training, against, tuned,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        if tuned and not any(one.renoising for one in chosen):
            raise UsageError("--tuned: none of these methods has re-noising levels")
        sweep = session.open_sweep(options, workshop, on_samples=progress.advance)
        outcomes, failures = [], []
        # All plans before any work: a wrong setting of the last method shows now, not after hours.
        plans = list(sweep.plans(chosen, list(dict.fromkeys(nfe or ())), list(dict.fromkeys(seed))))
        wanted = [plan for plan in plans if isinstance(plan, Plan)]
        for refused in plans:
            if isinstance(refused, str):
                console.say(refused)
        if not wanted:
            raise UsageError("none of these methods can do what was asked for")
        workshop.check_given([plan.need for plan in wanted])
        for made in sweep.run_all(wanted, force=force):
            if isinstance(made, Failure):
                failures.append(made)
                console.say(f"{made.plan.title} could not be made: {made.reason}")
            else:
                outcomes.append(made)
    if len(failures) == len(wanted) == 1:
        raise WorkError(failures[0].reason)
    stored = sum(not outcome.computed for outcome in outcomes)
    if stored:
        console.say(f"{stored} of {len(outcomes)} records were there already (--force computes them again)")
    if outcomes:
        console.show_records([outcome.record for outcome in outcomes], as_json)
    if failures:
        raise WorkError(f"{len(failures)} of {len(wanted)} records could not be made: see above")


@app.command(cls=MultiValue)
def train(
    method: Methods,
    dataset: Dataset = "digits",
    seed: Seeds = [0],  # noqa: B006
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="For methods with a network for each NFE.")
    ] = None,
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Train checkpoints (and the teachers they need) without measuring; prints their paths."""
    from cmbench import session

    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out,
            download=not offline, begin=progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        needs = {}
        for one in session.choose_methods(method):
            if one.train is None:
                raise UsageError(
                    f"method '{one.name}' trains nothing: it samples with another method's network"
                )
            for number in nfe or [1]:
                if reason := one.refuses(number, workshop.recipe(one)):
                    raise UsageError(f"{one.name} at NFE {number}: {reason}")
                for value in seed:
                    need = workshop.need(one, number, value)
                    needs[need.key] = need
        workshop.check_given(needs.values())
        paths = [workshop.ensure(need, force=force).path for need in needs.values()]
    for path in dict.fromkeys(paths):
        print(path)


@app.command(cls=MultiValue)
def sample(
    method: Annotated[str, typer.Option("--method", "-m", help="Method.")],
    nfe: Annotated[int, typer.Option("--nfe", min=1, help="Number of network evaluations.")],
    to: Annotated[Path, typer.Option("--to", help="grid.png, samples.npz, or a folder for PNG files.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed, of training and of samples.")] = 0,
    label: Annotated[
        list[int] | None, typer.Option("--label", help="Classes, in turn; by default drawn for each image.")
    ] = None,
    dataset: Dataset = "digits",
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    protocol: ProtocolName = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
) -> None:
    """Write images: a grid (PNG), an npz (arr_0, uint8 NHWC), or a folder of PNG files."""
    from cmbench import session
    from cmbench.sampling.export import export

    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out, batch_size=batch_size,
            protocol=protocol, download=not offline, begin=progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        written = export(
            workshop,
            session.choose_methods([method])[0],
            nfe=nfe,
            seed=seed,
            count=count,
            to=to,
            batch_size=batch_size or workshop.common.batch_size,
            quantizer=session.choose_protocol(protocol or workshop.common.protocol, None).quantizer,
            on_samples=progress.advance,
            labels=tuple(label or ()),
        )
    print(written)


@app.command(cls=MultiValue)
def table(
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="Data sets; all by default.")
    ] = None,
    paper: Annotated[
        int | None,
        typer.Option("--paper", min=1, max=2, help="The paper's Table 1 or 2: its rows and columns."),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Published figures alone.")] = False,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", help="Metrics to show, as fid is precision.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measured, published, difference: for the paper's rows.")
    ] = False,
    later: Annotated[
        bool, typer.Option("--later", help="Add published rows of methods later than the paper.")
    ] = False,
    fragment: Annotated[
        bool, typer.Option("--fragment", help="LaTeX, HTML: for a document of yours, not a whole one.")
    ] = False,
    format: Format = "rich",
    out: Out = Path("results"),
) -> None:
    """Print the tables, in the paper's layout: measured rows beside published ones."""
    from cmbench import records
    from cmbench.report import choosing

    found = [] if published else records.read(out)
    made = choosing.choose(found, dataset, paper, columns, published=published, compare=compare, later=later)
    if not made:
        console.say(choosing.hint(found, compare=compare))
        return
    console.show_tables(made, format, standalone=not fragment)


@app.command("records")
def records_(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of CSV.")] = False,
    out: Out = Path("results"),
) -> None:
    """Every record as one row with all its figures, as CSV: for pandas and spreadsheets."""
    from cmbench.report.frame import frame

    made = frame(_records(out))
    print(made.to_json(orient="records", indent=1) if as_json else made.to_csv(index=False), end="")


def _records(out: Path) -> list[Any]:
    from cmbench import records

    if found := records.read(out):
        return found
    raise UsageError(f"no records under {out}/runs: `cmbench run --method cd --nfe 1 2` makes some")


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, datasets, protocols, recipes or experiments.")
    ] = "methods",
    name: Annotated[str | None, typer.Argument(help="A method, to see all about it.")] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="rich, json, or for all methods md (docs/methods.md).")
    ] = "rich",
    as_json: Json = False,
) -> None:
    """What there is: methods, data sets, protocols, recipes, experiments."""
    from cmbench import listing

    if as_json or format == "json":
        print(listing.as_json(what, name))
    elif format not in ("rich", "md") or (format == "md" and name):
        raise UsageError(
            f"--format {format}: the formats are rich and json, and md for the list of all methods"
        )
    elif format == "md":
        print(listing.as_markdown(what), end="")
    elif name:
        console.show_facts(listing.one_method(what, name))
    else:
        console.out.print(listing.methods_by_group() if what == "methods" else listing.as_table(what))


@app.command()
def doctor(
    data: Data = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """What is installed, present or missing on this machine, and how to get each."""
    from cmbench import doctor as checks

    findings = checks.examine(data, weights)
    if as_json:
        print(checks.as_json(findings))
    else:
        console.out.print(checks.as_table(findings))


cli_figure.register(app)
cli_metrics.register(app)
cli_examine.register(app)
cli_tune.register(app)
cli_report.register(app)
cli_experiment.register(app)
cli_edit.register(app)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where a command fails.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Handle what stands before the command."""
    ctx.obj = debug
    if version:
        from cmbench import __version__

        print(f"cmbench {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(args: list[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 (failed work), 2 (wrong use) or 130 (interrupted)."""
    words = sys.argv[1:] if args is None else args
    try:
        status = app(words, standalone_mode=False, prog_name="cmbench")
        if status == INTERRUPTED:  # typer makes a status of Ctrl-C
            raise KeyboardInterrupt
    except CmbenchError as error:
        if "--debug" in words:
            raise
        console.fail(str(error))
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.fail("interrupted; the same command goes on where this one stopped")
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: end quietly, and keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        if "--debug" in words:
            raise
        if hasattr(error, "format_message"):  # the parser's own errors: unknown option, bad value
            message = error.format_message()
            if message:  # none where the command's help was what there is to say
                console.fail(message)
            status = 2 if message else 0
        else:
            console.fail(f"{type(error).__name__}: {error} (--debug shows where)")
            status = 1
    sys.exit(status if isinstance(status, int) else 0)
