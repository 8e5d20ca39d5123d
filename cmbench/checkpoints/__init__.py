"""Checkpoints: weights as safetensors with a JSON header that says what they are. Loading executes nothing."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.paths import atomic

if TYPE_CHECKING:
    from torch import device as Device
    from torch import nn

FORMAT = 1


@dataclass(frozen=True)
class Header:
    """What a checkpoint is.

    Attributes:
        method, variant: which method's network this is; a variant is, for example, a stage of progressive distillation.
        dataset: name of the data set it was trained on.
        shape: C, H, W of its images.
        classes: number of classes the network is conditioned on; 0 where it is unconditional.
        network: configuration from which :func:`cmbench.networks.build` makes the network.
        noise: the noise range it was trained on.
        recipe: the method's recipe, as plain values.
        key: hash of all that determined the training.
        seed: training seed.
        seconds: training time, parents not included.
        notes: remarks that every record made with it carries.
        pairs: key, count and cost (``seconds``, network ``evaluations``) of the synthetic pairs it was trained on.
    """

    method: str
    variant: str
    dataset: str
    shape: tuple[int, int, int]
    classes: int
    network: Mapping[str, Any]
    noise: NoiseRange
    recipe: Mapping[str, Any]
    key: str
    seed: int
    seconds: float
    notes: tuple[str, ...] = ()
    format: int = FORMAT
    pairs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, its header, and the hash of its weights and header (the training time left out)."""

    path: Path
    header: Header
    sha256: str = field(repr=False)

    def network(self, device: "Device | str" = "cpu") -> "nn.Module":
        """Build the network and load its weights, in evaluation mode, on ``device``."""
        import torch
        from safetensors.torch import load_file

        from cmbench.networks import build

        head = self.header
        network = build(head.network, head.shape, head.classes)
        try:
            network.load_state_dict({k: v.float() for k, v in load_file(self.path).items()})
        except RuntimeError as error:
            raise WorkError(f"{self.path}: weights do not fit the network of its header: {error}") from error
        return network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def save(path: Path, network: "nn.Module", header: Header) -> Checkpoint:
    """Write a checkpoint atomically."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"cmbench": json.dumps(asdict(header))})
    return load(path)


ROUNDED = "weights rounded to bf16"


def save_rounded(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Write a checkpoint again with its weights in bf16: half the size, and a note that every record carries."""
    import torch

    header = replace(checkpoint.header, notes=(*checkpoint.header.notes, ROUNDED))
    return save(path, checkpoint.network().to(torch.bfloat16), header)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint's header and hash.

    Raises:
        UsageError: there is no such file, or it is not a checkpoint of cmbench.
        WorkError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        raw = json.loads(metadata["cmbench"])
        if raw["format"] != FORMAT:
            raise UsageError(f"{path} has checkpoint format {raw['format']}; this version reads {FORMAT}")
        values = {
            **raw,
            "shape": tuple(raw["shape"]),
            "noise": NoiseRange(**raw["noise"]),
            "notes": tuple(raw["notes"]),
        }
        header = Header(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a cmbench checkpoint: {error}") from error
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{path} is damaged: {error}") from error
    return Checkpoint(path, header, _content_hash(path, header))


def _content_hash(path: Path, header: Header) -> str:
    """SHA-256 over header and weights, the times left out: the same training has the same hash."""
    content = {**asdict(header), "seconds": None}
    if header.pairs is None:
        del content["pairs"]  # files from before there were pairs keep their hash
    else:
        content["pairs"] = {**header.pairs, "seconds": None}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    with path.open("rb") as file:
        index = json.loads(file.read(int.from_bytes(file.read(8), "little")))  # names, types, shapes, places
        index.pop("__metadata__", None)
        digest.update(json.dumps(index, sort_keys=True).encode())
        return hashlib.file_digest(file, lambda: digest).hexdigest()
