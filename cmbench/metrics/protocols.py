"""Protocols as data: everything that moves a number, in one frozen object with a fingerprint (no torch)."""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cmbench import registry
from cmbench.errors import UsageError, WorkError, unknown
from cmbench.records import fingerprint

QUANTIZERS = ("truncate", "round")
RESIZES = (
    "none",
    "tf1-bilinear",
    "half-pixel-bilinear",
    "half-pixel-bicubic",
    "pil-bicubic",
    "pil-bicubic-uint8",
)
PRECISIONS = ("float32", "tf32", "bf16")

# What each kind of metric is called in records, and the settings that it takes with their defaults.
# None as a default stands for "all" (counts) or "by the other setting" (splits, split_size).
KINDS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "frechet": (("fid",), {}),
    "inception-score": (("is",), {"splits": None, "split_size": None, "shuffle_seed": None}),
    "kid": (("kid",), {"subsets": 100, "subset_size": 1000, "seed": 0}),
    "precision-recall": (("precision", "recall"), {"k": 3, "reference_count": None, "sample_count": None}),
    "density-coverage": (("density", "coverage"), {"k": 5, "reference_count": None, "sample_count": None}),
    "fid-infinity": (("fid_infinity",), {"points": 15, "smallest": 5000, "seed": 0}),
    "cmmd": (("cmmd",), {"sigma": 10.0, "scale": 1000.0}),
    "authpct": (("authpct",), {}),
    "diversity": (("diversity",), {"seed": 0}),
}


@dataclass(frozen=True)
class ExtractorSpec:
    """A network that turns images into features, and how images reach it.

    Attributes:
        name: as registered in :mod:`cmbench.metrics.extractors`.
        weights: SHA-256 of its weight file in hex, or the first digits of it; None where it is not known in
            advance (the hash of the file that was used then stands in the reference's and the engine's
            provenance).
        resize: one of :data:`RESIZES`; the size is the network's own.
    """

    name: str
    weights: str | None
    resize: str = "none"


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its kind, the features it reads, its settings, and the figures that come out.

    Attributes:
        kind: a key of :data:`KINDS`.
        extractor: name of one of the protocol's extractors.
        layer: which of its layers.
        titles: name in records -> title in tables, for each figure of the kind.
        settings: complete; :func:`metric` fills in the defaults of the kind.
    """

    kind: str
    extractor: str
    layer: str
    titles: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ReferenceSpec:
    """What samples are compared with, for one data set.

    Attributes:
        name: as the literature calls it.
        file: name of the published statistics file, or None where the data set itself is the reference.
        url: where that file is published.
        sha256: of that file, where it is known.
        rebuild: whether the data set's own training images give the same statistics, so that they may be
            computed where the file is absent (the figures then say so).
        path: a file given by the user, which takes the place of the published one.
    """

    name: str
    file: str | None = None
    url: str | None = None
    sha256: str | None = None
    rebuild: bool = True
    path: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number.

    Attributes:
        name: what the user types.
        title: one line for lists.
        source: whose evaluation this is (paper, code), or why it exists.
        quantizer: how floats in [-1, 1] become uint8: ``truncate`` floor(127.5 x + 127.5), ``round`` the
            nearest level of 127.5 x + 128 (EDM).
        extractors: the networks, each of which runs once per image.
        metrics: what is computed from their features.
        references: data set -> reference; ``*`` stands for every other data set.
        samples: how many samples the published numbers use.
        precision: arithmetic of the extractors: ``float32`` is exact, ``tf32`` and ``bf16`` are faster.
        compile: whether ``torch.compile`` fuses the extractors, which changes their last bits.
    """

    name: str
    title: str
    source: str
    quantizer: str
    extractors: tuple[ExtractorSpec, ...]
    metrics: tuple[MetricSpec, ...]
    references: Mapping[str, ReferenceSpec]
    samples: int = 50_000
    precision: str = "float32"
    compile: bool = False

    @property
    def metric_titles(self) -> dict[str, str]:
        """Name of each figure in records -> its title in tables, in the protocol's order."""
        return {key: title for spec in self.metrics for key, title in spec.titles.items()}

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all that moves a number; names, titles and addresses are left out."""
        data = self.to_json()
        for cosmetic in ("name", "title", "source"):
            del data[cosmetic]
        for spec in data["metrics"]:
            spec["titles"] = sorted(spec["titles"])
        for reference in data["references"].values():
            for cosmetic in ("name", "file", "url") if reference["sha256"] else ("url",):
                del reference[cosmetic]
        return fingerprint(data)

    def extractor(self, name: str) -> ExtractorSpec:
        """The extractor of that name."""
        return next(spec for spec in self.extractors if spec.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which :func:`from_json` makes the same protocol."""
        data = dataclasses.asdict(self)
        for reference in data["references"].values():
            del reference["path"]
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain

    def with_arithmetic(self, precision: str, compile: bool = False) -> "Protocol":
        """The same protocol in another arithmetic; another fingerprint."""
        return checked(dataclasses.replace(self, precision=precision, compile=compile))

    def with_reference(self, path: Path) -> "Protocol":
        """The same protocol against a statistics or image file of the user's; its hash joins the fingerprint.

        Raises:
            UsageError: there is no such file.
        """
        if not path.is_file():
            raise UsageError(f"there is no reference file {path}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        given = ReferenceSpec(path.stem, path.name, None, digest, rebuild=False, path=path)
        return dataclasses.replace(self, references={"*": given})


def metric(
    kind: str, extractor: str, layer: str, *titles: str, keys: tuple[str, ...] = (), **settings: Any
) -> MetricSpec:
    """A metric with the kind's defaults filled in.

    Args:
        kind: a key of :data:`KINDS`.
        extractor: name of the extractor.
        layer: name of its layer.
        *titles: one per figure of the kind.
        keys: names in records, where they are not the kind's own.
        **settings: those that differ from the kind's defaults.

    Raises:
        UsageError: unknown kind or setting, a title too many or too few, a value of another type than the
            default's.
    """
    if kind not in KINDS:
        raise unknown("kind of metric", kind, KINDS)
    names, defaults = KINDS[kind]
    names = keys or names
    if len(titles) != len(names):
        raise UsageError(f"metric '{kind}' gives {', '.join(names)}: {len(titles)} titles were given")
    for key, value in settings.items():
        if key not in defaults:
            raise unknown(f"setting of metric '{kind}'", key, defaults)
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or (isinstance(value, float) and isinstance(defaults[key], float))
        least = 0 if key.endswith("seed") else 1
        if (value is not None and not (number and value >= least)) or (
            value is None and defaults[key] is not None
        ):
            raise UsageError(f"setting {key} of metric '{kind}' cannot be {value!r}: it is a positive number")
    complete = {**defaults, **settings}
    if kind == "inception-score" and (complete["splits"] is None) == (complete["split_size"] is None):
        raise UsageError(
            "metric 'inception-score' takes either splits (how many) or split_size (samples in each)"
        )
    return MetricSpec(kind, extractor, layer, dict(zip(names, titles, strict=True)), complete)


def from_json(data: Mapping[str, Any], where: str = "protocol") -> Protocol:
    """The inverse of :meth:`Protocol.to_json`, which checks everything.

    Raises:
        UsageError: something is missing, unknown, or of the wrong kind; ``where`` names the file.
    """
    try:
        extractors = tuple(ExtractorSpec(**entry) for entry in data["extractors"])
        metrics = tuple(
            metric(
                entry["kind"], entry["extractor"], entry["layer"], *entry["titles"].values(),
                keys=tuple(entry["titles"]), **entry.get("settings", {}),
            )
            for entry in data["metrics"]
        )  # fmt: skip
        references = {name: ReferenceSpec(**entry) for name, entry in data["references"].items()}
        rest = {key: data[key] for key in data if key not in ("extractors", "metrics", "references")}
        made = Protocol(**rest, extractors=extractors, metrics=metrics, references=references)
    except KeyError as error:
        raise UsageError(f"{where}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError) as error:
        raise UsageError(f"{where}: {str(error).removeprefix('Protocol.__init__() ')}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return checked(made, where)


def from_toml(path: Path) -> Protocol:
    """A user's own protocol: the fields of :class:`Protocol` as TOML.

    ``base = "adm"`` starts from a built-in one, of which the file then gives only what differs (whole
    fields).

    Raises:
        UsageError: the file cannot be read, or says something that makes no protocol.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not a readable protocol: {error}") from error
    if base := data.pop("base", None):
        data = {**get(str(base)).to_json(), "name": path.stem, **data}
    else:
        data = {"name": path.stem, "title": path.stem, "source": str(path.name), **data}
    return from_json(data, str(path))


# The protocol that the literature uses for a data set, or our own classifier's for the embedded ones.
DEFAULTS = {
    "digits": "digits",
    "mnist": "mnist",
    "cifar10": "cm-cifar10",
    "imagenet64": "adm",
    "lsun-bedroom": "adm",
    "lsun-cat": "adm",
}


@cache
def _built_in() -> Mapping[str, Protocol]:
    from cmbench.metrics.builtin import PROTOCOLS  # which is made of what this module defines

    return {protocol.name: checked(protocol, protocol.name) for protocol in PROTOCOLS}


def get(name: str) -> Protocol:
    """The protocol of that name: built in, or under the entry point group ``cmbench.protocols``.

    Raises:
        UsageError: there is none (carries the nearest name), or its parts do not fit together.
        WorkError: the plug-in that registers it cannot be loaded.
    """
    if name in _built_in():
        return _built_in()[name]
    if name not in names():
        raise unknown("protocol", name, names())
    found = registry.load("protocol", name)
    if not isinstance(found, Protocol):
        raise WorkError(f"protocol '{name}' is registered as {type(found).__name__}, not as a Protocol")
    return checked(found, name)


def names() -> list[str]:
    """The protocols, in the order in which a list should show them: those of plug-ins last."""
    return list(dict.fromkeys([*_built_in(), *registry.names("protocol")]))


def default_for(dataset_name: str) -> Protocol:
    """The protocol for this data set (:data:`DEFAULTS`); torch-fidelity's for any other."""
    return get(DEFAULTS.get(dataset_name, "torch-fidelity"))


def checked(protocol: Protocol, where: str = "protocol") -> Protocol:
    """The protocol itself, if its parts fit together. Raises UsageError, naming ``where``, if they do not."""

    def choose(what: str, value: Any, known: tuple[str, ...]) -> None:
        if value not in known:
            raise UsageError(f"{where}: {what} cannot be {value!r}: choose {', '.join(known)}")

    choose("quantizer", protocol.quantizer, QUANTIZERS)
    choose("precision", protocol.precision, PRECISIONS)
    for extractor in protocol.extractors:
        choose(f"resize of {extractor.name}", extractor.resize, RESIZES)
    known = tuple(spec.name for spec in protocol.extractors)
    for spec in protocol.metrics:
        choose(f"extractor of {', '.join(spec.titles)}", spec.extractor, known)
    keys = [key for spec in protocol.metrics for key in spec.titles]
    if len(set(keys)) != len(keys) or len(set(known)) != len(known):
        raise UsageError(f"{where}: the names of figures and of extractors must differ from one another")
    if not protocol.metrics or not protocol.references:
        raise UsageError(f"{where}: a protocol has at least one metric and one reference")
    if not isinstance(protocol.samples, int) or protocol.samples < 2:
        raise UsageError(f"{where}: samples cannot be {protocol.samples!r}: it is a number from 2 up")
    return protocol
