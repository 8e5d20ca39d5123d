"""Extractors: uint8 images to features, by name, with checked weights that execute nothing."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from cmbench import registry
from cmbench.errors import UsageError, WorkError, unknown
from cmbench.metrics.protocols import ExtractorSpec
from cmbench.paths import cache_dir


@dataclass(frozen=True)
class Definition:
    """A registered extractor.

    Attributes:
        name: what protocols call it.
        layers: the feature layers it gives, with their dimensions.
        file: the name of its weight file.
        url: where that file is published; None where it is installed with the package (``file`` of a plug-in is then
            its whole path).
        sha256: of the file in hex, or the first digits of it; None where it is not published.
        build: (weight file, resize mode) -> a network from uint8 [B, 3, H, W] to {layer: float32 [B, D]}.
        aliases: other names under which the same file is published.
    """

    name: str
    layers: Mapping[str, int]
    file: str
    url: str | None
    sha256: str | None
    build: Callable[[Path, str], nn.Module]
    aliases: tuple[str, ...] = ()


class Extractor:
    """An opened extractor: a network with its weights, on a device, in a chosen arithmetic.

    Attributes:
        definition: what was opened.
        weights: SHA-256 of the weight file that was used.
    """

    def __init__(
        self, definition: Definition, network: nn.Module, weights: str, device: torch.device, precision: str
    ) -> None:
        self.definition = definition
        self.weights = weights
        self._device = device
        self._precision = precision
        # autocast would cast the weights again at every pass; a network that can keeps them so
        cast = getattr(network, "cast_weights", None) if precision == "bf16" else None
        if cast is not None:
            cast(torch.bfloat16)
        self._autocast = precision == "bf16" and cast is None
        self._network: Callable[[Tensor], dict[str, Tensor]] = network.to(device).to(
            memory_format=torch.channels_last
        )

    def compile(self) -> "Extractor":
        """Let ``torch.compile`` fuse the network: faster on long runs, and other last bits."""
        self._network = torch.compile(self._network)
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images [B, 3, H, W]: {layer: float32 [B, D]}, on the extractor's device."""
        bf16 = torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)
        with _arithmetic(self._precision), bf16:
            return self._network(images.to(self._device))


@contextmanager
def _arithmetic(precision: str) -> Iterator[None]:
    """TF32 exactly where it was asked for: PyTorch allows it in convolutions by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def names() -> list[str]:
    """The extractors: built in, or a :class:`Definition` under the entry point group ``cmbench.extractors``."""
    return sorted({*_registry(), *registry.names("extractor")})


def definition(name: str) -> Definition:
    """The extractor of that name.

    Raises:
        UsageError: there is none; carries the nearest name.
        WorkError: the plug-in that registers it cannot be loaded.
    """
    if name in _registry():
        return _registry()[name]
    if name not in names():
        raise unknown("extractor", name, names())
    found = registry.load("extractor", name)
    if not isinstance(found, Definition):
        raise WorkError(f"extractor '{name}' is registered as {type(found).__name__}, not as a Definition")
    return found


def open_extractor(
    spec: ExtractorSpec,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    weights: Path | None = None,
    download: bool = True,
) -> Extractor:
    """Find the weights of an extractor, check them, and load it.

    Args:
        spec: which extractor, with which weights and resizing.
        device: where it runs.
        precision: ``float32``, ``tf32`` (GPU) or ``bf16``.
        weights: the user's weight file, or a folder of such files.
        download: whether absent weights may be fetched into the cache.

    Raises:
        UsageError: no such extractor.
        WorkError: the weights are absent, damaged, or not those that the protocol names.
    """
    known = definition(spec.name)
    path = locate(known, weights, download)
    digest = file_hash(path)
    for expected, whose in ((spec.weights, "the protocol"), (known.sha256, "its publisher")):
        # A protocol that names other weights (of the same layout) has the last word on them.
        if expected is not None:
            if not digest.startswith(expected):
                found = f"{path} has SHA-256 {digest[:16]}..., {whose} says {expected[:16]}"
                raise WorkError(f"{found}: other weights, or damaged")
            break
    try:
        network = known.build(path, spec.resize)
    except (KeyError, RuntimeError, ValueError, OSError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorkError(f"{path} does not hold the weights of {known.name}: {reason}") from error
    return Extractor(known, network, digest, torch.device(device), precision)


def open_network(name: str) -> nn.Module:
    """One of our own classifiers as a module from uint8 [B, 3, H, W] to {layer: float32 [B, D]}."""
    known = definition(name)
    return known.build(locate(known, None, False), "none")


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(known: Definition, weights: Path | None, download: bool) -> Path:
    """The weight file: the user's, the cached one, the shipped one, or fetched where ``download`` allows.

    Raises:
        UsageError: nothing at ``weights``.
        WorkError: not there, with how to get it.
    """
    if known.url is None:
        path = _ASSETS / known.file
        if not path.is_file():
            raise WorkError(
                f"{known.name} is not in this installation: scripts/train_extractor.py makes {path}"
            )
        return path
    if weights is not None and not weights.exists():
        raise UsageError(f"there are no weights at {weights}")
    if weights is not None and weights.is_file():
        return weights
    cached = cache_dir() / "weights"
    folders = [weights] if weights is not None else [cached, Path(torch.hub.get_dir()) / "checkpoints"]
    for folder in folders:
        for file in (known.file, *known.aliases):
            if (folder / file).is_file():
                return folder / file
    help_line = f"put {known.file} (from {known.url}) in {folders[0]} or pass --weights"
    if weights is None and download:
        from cmbench.download import fetch

        full = known.sha256 if known.sha256 is not None and len(known.sha256) == 64 else None
        try:
            path = fetch(known.url, cached / known.file, sha256=full)
        except WorkError as error:
            raise WorkError(f"{known.name} weights not found: {error}; {help_line}") from error
        if known.sha256 is not None and not file_hash(path).startswith(known.sha256):
            path.unlink()
            raise WorkError(f"{known.url} does not have the SHA-256 that its name promises: {help_line}")
        return path
    raise WorkError(f"{known.name} weights not found: {help_line}")


def _tensors(path: Path) -> dict[str, Tensor]:
    """A state dict, read without executing anything."""
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        raise ValueError(
            "it is a TorchScript network, which is code and is not executed; plain tensors are read"
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("not a plain state dict, and other pickles are not executed") from error
    if not isinstance(data, Mapping) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError("not a plain state dict")
    return dict(data)


# --- the networks -------------------------------------------------------------------------------

_ASSETS = Path(__file__).parent.parent / "assets" / "extractors"


class _Classifier(nn.Module):
    """One of our own classifiers as an extractor; takes images of its own size only."""

    def __init__(self, path: Path, resize: str) -> None:
        super().__init__()
        from cmbench.metrics import classifiers

        if resize != "none":
            raise ValueError(f"its images are never resized, and the protocol says {resize}")
        self.network = classifiers.load(path)
        self.name = path.stem

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        size = self.network.architecture.size
        if images.shape[-2:] != (size, size):
            found = f"{images.shape[-2]}x{images.shape[-1]}"
            raise UsageError(
                f"{self.name} measures {size}x{size} images and was given {found}: another protocol?"
            )
        features, logits = self.network(images)
        return {"features": features.float(), "logits": logits.float()}


def _inception(path: Path, resize: str) -> nn.Module:
    from cmbench.metrics.inception import InceptionV3

    return InceptionV3(_tensors(path), resize)


def _vgg16(path: Path, resize: str) -> nn.Module:
    from cmbench.metrics.backbones import VGG16

    return VGG16(_tensors(path), resize)


def _dinov2(path: Path, resize: str) -> nn.Module:
    from cmbench.metrics.backbones import DINOv2

    return DINOv2(_tensors(path), resize)


def _clip(path: Path, resize: str) -> nn.Module:
    from cmbench.metrics.backbones import CLIP

    return CLIP(path, resize)


def _own(name: str, features: int = 64) -> Definition:
    layers = {"features": features, "logits": 10}
    return Definition(name, layers, f"{name}.safetensors", None, None, _Classifier)


_CLIP_HASH = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"


@cache
def _registry() -> dict[str, Definition]:
    release = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    known = (
        _own("digits-cnn"),
        _own("mnist-cnn"),
        _own("cifar10-resnet", 96),
        Definition(
            "inception-v3",
            {"pool3": 2048, "logits_unbiased": 1008, "spatial": 2023},
            "weights-inception-2015-12-05-6726825d.pth",
            release + "weights-inception-2015-12-05-6726825d.pth",
            "6726825d",
            _inception,
            ("pt_inception-2015-12-05-6726825d.pth",),  # pytorch-fid's name for it
        ),
        Definition(
            "vgg16",
            {"fc2_relu": 4096},
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "397923af",
            _vgg16,
        ),
        Definition(
            "dinov2-vit-l-14",
            {"cls": 1024},
            "dinov2_vitl14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            None,
            _dinov2,
        ),
        Definition(
            "clip-vit-l-14-336",
            {"embedding": 768},
            "ViT-L-14-336px.pt",
            f"https://openaipublic.azureedge.net/clip/models/{_CLIP_HASH}/ViT-L-14-336px.pt",
            _CLIP_HASH,
            _clip,
            (f"clip-vit-l-14-336px-{_CLIP_HASH}.pt",),  # torch-fidelity's name for it
        ),
    )
    return {entry.name: entry for entry in known}
