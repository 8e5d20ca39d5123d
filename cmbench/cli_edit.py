"""The commands ``edit ...``: zero-shot editing, and its measurement."""

from collections.abc import Callable, Sequence
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
    MultiValue,
    Offline,
    Out,
    Preset,
    Seeds,
    Settings,
)

if TYPE_CHECKING:
    from cmbench.editing.desk import Desk
    from cmbench.editing.records import Editing
    from cmbench.editing.tasks import Pixels, Problem
    from cmbench.session import Options

app = typer.Typer(
    no_args_is_help=True,
    help="Zero-shot editing with a consistency model: inpaint, colorize, superres, stroke, denoise, interpolate.",
)

Images = Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)]
To = Annotated[Path, typer.Option("--to", help="result.png (several results as a grid), or a folder.")]
MethodName = Annotated[
    str | None,
    typer.Option("--method", "-m", help="Method with a consistency function: that of --checkpoint, else cd."),
]
DatasetName = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Data set: that of --checkpoint, else digits.")
]
Evaluations = Annotated[
    int | None,
    typer.Option(
        "--nfe", min=1, help="Network evaluations; by default every level of the training grid, or 40."
    ),
]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="Results for each image.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed, of training and of all noise.")]
Labels = Annotated[
    list[int] | None,
    typer.Option("--label", help="Classes of the images, in turn, for a network that takes them."),
]
Fit = Annotated[bool, typer.Option("--fit", help="Cut and scale images to the network's size and colours.")]
Sigma = Annotated[float | None, typer.Option("--sigma", help="First noise level, on the scale [-1, 1].")]
Mask = Annotated[
    Path, typer.Option("--mask", help="Mask of the network's size: white is made, black is kept.")
]
MaybeMask = Annotated[
    Path | None, typer.Option("--mask", help="Change only where this mask is white.", show_default=False)
]


def register(root: typer.Typer) -> None:
    """Add the commands to the command line."""
    root.add_typer(app, name="edit")


def _desk(
    method: str | None,
    dataset: str | None,
    options: "Callable[[str], Options]",
    checkpoint: Sequence[Path] | None,
) -> "Desk":
    from cmbench.editing.desk import open_desk

    return open_desk(method, dataset, options, checkpoint or ())


def _edit(
    task: str, images: Sequence[Path], prepare: "Callable[[Desk], tuple[Problem, Sequence[str]]]", *,
    method: str | None, dataset: str | None, nfe: int | None, count: int, seed: int, label: list[int] | None,
    data: Path | None, preset: str, settings: list[str] | None, checkpoint: list[Path] | None,
    batch_size: int | None, device: str, out: Path, offline: bool, to: Path,
) -> None:  # fmt: skip
    """What the commands share: open the network, make the problem, solve it, write the results."""
    from cmbench import methods
    from cmbench.editing import files

    if method is not None:
        methods.get(method)  # before torch is imported: a typo is answered at once
    files.check_target(to)
    with console.bars() as progress:
        from cmbench import session

        desk = _desk(
            method, dataset,
            lambda name: session.Options(
                name, data, preset, settings or (), checkpoint or (), device, out, batch_size=batch_size,
                download=not offline, begin=progress.training,
            ),
            checkpoint,
        )  # fmt: skip
        problem, names = prepare(desk)
        made = desk.edit(
            problem, nfe=nfe, seed=seed, count=count, labels=tuple(label or ()),
            batch_size=batch_size, progress=lambda done, total: progress.advance(task, done, total),
        )  # fmt: skip
    _written(made, images, names, task, count, to)


def _written(
    made: "Pixels", images: Sequence[Path], names: Sequence[str], task: str, count: int, to: Path
) -> None:
    from cmbench.editing import files

    own = list(names) or files.unique_names(images, task, count)
    for path in files.write(made, own, to, columns=count if count > 1 else None):
        print(path)


@app.command(cls=MultiValue)
def inpaint(
    images: Images, mask: Mask, to: To, method: MethodName = None, nfe: Evaluations = None, count: Count = 1,
    seed: Seed = 0, label: Labels = None, fit: Fit = False, dataset: DatasetName = None, data: Data = None,
    preset: Preset = "quick", settings: Settings = None, checkpoint: Checkpoints = None,
    batch_size: BatchSize = None, device: DeviceName = "auto", out: Out = Path("results"),
    offline: Offline = False,
) -> None:  # fmt: skip
    """Make the pixels that are white in the mask; the others stay as they are."""

    def prepare(desk: "Desk") -> "tuple[Problem, Sequence[str]]":
        from cmbench.editing import tasks

        return tasks.inpainting(desk.read(images, fitted=fit), desk.mask(mask, fitted=fit)), ()

    _edit("inpaint", images, prepare, method=method, dataset=dataset, nfe=nfe, count=count, seed=seed,
          label=label, data=data, preset=preset, settings=settings, checkpoint=checkpoint,
          batch_size=batch_size, device=device, out=out, offline=offline, to=to)  # fmt: skip


@app.command(cls=MultiValue)
def colorize(
    images: Images, to: To, method: MethodName = None, nfe: Evaluations = None, count: Count = 1,
    seed: Seed = 0, label: Labels = None, fit: Fit = False, dataset: DatasetName = None, data: Data = None,
    preset: Preset = "quick", settings: Settings = None, checkpoint: Checkpoints = None,
    batch_size: BatchSize = None, device: DeviceName = "auto", out: Out = Path("results"),
    offline: Offline = False,
) -> None:  # fmt: skip
    """Give colour to grey images (of a colour image the luma is read); the luma of each pixel stays as it is."""

    def prepare(desk: "Desk") -> "tuple[Problem, Sequence[str]]":
        from cmbench.editing import tasks

        desk.check_colour()
        return tasks.colorization(desk.read(images, fitted=fit)), ()

    _edit("colorize", images, prepare, method=method, dataset=dataset, nfe=nfe, count=count, seed=seed,
          label=label, data=data, preset=preset, settings=settings, checkpoint=checkpoint,
          batch_size=batch_size, device=device, out=out, offline=offline, to=to)  # fmt: skip


@app.command(cls=MultiValue)
def superres(
    images: Images, to: To,
    factor: Annotated[int, typer.Option("--factor", min=2, help="Side of the blocks whose means are given.")] = 2,
    method: MethodName = None, nfe: Evaluations = None, count: Count = 1, seed: Seed = 0, label: Labels = None,
    fit: Fit = False, dataset: DatasetName = None, data: Data = None, preset: Preset = "quick",
    settings: Settings = None, checkpoint: Checkpoints = None, batch_size: BatchSize = None,
    device: DeviceName = "auto", out: Out = Path("results"), offline: Offline = False,
) -> None:  # fmt: skip
    """Enlarge images by a factor to the network's size (of one of that size the block means are read)."""

    def prepare(desk: "Desk") -> "tuple[Problem, Sequence[str]]":
        from cmbench.editing import tasks

        desk.check_factor(factor)
        return tasks.superresolution(desk.read(images, fitted=fit, smaller=factor), factor), ()

    _edit("superres", images, prepare, method=method, dataset=dataset, nfe=nfe, count=count, seed=seed,
          label=label, data=data, preset=preset, settings=settings, checkpoint=checkpoint,
          batch_size=batch_size, device=device, out=out, offline=offline, to=to)  # fmt: skip


@app.command(cls=MultiValue)
def stroke(
    images: Images, to: To, sigma: Sigma = None, mask: MaybeMask = None, method: MethodName = None,
    nfe: Evaluations = None, count: Count = 1, seed: Seed = 0, label: Labels = None, fit: Fit = False,
    dataset: DatasetName = None, data: Data = None, preset: Preset = "quick", settings: Settings = None,
    checkpoint: Checkpoints = None, batch_size: BatchSize = None, device: DeviceName = "auto",
    out: Out = Path("results"), offline: Offline = False,
) -> None:  # fmt: skip
    """Make images of stroke paintings: noise of --sigma drowns the strokes' detail, the network puts in its own."""

    def prepare(desk: "Desk") -> "tuple[Problem, Sequence[str]]":
        from cmbench.editing import tasks

        where = desk.mask(mask, fitted=fit) if mask else None
        return tasks.stroke(desk.read(images, fitted=fit), desk.stroke_level(sigma), where), ()

    _edit("stroke", images, prepare, method=method, dataset=dataset, nfe=nfe, count=count, seed=seed,
          label=label, data=data, preset=preset, settings=settings, checkpoint=checkpoint,
          batch_size=batch_size, device=device, out=out, offline=offline, to=to)  # fmt: skip


@app.command(cls=MultiValue)
def denoise(
    images: Images, to: To,
    sigma: Annotated[float, typer.Option("--sigma", help="Standard deviation of the noise in grey levels / 127.5.")],
    add: Annotated[bool, typer.Option("--add", help="The images are clean: add the noise first.")] = False,
    method: MethodName = None, nfe: Evaluations = 1, count: Count = 1, seed: Seed = 0, label: Labels = None,
    fit: Fit = False, dataset: DatasetName = None, data: Data = None, preset: Preset = "quick",
    settings: Settings = None, checkpoint: Checkpoints = None, batch_size: BatchSize = None,
    device: DeviceName = "auto", out: Out = Path("results"), offline: Offline = False,
) -> None:  # fmt: skip
    """Remove Gaussian noise of a known level."""

    def prepare(desk: "Desk") -> "tuple[Problem, Sequence[str]]":
        from cmbench.editing import tasks

        desk.check_level(sigma)
        read = desk.read(images, fitted=fit)
        noise = tasks.noise_for(seed, range(len(images)), desk.shape) if add else 0
        return tasks.denoising(read + sigma * noise, sigma), ()

    _edit("denoise", images, prepare, method=method, dataset=dataset, nfe=nfe, count=count, seed=seed,
          label=label, data=data, preset=preset, settings=settings, checkpoint=checkpoint,
          batch_size=batch_size, device=device, out=out, offline=offline, to=to)  # fmt: skip


@app.command(cls=MultiValue)
def interpolate(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Two image files; without, samples.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="result.png or a folder; strips between samples need none.", show_default=False),
    ] = None,
    between: Annotated[
        list[int],
        typer.Option("--between", help="Samples of the seed to go between, without images; pairs: 0 1 2 3."),
    ] = [0, 1],  # noqa: B006
    steps: Annotated[int, typer.Option("--steps", min=2, help="Images in a strip, both ends included.")] = 8,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m",
            help="Between samples any method, between images one with a consistency function: that of --checkpoint, "
            "else cd.",
        ),
    ] = None,
    nfe: Annotated[
        int | None, typer.Option("--nfe", min=1, help="Network evaluations between samples; the method's fewest.")
    ] = None,
    seed: Seed = 0, label: Labels = None, fit: Fit = False, dataset: DatasetName = None,
    data: Data = None, preset: Preset = "quick", settings: Settings = None, checkpoint: Checkpoints = None,
    device: DeviceName = "auto", out: Out = Path("results"), offline: Offline = False,
) -> None:  # fmt: skip
    """From one image to another through noise space; images are taken there by the EDM network's ODE.

    Strips between samples are kept under OUT for `cmbench figure interpolation`.
    """
    from cmbench import methods
    from cmbench.editing import files, strips

    _check_ends(images or (), to, nfe)
    pairs = strips.pairs(between)
    if method is not None:
        methods.get(method)
    if to:
        files.check_target(to)
    with console.bars() as progress:
        from cmbench import session

        def options(name: str) -> "Options":
            return session.Options(
                name, data, preset, settings or (), checkpoint or (), device, out,
                download=not offline, begin=progress.training,
            )  # fmt: skip

        if images:
            desk = _desk(method, dataset, options, checkpoint)
            made = [desk.interpolate(desk.read(images, fitted=fit), steps, tuple(label or ()))]
        else:
            from cmbench.editing import interpolation

            generator = interpolation.open_generator(method, dataset, nfe, seed, options, checkpoint or ())
            made = []
            for ends in pairs:
                strip, pixels = interpolation.interpolate(generator, ends, steps, label[0] if label else None)
                made.append(pixels)
                kept = strips.write(out, strip, pixels)
                if not to:
                    print(kept)
    if to:
        import numpy as np

        names = [f"interpolate-{place:03d}" for place in range(steps * len(made))]
        for path in files.write(np.concatenate(made), names, to, columns=steps):
            print(path)


def _check_ends(images: Sequence[Path], to: Path | None, nfe: int | None) -> None:
    if images and len(images) != 2:
        raise UsageError(
            f"interpolate takes two images, or none to go between two samples; not {len(images)}"
        )
    if images and to is None:
        raise UsageError("interpolate: name the file for the strip between the two images, --to strip.png")
    if images and nfe not in (None, 1):
        raise UsageError(
            f"--nfe {nfe}: images are reached with one evaluation; --nfe is for strips between samples"
        )


@app.command(cls=MultiValue)
def measure(
    dataset: Dataset = "digits",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="inpaint, superres, colorize, stroke, denoise; all that the images allow."
        ),
    ] = None,
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="Methods with a consistency function.")
    ] = ["cd"],  # noqa: B006 (typer reads it, nothing changes it)
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="Numbers of evaluations; 1 to 65 by default.")
    ] = None,
    seed: Seeds = [0],  # noqa: B006
    images: Annotated[int | None, typer.Option("--images", "-n", min=1, help="How many images; 200.")] = None,
    originals: Annotated[
        Path | None,
        typer.Option("--originals", help="Edit these images, not the data set's: folder, .zip, .npz."),
    ] = None,
    data: Data = None,
    preset: Preset = "quick",
    settings: Settings = None,
    checkpoint: Checkpoints = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    out: Out = Path("results"),
    offline: Offline = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """How near edits of real images come to the originals, beside diffusion at equal evaluations."""
    from cmbench import session

    chosen = session.choose_methods(method)

    from cmbench.data import open_dataset
    from cmbench.editing.measure import IMAGES, NFES, run_editing

    with console.bars() as progress:
        options = session.Options(
            dataset, data, preset, settings or (), checkpoint or (), device, out,
            download=not offline, begin=progress.training,
        )  # fmt: skip
        workshop = session.open_workshop(options)
        made = run_editing(
            workshop,
            chosen=chosen,
            wanted=task or (),
            nfes=nfe or NFES,
            seeds=seed,
            images=images or IMAGES,
            originals=open_dataset("images", originals) if originals else None,
            batch_size=batch_size,
            download=not offline,
            force=force,
            on_images=progress.advance,
        )
    if as_json:
        console.show_json(made.to_json())
    else:
        show(made)


def show(made: "Editing") -> None:
    """A table for each task, and why a column is missing."""
    from cmbench.report.page_editing import editing_tables

    for table in editing_tables(made):
        console.out.print(f"{table.title}: {table.setting}", markup=False, highlight=False)
        console.show_rows(table.heads, table.rows)
        console.out.print()
    for name, reason in made.missing.items():
        console.say(f"not computed ({made.titles.get(name, name)}): {reason}")
