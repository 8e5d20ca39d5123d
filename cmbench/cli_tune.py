"""The command ``tune``: a search of re-noising levels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmbench import console
from cmbench.options import (
    Against,
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
    Preset,
    ProtocolName,
    Samples,
    Seeds,
    Settings,
    Weights,
)

if TYPE_CHECKING:
    from cmbench.tuning import Tuning


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=MultiValue)(tune)


def tune(
    method: Annotated[
        str, typer.Option("--method", "-m", help="A consistency method: cd, ct, ict, ect, ...")
    ],
    nfe: Annotated[
        list[int], typer.Option("--nfe", min=1, help="Numbers of network evaluations, 2 or more.")
    ],
    metric: Annotated[str, typer.Option("--metric", help="What to search by, of the protocol.")] = "fid",
    points: Annotated[
        int | None,
        typer.Option(
            "--points",
            help="Choose from a Karras grid of so many points; by default the training's, refined.",
        ),
    ] = None,
    scan: Annotated[
        int | None, typer.Option("--scan", help="Evaluate so many levels evenly instead of a ternary search.")
    ] = None,
    own_reference: Annotated[
        bool,
        typer.Option("--own-reference", help="Search on one half of the reference, confirm on the other."),
    ] = False,
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
    as_json: Json = False,
) -> None:
    """Search the re-noising levels of multistep consistency sampling, on held-out samples."""
    from cmbench import session

    session.choose_methods([method])  # before torch is imported: a typo is answered at once

    from cmbench import tuning

    nfes, seeds = sorted(set(nfe)), list(dict.fromkeys(seed))
    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out, samples, batch_size,
            protocol, weights, precision, not offline, progress.training, against,
        )  # fmt: skip
        how = tuning.How(metric, points, scan, own_reference)
        tuning.choose(method)
        workshop = session.open_workshop(options)
        common = workshop.common
        tuner = tuning.Tuner(
            workshop, session.open_engine(options, workshop), how, samples or common.samples,
            batch_size or common.batch_size, progress.advance,
        )  # fmt: skip
        tuner.check(method, nfes, seeds)
        found = []
        for each in seeds:
            for one in tuner.tune(method, nfes, each):
                found.append(one)
                if not as_json:  # now: what is found is stored, whatever becomes of the next
                    _show(one)
    if as_json:
        console.show_json([one.to_json() for one in found])
        return
    places = list(dict.fromkeys(one.path for one in found))
    console.say(f"stored: {', '.join(map(str, places))}")
    words = f"--method {method} --nfe {' '.join(map(str, nfes))} --seed {' '.join(map(str, seeds))}"
    console.say(f"to use them: cmbench run {words} --tuned")


def _show(one: "Tuning") -> None:
    """The evaluations of a search as a table, what was found, and how sure it is."""
    from cmbench import tuning

    best = list(one.found.taus)
    rows = []
    for row in one.found.search:
        spread = "" if row["std"] is None else f"± {row['std']:.2g}"
        mark = "found" if row["taus"] == best else ""
        rows.append((", ".join(f"{tau:.4g}" for tau in row["taus"]), f"{row['value']:.4g}", spread, mark))
    console.out.print(one.title, markup=False, highlight=False)
    console.show_rows(("LEVELS", one.metric, "±", ""), rows)
    for line in (tuning.verdict(one), tuning.doubt(one), f"the same by hand: --set {one.setting}"):
        if line:
            console.out.print(line, markup=False, highlight=False, soft_wrap=True)
