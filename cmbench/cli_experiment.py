"""The command ``experiment``: arms compared over a training, or over NFE."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmbench import console
from cmbench.errors import UsageError, WorkError
from cmbench.options import (
    BatchSize,
    Checkpoints,
    Data,
    Dataset,
    DeviceName,
    Json,
    MultiValue,
    Offline,
    Out,
    Precision,
    ProtocolName,
    Samples,
    Settings,
    Weights,
)

if TYPE_CHECKING:
    from cmbench.experiments.manifest import Manifest


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=MultiValue)(experiment)


def experiment(
    name: Annotated[
        str | None,
        typer.Argument(
            help="fig3a, fig4, table1, ..., or a TOML file of your own; none lists what there is."
        ),
    ] = None,
    dataset: Dataset = "digits",
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Seeds; by default the experiment's.")
    ] = None,
    samples: Samples = None,
    data: Data = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Recipe preset; by default the experiment's.")
    ] = None,
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    protocol: ProtocolName = None,
    weights: Weights = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Run an experiment, such as a panel of the paper's Figure 3: arms that share data, teacher and metrics."""
    from cmbench.experiments import manifest, recipe

    if name is None:
        _list(as_json)
        return
    if name == "editing":  # no arms of trainings, but images edited: an engine and results of its own
        if protocol or weights or precision:
            raise UsageError(
                "editing: --protocol, --weights and --precision do not apply; see cmbench edit measure --help"
            )
        from cmbench.cli_edit import measure

        measure(
            dataset=dataset, seed=seed or [0, 1, 2], images=samples, data=data, preset=preset or "quick",
            settings=settings, checkpoint=checkpoint, batch_size=batch_size, device=device, out=out,
            offline=offline, as_json=as_json,
        )  # fmt: skip
        return
    chosen = recipe.on(
        *recipe.load(name), dataset, preset
    )  # before torch is imported: a typo is answered at once

    from cmbench import session
    from cmbench.experiments import engine

    with console.bars() as progress:
        options = session.Options(
            dataset, data, chosen.preset, settings or (), checkpoint or (), device, out,
            samples or chosen.samples, batch_size, protocol, weights, precision, not offline, progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options, under=chosen.settings)
        advance = progress.advance if console.err.is_terminal else lambda *_: None
        sweep = session.open_sweep(options, workshop, on_samples=advance)
        seeds = tuple(dict.fromkeys(seed or chosen.seeds))
        made = engine.Run(engine.resolved(chosen), sweep, seeds, console.say).run()
    if as_json:
        console.show_json(made.to_json())
    else:
        _show(made, out)
        console.say(f"manifest: {manifest.path(out, made.name, dataset)}")
        console.say(f"to draw it: cmbench figure {made.name} --dataset {dataset} --out {out}")
    if failures := sum(len(arm.failures) for arm in made.arms):
        raise WorkError(f"{failures} parts of {made.name} could not be made: see above")


def _list(as_json: bool) -> None:
    from cmbench import listing

    if as_json:
        print(listing.as_json("experiments"))
    else:
        console.out.print(listing.as_table("experiments"))
        console.out.print(
            "and editing: zero-shot edits beside diffusion's, as cmbench edit measure makes them"
        )


def _show(made: "Manifest", out: Path) -> None:
    """Arms against milestones or NFE: the mean over seeds."""
    columns = sorted({point.step or point.nfe for arm in made.arms for point in arm.points})
    head = "step" if made.x == "step" else "NFE"
    rows = []
    for arm in made.arms:
        found: dict[int, list[float]] = {}
        for point in arm.points:
            metric = point.read(out).metrics.get(made.metric)
            if metric is not None and metric.value is not None:
                found.setdefault(point.step or point.nfe, []).append(metric.value)
        rows.append([arm.label, *(_mean(found.get(column, ())) for column in columns)])
    console.out.print(
        f"[bold]{made.title}[/], {made.dataset}: {made.metric}, mean over seeds", highlight=False
    )
    console.show_rows([head, *map(str, columns)], rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else "-"
