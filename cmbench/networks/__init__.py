"""Networks that samplers and objectives evaluate: ``net(x, c_noise, labels)``, images in, images out.

Every network maps ``x`` [B, C, H, W] (already scaled by c_in), ``c_noise`` [B] = ln(σ)/4 (EDM's noise input)
and ``labels`` [B] int64 or None to [B, C, H, W]. A class-conditional network needs labels; -1 is the null class, whose
embedding is zero (as in EDM), so that it costs no parameters and every checkpoint has it, trained or not.
torch is imported when a network is built, not before.

Every kind has the option ``conditions``. Methods that jump from one time to another build their network with
``conditions=2``: ``c_noise`` is then [B, 2], and each column has an embedding of its own, the second of which starts
as zero. All but those embeddings has the names, shapes and initial values of the network of one condition.
"""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from cmbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

KINDS = {
    "mlp": ("cmbench.networks.mlp", "ResidualMLP"),
    "unet": ("cmbench.networks.unet", "UNet"),
    "song": ("cmbench.networks.song", "SongUNet"),
    "adm": ("cmbench.networks.adm", "ADMUNet"),
}


def build(config: Mapping[str, Any], shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """A freshly initialised network.

    Args:
        config: ``{"kind": "mlp" | "unet" | "song" | "adm", **options}``; the options are the
            keyword arguments of that kind's class. With ``"trajectory": {"points": M, "modes": K}`` it becomes a
            :class:`~cmbench.networks.trajectory.TrajectoryNetwork` around the plain network.
        shape: (C, H, W) of one image, input and output alike.
        classes: number of classes of the data set, 0 if it has no labels.

    Raises:
        UsageError: an unknown kind or option, or a value that the option cannot take.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    trajectory = options.pop("trajectory", None)
    if trajectory is not None:
        return _with_time_axis(trajectory, build({"kind": kind, **options}, shape, classes), shape, classes)
    if kind is None:
        raise UsageError(f"a network needs a kind: one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise unknown("network", str(kind), KINDS)
    module, name = KINDS[kind]
    network: type[nn.Module] = getattr(import_module(module), name)
    constructor = network.__init__
    known = [p.name for p in inspect.signature(constructor).parameters.values() if p.kind is p.KEYWORD_ONLY]
    hints = get_type_hints(constructor)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of network '{kind}'", option, known)
        if (wanted := _mismatch(value, hints[option])) is not None:
            raise UsageError(f"option '{option}' of network '{kind}' must be {wanted}, got {value!r}")
    return network(shape, classes, **options)


def _with_time_axis(
    settings: Any, inner: "nn.Module", shape: tuple[int, int, int], classes: int
) -> "nn.Module":
    from cmbench.networks.trajectory import TrajectoryNetwork

    wanted = ("points", "modes")
    right = isinstance(settings, Mapping) and set(settings) == set(wanted)
    if not right or any(_mismatch(settings[name], int) for name in wanted):
        raise UsageError(f"option 'trajectory' must be {{points = M, modes = K}}, got {settings!r}")
    return TrajectoryNetwork(inner, shape, classes, **settings)


def _mismatch(value: Any, hint: Any) -> str | None:
    """What ``value`` should have been, if it does not fit the annotation of its option; else None."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if is_int else "a whole number"
    if hint is float:
        return None if is_int or isinstance(value, float) else "a number"
    if hint == Sequence[int]:
        whole = isinstance(value, list | tuple) and all(_mismatch(v, int) is None for v in value)
        return None if whole else "a list of whole numbers"
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else "one of " + ", ".join(map(repr, get_args(hint)))
    return None  # any other annotation: the network judges the value itself
