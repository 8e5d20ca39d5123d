"""The FID Inception network: torch-fidelity's blocks and weight file, all layers in one fast pass."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from cmbench.metrics.resizing import resize

SIZE = 299


class Inception2015(nn.Module):
    """The layers under the names of torch-fidelity's weight file, whose state dict they load as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = blocks.BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = blocks.BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = blocks.BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = blocks.BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = blocks.BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)  # TensorFlow's mixed_6
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE_1(1280)
        self.Mixed_7c = blocks.InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)


class InceptionV3(nn.Module):
    """The network of ``classify_image_graph_def.pb`` (2015-12-05), from which FID, sFID and IS are taken.

    Layers: ``pool3`` [B, 2048], the mean over the last 8 x 8 map; ``logits_unbiased`` [B, 1008], the class
    scores without their bias, as all Inception Scores use them; ``spatial`` [B, 2023], the first 7 channels
    of ``mixed_6/conv`` over its 17 x 17 map in height-width-channel order, for sFID (Nash et al. 2021).

    The batch normalisations are merged into the convolutions, which changes features by float32 rounding
    only.
    """

    classes: Tensor

    def __init__(self, weights: Mapping[str, Tensor], resize_mode: str) -> None:
        super().__init__()
        self.resize_mode = resize_mode
        net = Inception2015()
        net.load_state_dict(weights)
        self.register_buffer("classes", net.fc.weight.detach())
        _merge_norms(net)
        pool = nn.MaxPool2d(3, 2)
        self.front = nn.Sequential(
            *(net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, pool),
            *(net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, pool),
            *(net.Mixed_5b, net.Mixed_5c, net.Mixed_5d),
            *(net.Mixed_6a, net.Mixed_6b, net.Mixed_6c),
        )
        self.back = nn.Sequential(net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c)
        self.requires_grad_(False).eval()

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float32 [B, 3, 299, 299] in about [-1, 1]."""
        x = resize(images, SIZE, self.resize_mode)
        # pytorch-fid maps 0 .. 255 onto [-1, 1]; everyone who follows the TensorFlow graph does this instead:
        return x / 127.5 - 1 if self.resize_mode == "half-pixel-bilinear" else (x - 128) / 128

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """All layers of uint8 images [B, 3, H, W], as float32."""
        x = self.preprocess(images)
        x = self.front(x.contiguous(memory_format=torch.channels_last))
        first = self.back[0].get_submodule(
            "branch1x1"
        )  # computed once more for 7 channels: cheaper than a hook
        assert isinstance(first, _Convolution) and first.bias is not None
        spatial = F.relu(F.conv2d(x, first.weight[:7], first.bias[:7]))
        pool3 = self.back(x).float().mean((2, 3))
        with torch.autocast(x.device.type, enabled=False):  # the class scores stay exact under bf16
            logits = pool3 @ self.classes.T
        return {
            "pool3": pool3,
            "logits_unbiased": logits,
            "spatial": spatial.permute(0, 2, 3, 1).flatten(1).float(),
        }


class _Convolution(nn.Conv2d):
    """A convolution that carries its batch normalisation, followed by ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


def _merge_norms(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, blocks.BasicConv2d):
                setattr(parent, name, _merged(child.conv, child.bn))


def _merged(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> _Convolution:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    out = _Convolution(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
    )
    assert out.bias is not None
    with torch.no_grad():
        out.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
        out.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    return out
