"""The other networks that the field measures with: VGG16, DINOv2 and CLIP."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmbench.metrics.resizing import resize

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _normalize(x: Tensor, colours: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Images [B, 3, H, W] in [0, 255] less a mean colour, over its spread (both given in [0, 1])."""
    mean, spread = (255 * torch.tensor(values, device=x.device)[:, None, None] for values in colours)
    return (x - mean) / spread


class VGG16(nn.Module):
    """torchvision's VGG16 up to its second fully connected layer, for torch-fidelity's precision and recall.

    Layer ``fc2_relu`` [B, 4096].
    """

    def __init__(self, weights: Mapping[str, Tensor], resize_mode: str) -> None:
        super().__init__()
        from torchvision.models import vgg16

        self.resize_mode = resize_mode
        self.network = vgg16()
        self.network.load_state_dict(weights)
        self.network.classifier = self.network.classifier[:5]  # ends after the second layer's ReLU
        self.network.requires_grad_(False).eval()
        self.network.classifier[4].inplace = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The layer of uint8 images [B, 3, H, W]."""
        features = self.network(_normalize(resize(images, 224, self.resize_mode), IMAGENET))
        return {"fc2_relu": features.float()}


class _Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel (LayerScale)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // 64
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(dim)})
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(dim)})

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, 64))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](mixed)
        out: Tensor = x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out


class DINOv2(nn.Module):
    """The vision transformer of Oquab et al. 2023 (arXiv 2304.07193), patches of 14, from its weights alone.

    Layer ``cls``: the normalised class token, [B, 1024] for ViT-L. Width and depth are read off the weights.
    """

    positions: Tensor

    def __init__(self, weights: Mapping[str, Tensor], resize_mode: str) -> None:
        super().__init__()
        dim = weights["cls_token"].shape[-1]
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.resize_mode = resize_mode
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros_like(weights["pos_embed"]))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 14, 14)})
        self.blocks = nn.Sequential(*(_Block(dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.load_state_dict({name: w for name, w in weights.items() if name != "mask_token"})
        self.requires_grad_(False).eval()
        self.register_buffer("positions", self._positions(16), persistent=False)

    def _positions(self, side: int) -> Tensor:
        """Position embeddings [1, 1 + side * side, dim], resampled from the grid trained on."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        trained = math.isqrt(grid.shape[1])
        if trained == side:
            return self.pos_embed.data
        # The released code scales by (side + 0.1) / trained, not side / trained, and its features depend on
        # it.
        grid = F.interpolate(
            grid.reshape(1, trained, trained, -1).permute(0, 3, 1, 2),
            scale_factor=((side + 0.1) / trained,) * 2,
            mode="bicubic",
        )
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The layer of uint8 images [B, 3, H, W]."""
        x = _normalize(resize(images, 224, self.resize_mode), IMAGENET)
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        return {"cls": self.norm(self.blocks(x)[:, 0]).float()}


class CLIP(nn.Module):
    """The image tower of CLIP (Radford et al. 2021) through torch-fidelity's network.

    Layer ``embedding`` [B, 768], not normalised. The published file is a TorchScript archive; only its
    tensors are used, and only after its hash has been checked.
    """

    def __init__(self, path: Path, resize_mode: str) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

        loaded = FeatureExtractorCLIP(
            "clip-vit-l-14-336px", ["clip"], feature_extractor_weights_path=str(path)
        )
        self.resize_mode = resize_mode
        self.size = int(loaded.resolution)
        self.tower = loaded.model.visual

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The layer of uint8 images [B, 3, H, W]."""
        x = _normalize(resize(images, self.size, self.resize_mode), CLIP_COLOURS)
        return {"embedding": self.tower(x).float()}
