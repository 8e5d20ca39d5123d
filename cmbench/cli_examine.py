"""The command ``examine``: what FID does not show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmbench import console
from cmbench.errors import UsageError
from cmbench.options import (
    BatchSize,
    Checkpoints,
    Data,
    Dataset,
    DeviceName,
    Force,
    Json,
    MultiValue,
    Offline,
    Out,
    Preset,
    ProtocolName,
    Samples,
    Seeds,
    Settings,
)

if TYPE_CHECKING:
    from cmbench.records import Record


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=MultiValue)(examine)


def examine(
    path: Annotated[
        Path | None, typer.Argument(help="Samples made elsewhere, instead of --method: folder, .zip, .npz.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Methods, or 'all'; see `cmbench list`.")
    ] = None,
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="Numbers of network evaluations.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option("--what", help="diversity, drift, endpoint, memorization; all by default."),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", "-l", help="Name of samples made elsewhere, in tables.")
    ] = None,
    dataset: Dataset = "digits",
    seed: Seeds = [0],  # noqa: B006 (typer reads it, nothing changes it)
    samples: Samples = None,
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    protocol: ProtocolName = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What FID does not show: diversity, drift across NFE, distance to the teacher's end point, memorisation."""
    from cmbench import session

    if (path is None) == (not method):
        raise UsageError("examine takes samples: either a path, or --method and --nfe to make them")
    if not nfe:
        raise UsageError("--nfe: say how many network evaluations a sample takes")
    if path is not None and (label is None or len(nfe) > 1 or len(seed) > 1):
        raise UsageError("samples at a path have one --label, one --nfe and one --seed")
    chosen = session.choose_methods(method or ())  # before torch is imported: a typo is answered at once

    from cmbench import examining, scoring, subjects

    figures = examining.choose(what)
    nfes, seeds = list(dict.fromkeys(nfe)), list(dict.fromkeys(seed))
    of = scoring.system(dataset, label or "", nfes[0], seed=seeds[0]) if path else None
    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out,
            download=not offline, begin=progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        common = workshop.common
        count = samples or examining.SAMPLES
        if path is not None and of is not None:
            images = scoring.open_samples(path)
            count, quantizer = samples or min(count, len(images)), "as stored"
            made: list[subjects.Subject | str] = [subjects.stored(of, images, count, workshop.images)]
        else:
            quantizer = session.choose_protocol(protocol or common.protocol, None).quantizer
            runs = subjects.Runs(
                workshop, count, batch_size or common.batch_size, quantizer,
                out / examining.FOLDER / "ends", progress.advance,
            )  # fmt: skip
            made = list(runs.subjects(chosen, nfes, seeds))
            workshop.check_given(runs.needs(chosen, nfes, seeds))
        examiner = examining.Examiner(
            workshop.images, figures, count, quantizer, workshop.device, not offline, out, progress.advance
        )
        outcomes = []
        for subject in made:
            if isinstance(subject, str):
                console.say(subject)
            elif examiner.titles(subject):
                outcomes.append(examiner.run(subject, force=force))
    if not outcomes:
        raise UsageError("there is nothing to examine: drift takes two --nfe that the method can do")
    stored = sum(not outcome.computed for outcome in outcomes)
    if stored:
        console.say(f"{stored} of {len(outcomes)} records were there already (--force computes them again)")
    _show([outcome.record for outcome in outcomes], as_json)
    if "memorization" in figures:
        console.say(f"samples nearest to training images, above these: {examiner.picture('*').parent}")


def _show(found: "list[Record]", as_json: bool) -> None:
    """The records; a column without any figure becomes a line that says why."""
    values = {name: False for record in found for name in record.metrics}
    for record in found:
        for name, metric in record.metrics.items():
            values[name] |= metric.value is not None
    shown = [name for name, there in values.items() if there]
    console.show_records(found, as_json, shown or None)
    if not shown:  # then the table says it
        return
    reasons: dict[str, dict[str, None]] = {}
    for record in found:
        titles = record.identity["protocol"]["metric_titles"]
        for name, metric in record.metrics.items():
            if not values[name]:
                reasons.setdefault(metric.reason or "", {})[titles[name]] = None
    for reason, names in reasons.items():
        console.say(f"not computed ({', '.join(names)}): {reason}")
