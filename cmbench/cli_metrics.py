"""The commands around the metrics: score, compare, verify, protocols, reference."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cmbench import console
from cmbench.errors import UsageError
from cmbench.options import (
    Against,
    BatchSize,
    Data,
    DeviceName,
    Force,
    Json,
    MultiValue,
    Offline,
    Out,
    Precision,
    ProtocolName,
    Samples,
    Weights,
)

Dataset = Annotated[str, typer.Option("--dataset", "-d", help="Data set that the samples imitate.")]
reference_app = typer.Typer(no_args_is_help=True, help="Reference statistics: build, list, show, import.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(cls=MultiValue)(score)
    app.add_typer(reference_app, name="reference")


def score(
    path: Annotated[Path, typer.Argument(help="Samples: a folder, .zip or .npz of uint8 images.")],
    label: Annotated[str, typer.Option("--label", "-l", help="Name in tables, as 'StyleGAN-XL'.")],
    nfe: Annotated[int, typer.Option("--nfe", help="Network evaluations a sample took.")],
    dataset: Dataset = "cifar10",
    group: Annotated[str | None, typer.Option("--group", help="Section of the table.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="As 'Sauer et al., 2022'.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Short name, for selectors.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of these samples, as their maker says.")] = 0,
    samples: Samples = None,
    data: Data = None,
    protocol: ProtocolName = None,
    against: Against = None,
    weights: Weights = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure samples made elsewhere, by any system; they become a record like any other."""
    from cmbench import scoring

    of = scoring.system(
        dataset, label, nfe, group=group, reference=reference, method=method, seed=seed
    )  # checked before anything is loaded
    images = scoring.open_samples(path)
    engine = open_engine(dataset, protocol, against, weights, precision, batch_size, device, offline)
    known = scoring.open_known(dataset, data, not offline, engine.protocol)
    with console.bars() as progress:
        work = scoring.Scoring(engine, known, images, samples or len(images), out, progress.advance)
        outcome = work.run(of, force=force)
    if not outcome.computed:
        console.say("measured already, nothing was computed (--force measures again)")
    console.show_records([outcome.record], as_json)


def open_engine(
    dataset: str,
    protocol: str | None,
    against: str | None,
    weights: Path | None,
    precision: str | None,
    batch_size: int | None,
    device: str,
    offline: bool,
) -> Any:
    """The engine of a protocol: the named one, or the one that the literature uses for the data set."""
    from cmbench import session
    from cmbench.metrics import protocols
    from cmbench.metrics.engine import BATCH, Engine
    from cmbench.metrics.library import with_reference

    chosen = session.choose_protocol(protocol or protocols.default_for(dataset).name, precision)
    if against:
        chosen = with_reference(chosen, against, dataset, not offline)
    return Engine.open(
        chosen,
        device=session.choose_device(device),
        weights=weights,
        batch_size=batch_size or BATCH,
        download=not offline,
    )


@reference_app.command("build", cls=MultiValue)
def reference_build(
    dataset: Dataset = "cifar10",
    protocol: ProtocolName = None,
    data: Data = None,
    to: Annotated[Path | None, typer.Option("--to", help="Also write this file, for --against.")] = None,
    weights: Weights = None,
    precision: Precision = None,
    device: DeviceName = "auto",
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Compute the statistics of a data set's images, and print where they are kept."""
    from cmbench.data import open_dataset
    from cmbench.metrics import library

    engine = open_engine(dataset, protocol, None, weights, precision, None, device, offline)
    images = open_dataset(dataset, data, not offline)
    with console.bars() as progress:
        title = f"{images.title}, protocol {engine.protocol.name}"
        made = library.build(
            engine, images, to=to, force=force, progress=lambda done, all_: progress.advance(title, done, all_)
        )
    print(made)


@reference_app.command("list")
def reference_list(as_json: Json = False) -> None:
    """What is kept in the cache, and what the protocols look for in vain."""
    from cmbench.metrics import library

    found = library.entries()
    if as_json:
        console.show_json([entry.to_json() for entry in found])
        return
    rows = [
        (entry.name, entry.state, _layers(entry), "\n".join(entry.used_by), entry.origin) for entry in found
    ]
    console.show_rows(("name", "state", "layers", "used by", "origin"), rows)


def _layers(entry: Any) -> str:
    lines = [
        f"{name} {size.dimensions}-d" + (f", {size.features:,} rows" if size.features else "")
        for name, size in entry.layers.items()
    ]
    return "\n".join([*lines, f"{entry.images:,} images"] if entry.images else lines)


@reference_app.command("show")
def reference_show(
    name: Annotated[str, typer.Argument(help="Name, or file.")],
    as_json: Json = False,
) -> None:
    """Everything about one reference: layers, images, hash, where it comes from."""
    from cmbench.metrics import library

    facts = library.describe(library.find(name))
    if as_json:
        console.show_json(facts)
    else:
        console.show_facts(facts)


@reference_app.command("import", cls=MultiValue)
def reference_import(
    path: Annotated[Path, typer.Argument(help="Statistics: .npz of ADM, EDM, clean-fid, pytorch-fid; .pkl.")],
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Keep it under the name that this protocol looks for.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Which of the protocol's references it is.")
    ] = None,
    name: Annotated[str | None, typer.Option("--as", help="Keep it under this name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of this name.")] = False,
) -> None:
    """Check a published statistics file and keep it where protocols find it."""
    from cmbench import session
    from cmbench.metrics import library

    if protocol and name:
        raise UsageError("--protocol and --as both name the file: give one of them")
    chosen = session.choose_protocol(protocol, None) if protocol else None
    taken = library.take(path, protocol=chosen, dataset=dataset, name=name, replace=force)
    for note in taken.notes:
        console.say(note)
    print(taken.path)
