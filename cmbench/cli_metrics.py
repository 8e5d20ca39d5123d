"""The commands around the metrics: score, compare, verify, protocols, reference."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cmbench import console
from cmbench.errors import UsageError, WorkError
from cmbench.options import (
    Against,
    BatchSize,
    Checkpoints,
    Data,
    DeviceName,
    Force,
    Json,
    MultiValue,
    Offline,
    Out,
    Precision,
    Preset,
    ProtocolName,
    Samples,
    Settings,
    Weights,
)

Dataset = Annotated[str, typer.Option("--dataset", "-d", help="Data set that the samples imitate.")]
reference_app = typer.Typer(no_args_is_help=True, help="Reference statistics: build, list, show, import.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(cls=MultiValue)(score)
    app.command(cls=MultiValue)(compare)
    app.command(cls=MultiValue)(verify)
    app.command("protocols", cls=MultiValue)(show_protocols)
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


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A run: method:nfe, as cd:2, cd:2:metric=l1, or the beginning of a record's key."
        ),
    ],
    b: Annotated[str, typer.Argument(help="The run to compare it with.")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="fid, is, precision, recall; all by default.")
    ] = None,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Data set of the runs.")] = "digits",
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seeds; by default all that both have.")
    ] = None,
    samples: Samples = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Name of their protocol.")] = None,
    out: Out = Path("results"),
    as_json: Json = False,
) -> None:
    """Is one run better than another? A paired test over samples of the same seeds."""
    from cmbench import comparing, records

    chosen = comparing.pairs(
        records.read(out), a, b, dataset=dataset, seeds=seed, samples=samples, protocol=protocol
    )
    results = comparing.compare(out, chosen, metric)
    if as_json:
        console.show_json([result.to_json() for result in results])
        return
    for result in results:
        print(result.sentence())
    first = chosen[0].a
    seeds = ("seeds " if len(chosen) > 1 else "seed ") + ", ".join(str(pair.a.seed) for pair in chosen)
    console.say(
        f"{first.samples:,} samples a run, {seeds}, protocol {first.protocol} "
        f"({first.protocol_fingerprint[:8]}); ±: standard error over the pairs of samples"
    )


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
            engine,
            images,
            to=to,
            force=force,
            progress=lambda done, all_: progress.advance(title, done, all_),
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
    from cmbench.metrics import importing

    if protocol and name:
        raise UsageError("--protocol and --as both name the file: give one of them")
    chosen = session.choose_protocol(protocol, None) if protocol else None
    taken = importing.take(path, protocol=chosen, dataset=dataset, name=name, replace=force)
    for note in taken.notes:
        console.say(note)
    print(taken.path)


def show_protocols(
    name: Annotated[
        str | None, typer.Argument(help="A protocol, or with --compare the samples: folder, .zip, .npz.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure the same samples under other quantisers and resizes.")
    ] = False,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Compare on samples of this method, made again.")
    ] = None,
    nfe: Annotated[int, typer.Option("--nfe", help="Its number of network evaluations.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Its seed.")] = 0,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Data set to compare with.")] = "digits",
    protocol: ProtocolName = None,
    samples: Samples = None,
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    weights: Weights = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Every protocol, all of one, or (--compare) what quantiser and resize move on given samples."""
    if not compare:
        _describe_protocols(name, as_json)
        return
    if (name is None) == (method is None):
        raise UsageError("--compare takes samples: either a path, or --method and --nfe to make them again")
    from cmbench import sensitivity, session
    from cmbench.metrics import protocols

    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out,
            download=not offline, begin=progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        common = workshop.common
        default = common.protocol if method else protocols.default_for(dataset).name
        chosen = session.choose_protocol(protocol or default, None)
        engines = sensitivity.open_engines(
            chosen, device=workshop.device, weights=weights, download=not offline
        )
        size = batch_size or common.batch_size
        if not method:
            batches, total, floats = sensitivity.stored(Path(name or ""), samples, size)
        else:
            made = session.choose_methods([method])[0]
            total, floats = samples or common.samples, True
            batches = sensitivity.generated(workshop, made, nfe, seed, total, size)
        quantizers = sensitivity.quantizers(chosen, floats)
        if len(engines) * len(quantizers) == 1:
            raise UsageError(
                f"nothing to compare: {name} is quantised already, and {chosen.extractors[0].name} takes images of "
                "their own size (give float images, or --method and --nfe)"
            )
        shown = progress.counted("samples", batches, total)
        found = sensitivity.measure(engines, quantizers, shown, workshop.images, progress.advance)
    if as_json:
        console.show_json([row.to_json() for row in found])
        return
    _show_sensitivity(found, chosen.metric_titles)
    if not floats:
        console.say(
            "uint8 samples are quantised already: float images, or --method, show what the quantiser moves"
        )


def _show_sensitivity(found: Any, titles: dict[str, str]) -> None:
    from cmbench.report.layout import number

    rows = []
    for key, title in titles.items():
        for row in found:
            metric = row.metrics[key]
            value = metric.reason or number(key, metric.value or 0.0)
            difference, std = row.shifts.get(key, (None, None))
            shift = "" if difference is None else f"{difference:+.2g} ± {std:.1g}"
            rows.append((title, row.quantizer, row.resize, value, shift))
            title = ""
    console.show_rows(("metric", "quantiser", "resize", "value", "difference from the first"), rows)
    console.say("±: standard error over the pairs of samples")


def verify(
    full: Annotated[
        bool, typer.Option("--full", help="Also compare with SciPy and torch-fidelity, on the same inputs.")
    ] = False,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Known inputs through this installation's metrics: does it compute what it should?"""
    from cmbench import verify as checks

    found = list(checks.run(full=full, weights=weights))
    if as_json:
        console.show_json([check.to_json() for check in found])
    else:
        words = {True: "ok", False: "FAILED", None: "-"}
        rows = [
            (check.name, _shown(check.expected), _shown(check.got), f"{check.tolerance:g}", words[check.ok])
            for check in found
        ]
        console.show_rows(("check", "expected", "got", "tolerance", "ok"), rows)
    failed = [check.name for check in found if check.ok is False]
    if failed:
        raise WorkError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def _shown(values: Any) -> str:
    return values if isinstance(values, str) else " ".join(f"{value:.6g}" for value in values)


def _describe_protocols(name: str | None, as_json: bool) -> None:
    from cmbench.metrics import protocols

    if name is not None:
        chosen = protocols.from_toml(Path(name)) if name.endswith(".toml") else protocols.get(name)
        facts = {"fingerprint": chosen.fingerprint, **chosen.to_json()}
        console.show_json(facts) if as_json else console.show_facts(facts)
        return
    every = [protocols.get(name) for name in protocols.names()]
    if as_json:
        console.show_json([{"fingerprint": one.fingerprint, **one.to_json()} for one in every])
        return
    rows = [
        (
            one.name,
            one.quantizer,
            "\n".join(f"{spec.name}, {spec.resize}" for spec in one.extractors),
            f"{one.samples:,}",
            ", ".join(one.metric_titles.values()),
            one.fingerprint[:8],
        )
        for one in every
    ]
    heads = ("name", "quantiser", "extractor, resize", "samples", "metrics", "hash")
    console.show_rows(heads, rows)
