"""The FID Inception network: torch-fidelity's blocks and weight file, all layers in one fast pass."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from cmbench.metrics.convolutions import Convolution, LineConvolution, MeanPoolConvolution
from cmbench.metrics.resizing import resize

SIZE = 299
# On CPUs a batch runs in pieces: glibc returns maps of more than 32 MiB to the system, and filling fresh pages is a
# quarter of the time that the plain network takes at 64 images.
STEM_CHUNK = 4
TRUNK_CHUNK = 16


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

    The sums are those of the original in another order, which changes features by float32 rounding only: batch
    normalisations are merged into the convolutions, means over neighbours come after their 1 x 1 convolution,
    ReLU after max-pooling, and the 1 x 7 and 7 x 1 convolutions go through a Fourier transform on the CPU.
    """

    classes: Tensor

    def __init__(self, weights: Mapping[str, Tensor], resize_mode: str) -> None:
        super().__init__()
        self.resize_mode = resize_mode
        self.dtype = torch.float32
        net = Inception2015()
        net.load_state_dict(weights)
        self.register_buffer("classes", net.fc.weight.detach())
        self.stem = nn.Sequential(
            Convolution(net.Conv2d_1a_3x3),
            Convolution(net.Conv2d_2a_3x3),
            Convolution(net.Conv2d_2b_3x3, relu=False),
            nn.MaxPool2d(3, 2),
            nn.ReLU(inplace=True),
            Convolution(net.Conv2d_3b_1x1),
            Convolution(net.Conv2d_4a_3x3, relu=False),
            nn.MaxPool2d(3, 2),
            nn.ReLU(inplace=True),
        )
        self.front = nn.Sequential(
            *(_mixed(net.Mixed_5b), _mixed(net.Mixed_5c), _mixed(net.Mixed_5d)),
            *(_mixed(net.Mixed_6a), _mixed(net.Mixed_6b), _mixed(net.Mixed_6c), _mixed(net.Mixed_6d)),
        )
        self.back = nn.Sequential(
            *(_mixed(net.Mixed_6e), _mixed(net.Mixed_7a), _mixed(net.Mixed_7b), _mixed(net.Mixed_7c))
        )
        self.requires_grad_(False).eval()

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Keep weights and compute maps in ``dtype``; features and class scores stay float32."""
        self.dtype = dtype
        for part in (self.stem, self.front, self.back):
            part.to(dtype)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float32 [B, 3, 299, 299] in about [-1, 1]."""
        x = resize(images, SIZE, self.resize_mode)
        # pytorch-fid maps 0 .. 255 onto [-1, 1]; everyone who follows the TensorFlow graph does this instead:
        if self.resize_mode == "half-pixel-bilinear":
            return x.div_(127.5).sub_(1)
        return torch.add(x.new_tensor(-1), x, alpha=1 / 128)  # (x - 128) / 128 to the bit, in one pass

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """All layers of uint8 images [B, 3, H, W], as float32."""
        trunk, stem = (TRUNK_CHUNK, STEM_CHUNK) if images.is_cpu else (len(images), len(images))
        parts = []
        for some in torch.split(images, trunk):
            x = torch.cat([self.stem(self._first_map(few)) for few in torch.split(some, stem)])
            x = self.front(x)
            # The first branch of mixed_6, of which sFID takes 7 channels, comes first in its output.
            spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1).float()
            parts.append((spatial, self.back(x).float().mean((2, 3))))
        spatial, pool3 = (torch.cat(part) for part in zip(*parts, strict=True))
        return {
            "pool3": pool3,
            "logits_unbiased": pool3 @ self.classes.T,
            "spatial": spatial,
        }

    def _first_map(self, images: Tensor) -> Tensor:
        return self.preprocess(images).to(self.dtype, memory_format=torch.channels_last)


class Branches(nn.Module):
    """Networks that see the same map, with their outputs one after another as channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, the sum of theirs, H', W']."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _mixed(block: nn.Module) -> Branches:
    """A block of torch-fidelity's with the same function."""

    def chain(*names: str) -> nn.Sequential:
        return nn.Sequential(*(_convolution(block.get_submodule(name)) for name in names))

    def steps(name: str, count: int) -> nn.Sequential:
        return chain(*(f"{name}_{i + 1}" for i in range(count)))

    def fork(name: str) -> Branches:
        return Branches(chain(f"{name}a"), chain(f"{name}b"))

    def mean_pool() -> nn.Module:
        return MeanPoolConvolution(block.get_submodule("branch_pool"))

    match block:
        case blocks.InceptionA():
            return Branches(
                *(chain("branch1x1"), steps("branch5x5", 2), steps("branch3x3dbl", 3), mean_pool())
            )
        case blocks.InceptionB():
            return Branches(chain("branch3x3"), steps("branch3x3dbl", 3), nn.MaxPool2d(3, 2))
        case blocks.InceptionC():
            return Branches(
                *(chain("branch1x1"), steps("branch7x7", 3), steps("branch7x7dbl", 5), mean_pool())
            )
        case blocks.InceptionD():
            return Branches(steps("branch3x3", 2), steps("branch7x7x3", 4), nn.MaxPool2d(3, 2))
    short = nn.Sequential(chain("branch3x3_1"), fork("branch3x3_2"))
    long = nn.Sequential(steps("branch3x3dbl", 2), fork("branch3x3dbl_3"))
    pool = mean_pool()
    if isinstance(block, blocks.InceptionE_2):  # pools the maximum, which does not commute
        pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), chain("branch_pool"))
    return Branches(chain("branch1x1"), short, long, pool)


def _convolution(layer: nn.Module) -> Convolution:
    assert isinstance(layer, blocks.BasicConv2d)
    seven = max(layer.conv.kernel_size) == 7  # these see maps of 17 x 17
    return LineConvolution(layer, 17) if seven else Convolution(layer)
