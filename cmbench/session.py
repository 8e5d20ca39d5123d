"""From the options of a command to the parts that do the work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench import checkpoints, methods, recipes, registry
from cmbench.errors import UsageError
from cmbench.methods import Method
from cmbench.recipes import Common
from cmbench.workshop import Begin, Workshop

if TYPE_CHECKING:
    from torch import device as Device

    from cmbench.benchmark import Sweep
    from cmbench.metrics.engine import Engine
    from cmbench.metrics.protocols import Protocol

ALL = "all"


@dataclass(frozen=True)
class Options:
    """What ``run``, ``train`` and ``sample`` have in common; see the command line's help for each."""

    dataset: str = "digits"
    data: Path | None = None
    preset: str = "quick"
    settings: Sequence[str] = ()
    checkpoint: Sequence[Path] = ()
    device: str = "auto"
    out: Path = Path("results")
    samples: int | None = None
    batch_size: int | None = None
    protocol: str | None = None
    weights: Path | None = None
    precision: str | None = None
    download: bool = True
    begin: Begin = field(default=lambda _title: lambda _progress: None)
    against: str | None = None
    tuned: bool = False


def choose_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, once each; ``all`` stands for every registered one."""
    wanted = registry.names("method") if ALL in names else list(dict.fromkeys(names))
    return [methods.get(name) for name in wanted]


def choose_device(name: str) -> "Device":
    """``auto`` is the GPU where there is one. Raises UsageError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # also fails on the device 'meta', which holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def choose_protocol(name: str, precision: str | None) -> "Protocol":
    """A built-in protocol, or one from a TOML file."""
    from cmbench.metrics import protocols

    protocol = protocols.from_toml(Path(name)) if name.endswith(".toml") else protocols.get(name)
    return protocol.with_arithmetic(precision) if precision else protocol


def open_workshop(options: Options, under: Mapping[str, Any] | None = None) -> Workshop:
    """The data set and its recipes, ready to train or to find checkpoints.

    ``under`` are settings, nested, on which those of the options are laid.
    """
    from cmbench.data import open_dataset

    images = open_dataset(options.dataset, options.data, options.download)
    settings = recipes.merge(under or {}, recipes.overrides(options.settings))
    known = registry.names("method")
    shared = {key: value for key, value in settings.items() if key not in known}
    common = recipes.load(Common, "cmbench", images.name, "common", options.preset, shared)
    workshop = Workshop(
        images=images,
        preset=options.preset,
        settings=settings,
        common=common,
        out=options.out,
        device=choose_device(options.device),
        given=tuple(checkpoints.load(path) for path in options.checkpoint),
        begin=options.begin,
        download=options.download,
    )
    for name in sorted(settings.keys() & set(known)):
        # a typo shows even where the method is not among those asked for
        method = methods.get(name)
        presets = recipes.preset_names(method.package, images.name, name)
        if not presets or options.preset in presets:
            workshop.recipe(method)
    return workshop


def open_sweep(options: Options, workshop: Workshop, **callbacks: Any) -> "Sweep":
    """The benchmark over an open workshop."""
    from cmbench.benchmark import Sweep

    common = workshop.common
    batch = options.batch_size or common.batch_size
    engine = open_engine(options, workshop)
    return Sweep(workshop, engine, options.samples or common.samples, batch, tuned=options.tuned, **callbacks)


def open_engine(options: Options, workshop: Workshop) -> "Engine":
    """The metrics of the protocol that the options name, or the data set's own."""
    from cmbench.metrics.engine import Engine
    from cmbench.metrics.library import with_reference

    common = workshop.common
    protocol = choose_protocol(options.protocol or common.protocol, options.precision)
    if options.against:
        protocol = with_reference(protocol, options.against, workshop.images.name, options.download)
    return Engine.open(
        protocol,
        device=workshop.device,
        weights=options.weights,
        download=options.download,
    )
