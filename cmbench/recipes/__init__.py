"""Recipes: settings as TOML, one file per data set and method, presets inside.

``<package of the method>/recipes/<data set>/<method>.toml`` holds a table per preset whose keys are the fields of
the method's recipe class; ``cmbench/recipes/<data set>/common.toml`` holds what all methods share. A data set
without files of its own uses those under ``generic/``. A method that trains nothing needs no files: its defaults
are its paper's, and serve at every preset.
"""

import contextlib
import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, get_args, get_origin

from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, unknown
from cmbench.guidance import Guidance

T = TypeVar("T")
GENERIC = "generic"


@dataclass(frozen=True)
class Common:
    """What all methods on a data set share.

    Attributes:
        samples: samples that each record is measured on.
        protocol: evaluation protocol.
        shard: samples a shard holds; the unit of resumption.
        batch_size: samples generated and measured at a time.
        network: configuration of the network (see cmbench.networks).
        noise: range of noise levels.
        guidance: classifier-free guidance of whatever samples through an EDM network; 1 is none. A guided sampler of
            N denoiser calls makes 2N evaluations, and that is what records and tables count.
        guidance_interval: the noise levels (low, high] that are guided, all by default.
    """

    samples: int = 50_000
    protocol: str = "torch-fidelity"
    shard: int = 1000
    batch_size: int = 250
    network: Mapping[str, Any] = field(default_factory=lambda: {"kind": "unet"})
    noise: NoiseRange = field(default_factory=NoiseRange)
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.samples, self.shard, self.batch_size) < 1:
            raise UsageError("samples, shard and batch_size must be at least 1")
        if "dropout" in self.network:
            raise UsageError(
                "network.dropout: dropout is a setting of the method that trains, as edm.dropout=0.1"
            )
        _ = self.guided  # a wrong value is an error here and now

    @property
    def guided(self) -> Guidance:
        """The setting of guidance."""
        return Guidance(self.guidance, self.guidance_interval)


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make the dataclass ``cls`` from TOML values; a wrong name or type is a UsageError that says where."""
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise unknown(f"setting of {where}", key, hints)
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return parse(hint, value, where)
    elif origin is Literal:
        if value in arguments:
            return value
        raise unknown(f"value of {where}", str(value), map(str, arguments))
    elif origin in (typing.Union, types.UnionType):
        if value == "none" and type(None) in arguments:
            return None
        for option in arguments:
            if option is not type(None):
                with contextlib.suppress(UsageError):
                    return _convert(option, value, where)
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    union = origin in (typing.Union, types.UnionType)
    wanted = str(hint).replace("typing.", "") if union else getattr(hint, "__name__", hint)
    raise UsageError(f"{where}: {value!r} is not {wanted}")


def overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Parse ``key=value`` settings into a nested dictionary; values are TOML, bare words are strings."""
    tree: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set takes key=value, not '{setting}'")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, leaf = name.strip().split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {setting}: '{parent}' already has a value")
        node[leaf] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, table by table."""
    out = dict(base)
    for key, value in over.items():
        inner = out.get(key)
        out[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def _presets(package: str, dataset: str, name: str) -> dict[str, dict[str, Any]] | None:
    if (folder := _folder(package)) is None:
        return None
    for path in (folder / dataset / f"{name}.toml", folder / GENERIC / f"{name}.toml"):
        if path.is_file():
            return tomllib.loads(path.read_text())
    return None


def _folder(package: str) -> Traversable | None:
    """Where a package's recipes are; None for a plug-in that is a single module, or has none."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return None
    folder = files(package) / "recipes"
    return folder if folder.is_dir() else None


def offered(package: str, name: str) -> dict[str, list[str]]:
    """The presets of every recipe ``name`` in a package, by data set; GENERIC, for those without their own, last."""
    if (folder := _folder(package)) is None:
        return {}
    found = {
        place.name: list(tomllib.loads((place / f"{name}.toml").read_text()))
        for place in folder.iterdir()
        if (place / f"{name}.toml").is_file()
    }
    return {key: found[key] for key in sorted(found, key=lambda key: (key == GENERIC, key))}


def preset_names(package: str, dataset: str, name: str) -> list[str]:
    """The presets that a package's recipe for this data set offers; empty where it has no recipe."""
    return list(_presets(package, dataset, name) or {})


def load(
    cls: type[T],
    package: str,
    dataset: str,
    name: str,
    preset: str,
    over: Mapping[str, Any],
    *,
    trains: bool = True,
) -> T:
    """The recipe ``name`` of ``package`` for a data set: class defaults, then the preset, then ``over``.

    Without a recipe file the class defaults serve as the preset ``quick``, or, for a method that ``trains`` nothing,
    as every preset: what differs between presets is training.
    Raises UsageError for an unknown preset, setting or a value of the wrong type.
    """
    presets = _presets(package, dataset, name) or {"quick" if trains else preset: {}}
    if preset not in presets:
        raise unknown(f"preset of {name} on {dataset}", preset, presets)
    return parse(cls, merge(presets[preset], over), name)


def differences(recipe: Any) -> dict[str, Any]:
    """The values of a recipe that differ from the defaults of its class, as plain data.

    Identities are made from these, so that a new setting whose default keeps the old behaviour changes no identity.
    """
    out = {}
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        default = item.default_factory() if callable(item.default_factory) else item.default
        if value == default:
            continue
        out[item.name] = differences(value) if dataclasses.is_dataclass(value) else _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
