"""Our own small classifiers: features where images are tiny or Inception cannot be fetched."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmbench.errors import WorkError

ASSETS = Path(str(files("cmbench"))) / "assets" / "extractors"


@dataclass(frozen=True)
class Architecture:
    """A residual network of He et al. (2016, arXiv 1512.03385, section 4.2) by its numbers.

    ``channels`` and ``size`` are those of the input image, ``widths`` one per stage (each stage after the
    first halves the resolution), ``blocks`` two-convolution blocks per stage. ``(16, 32, 64)`` with 3 blocks
    is ResNet-20.
    """

    channels: int
    size: int
    widths: tuple[int, ...]
    blocks: int
    classes: int = 10


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, folded: bool) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=folded)
    return convolution if folded else nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, folded: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride, folded)
        self.conv2 = _convolution(outputs, outputs, 3, 1, folded)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride, folded)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(x)))
        return F.relu(out + self.shortcut(x))


class Classifier(nn.Module):
    """The network: uint8 images [B, 1 or 3, H, W] to features [B, widths[-1]] and logits [B, classes].

    ``folded`` chooses the form for inference, whose convolutions carry the batch normalisation inside them;
    the other form is for training. :func:`fold` turns the latter into the former.
    """

    def __init__(self, architecture: Architecture, *, folded: bool = True) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = _convolution(architecture.channels, architecture.widths[0], 3, 1, folded)
        inputs = architecture.widths[0]
        blocks: list[nn.Module] = []
        for stage, width in enumerate(architecture.widths):
            for block in range(architecture.blocks):
                blocks.append(_Block(inputs, width, 2 if stage > 0 and block == 0 else 1, folded))
                inputs = width
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, architecture.classes)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 in [-1, 1]; channels are averaged where the network takes gray."""
        x = images.float()
        if self.architecture.channels == 1 and x.shape[1] != 1:
            x = x.sum(1, keepdim=True) / x.shape[1]
        return x / 127.5 - 1

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (mean over the pixels of the last block) and logits."""
        x = self.stages(F.relu(self.stem(self.preprocess(images))))
        features = x.mean((2, 3))
        return features, self.head(features)

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """What each stage makes of the images: [B, width, H, W], H and W halved from stage to stage."""
        x = F.relu(self.stem(self.preprocess(images)))
        outputs = []
        for number, block in enumerate(self.stages, 1):
            x = block(x)
            if number % self.architecture.blocks == 0:
                outputs.append(x)
        return outputs


def fold(trained: Classifier) -> Classifier:
    """The same function with each batch normalisation merged, in float64, into the convolution before it."""
    folded = Classifier(trained.architecture, folded=True)
    target = dict(folded.named_modules())
    with torch.no_grad():
        for name, module in trained.named_modules():
            if (
                isinstance(module, nn.Sequential)
                and len(module) == 2
                and isinstance(module[1], nn.BatchNorm2d)
            ):
                convolution, norm = module[0], module[1]
                assert isinstance(convolution, nn.Conv2d) and norm.running_var is not None
                assert norm.running_mean is not None
                scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
                out = target[name]
                assert isinstance(out, nn.Conv2d) and out.bias is not None
                out.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
                out.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
        folded.head.load_state_dict(trained.head.state_dict())
    return folded.eval()


def save(path: Path, network: Classifier, metadata: Mapping[str, Any]) -> None:
    """Write a folded network as safetensors; its header holds the architecture and ``metadata``."""
    from safetensors.torch import save_file

    from cmbench.paths import atomic

    header = {"architecture": asdict(network.architecture), **metadata}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"cmbench": json.dumps(header, sort_keys=True)})


def load(path: Path) -> Classifier:
    """Read a network that :func:`save` wrote, for inference. Raises WorkError where the file is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shape = json.loads(file.metadata()["cmbench"])["architecture"]
            network = Classifier(Architecture(**{**shape, "widths": tuple(shape["widths"])}))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WorkError(f"{path} is not one of our extractors: {error}") from error
    return network.eval().requires_grad_(False)
