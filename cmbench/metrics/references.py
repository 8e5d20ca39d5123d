"""Reference statistics: ours, and the files that ADM, EDM, clean-fid and pytorch-fid publish."""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.moments import Moments
from cmbench.paths import atomic, cache_dir

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]
FORMAT = "cmbench-reference-1"
SHIPPED = Path(__file__).parent.parent / "assets" / "references"
"""Statistics that come with the package."""


def kept_at(file: str) -> Path:
    """Where a statistics file of this name is: with the package, or where the user's references are kept."""
    shipped = SHIPPED / file
    return shipped if shipped.is_file() else cache_dir() / "references" / file


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of the reference's features at one layer.

    Attributes:
        mean: [D], float64.
        covariance: [D, D], float64.
        count: images behind them; 0 where the file does not say.
        features: [M, D] float32 of all of the images, or of those that the file holds; None where none are
            kept.
    """

    mean: Float64
    covariance: Float64
    count: int = 0
    features: NDArray[np.float32] | None = None
    _radii: dict[tuple[int, int], Float64] = field(default_factory=dict, repr=False)

    def subset(self, count: int | None) -> NDArray[np.float32]:
        """The features [min(count, M), D] of all images, or of ``count`` drawn with a fixed seed."""
        assert self.features is not None
        return drawn(self.features, count, seed=0)

    def radii(self, count: int | None, k: int, device: "torch.device") -> Float64:
        """Squared distance of each row of :meth:`subset` to its ``k``-th neighbour there; computed once."""
        from cmbench.metrics.precision_recall import manifold_radii

        rows = self.subset(count)
        if (len(rows), k) not in self._radii:
            self._radii[len(rows), k] = manifold_radii(rows, k=k, device=device)
        return self._radii[len(rows), k]


def drawn(rows: NDArray[np.float32], count: int | None, seed: int) -> NDArray[np.float32]:
    """``count`` of the rows by chance, in their order: sets of images are often sorted."""
    if count is None or count >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
        name: as the protocol calls it.
        layers: ``extractor/layer`` -> statistics.
        provenance: where they come from: file and SHA-256, or data set, fingerprint and weights.
        note: what a reader of the figures must know, if anything.
        missing: why there are no statistics at all, where there are none.
    """

    name: str
    layers: Mapping[str, Statistics]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None
    missing: str | None = None


def half(reference: Reference, number: int) -> Reference:
    """Every other image of a reference, from ``number`` (0 or 1) on, at the layers whose features are there.

    Raises UsageError where there are none, as in a file of statistics.
    """
    layers = {}
    for layer, known in reference.layers.items():
        if known.features is not None:
            rows = known.features[number::2]
            moments = Moments(rows.shape[1])
            moments.update(rows)
            layers[layer] = Statistics(moments.mean, moments.covariance(), len(rows), rows)
    if reference.missing is None and not layers:
        raise UsageError(f"reference {reference.name} holds no images' features: it cannot be halved")
    return replace(reference, layers=layers)


def write(path: Path, reference: Reference) -> None:
    """Store a reference atomically as ``.npz``."""
    header = {"format": FORMAT, "name": reference.name, "provenance": dict(reference.provenance)}
    arrays: dict[str, NDArray[Any]] = {"header": np.array(json.dumps(header))}
    for layer, known in reference.layers.items():
        arrays[f"{layer}/mean"], arrays[f"{layer}/covariance"] = known.mean, known.covariance
        arrays[f"{layer}/count"] = np.array(known.count)
        if known.features is not None:
            arrays[f"{layer}/features"] = known.features
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> tuple[Reference, NDArray[np.uint8] | None]:
    """Read a file of reference statistics, ours or a published one.

    Published files: ``.npz`` with ``mu`` and ``sigma`` (pytorch-fid, clean-fid, EDM), also with ``mu_s`` and
    ``sigma_s`` of the spatial features and images ``arr_0`` (ADM), or with images alone; ``.pkl`` of EDM2, of
    which only arrays and numbers are read. Their layers are ``inception-v3/pool3``, ``inception-v3/spatial``
    and ``dinov2-vit-l-14/cls``.

    Returns:
        The reference, and the images uint8 [N, C, H, W] that come with it, or None.

    Raises:
        WorkError: the file is damaged, or none of these.
    """
    try:
        if path.suffix == ".pkl":
            return Reference(path.stem, _edm2(_unpickle(path))), None
        with np.load(path, allow_pickle=False) as file:
            if "header" in file:
                return _ours(file), None
            return _published(path, file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise WorkError(f"{path} holds no reference statistics that can be read: {error}") from error


def check(layer: str, known: Statistics, dimensions: int, name: str) -> None:
    """Raise UsageError where a reference's statistics cannot be this layer's, WorkError where they are broken."""
    D = known.mean.size
    if known.mean.ndim != 1 or known.covariance.shape != (D, D):
        raise UsageError(
            f"reference {name}: mean {known.mean.shape} and covariance {known.covariance.shape} differ"
        )
    if dimensions != D:
        found = f"reference {name} has {D} dimensions and {layer} has {dimensions}"
        raise UsageError(f"{found}: it was made with another extractor")
    if not (np.isfinite(known.mean).all() and np.isfinite(known.covariance).all()):
        raise WorkError(f"reference {name} holds values that are not finite")


def _ours(file: Mapping[str, NDArray[Any]]) -> Reference:
    header = json.loads(str(file["header"]))
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r}, this version reads {FORMAT}")
    layers = {key.removesuffix("/mean") for key in file if key.endswith("/mean")}
    statistics = {
        layer: Statistics(
            file[f"{layer}/mean"],
            file[f"{layer}/covariance"],
            int(file[f"{layer}/count"]),
            file.get(f"{layer}/features"),
        )
        for layer in sorted(layers)
    }
    return Reference(header["name"], statistics, header["provenance"])


def _published(path: Path, file: Mapping[str, NDArray[Any]]) -> tuple[Reference, NDArray[np.uint8] | None]:
    layers = {}
    for layer, mean, covariance in (("pool3", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        if mean in file and covariance in file:
            layers[f"inception-v3/{layer}"] = Statistics(
                file[mean].astype(np.float64), file[covariance].astype(np.float64)
            )
    images = file.get("arr_0")
    if images is not None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"arr_0 is {images.dtype} {images.shape}, not uint8 [N, H, W, 3]")
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if not layers and images is None:
        raise ValueError(f"it holds {', '.join(file) or 'nothing'}, neither mu and sigma nor images arr_0")
    return Reference(path.stem, layers), images


def _edm2(data: Any) -> dict[str, Statistics]:
    names = {"fid": "inception-v3/pool3", "fd_dinov2": "dinov2-vit-l-14/cls"}
    if not isinstance(data, dict):
        raise ValueError("not a dictionary of statistics")
    if "mu" in data and "sigma" in data:
        data = {"fid": data}
    layers = {
        layer: Statistics(
            np.asarray(data[name]["mu"], np.float64), np.asarray(data[name]["sigma"], np.float64)
        )
        for name, layer in names.items()
        if isinstance(data.get(name), dict)
    }
    if not layers:
        raise ValueError("neither fid nor fd_dinov2 in it")
    return layers


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and numbers, and nothing else."""

    _ALLOWED = frozenset(
        (module, name)
        for core in ("numpy.core", "numpy._core")
        for module, name in (
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            (f"{core}.multiarray", "_reconstruct"),
            (f"{core}.multiarray", "scalar"),
            (f"{core}.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the few allowed names; UnpicklingError for any other."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which statistics do not need")
        return super().find_class(module, name)


def _unpickle(path: Path) -> Any:
    return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
