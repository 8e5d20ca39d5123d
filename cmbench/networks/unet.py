"""A small U-Net for quick experiments on digits, MNIST and CIFAR-10."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.networks.layers import (
    SelfAttention,
    chosen_rows,
    group_norm,
    label_count,
    level_sizes,
    more_embeddings,
    need_labels,
    require_rate,
    split_conditions,
    zeroed,
)

FREQUENCIES = (0.5, 64.0)
"""Slowest and fastest sinusoid, in radians per unit of c_noise, which spans 2.65 from σ = 0.002 to 80.

Neighbours on a grid of 200 noise levels stay apart, yet the output is smooth in c_noise: much faster ones
make consistency training unstable (Lu & Song, arXiv 2410.11081, section 4.1).
"""


class Block(nn.Module):
    """Residual block whose second norm the embedding scales and shifts; optional self-attention after it."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        heads = outputs // 64 if outputs % 64 == 0 else 1
        self.attention = SelfAttention(group_norm(outputs), outputs, heads) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``x`` [B, inputs, H, W], given ``embedding`` [B, E], to [B, outputs, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        out: Tensor = self.attention(self.skip(x) + self.conv2(self.dropout(h)))
        return out


class UNet(nn.Module):
    """U-Net with adaptive group norm, strided and nearest-neighbour resampling; any image size.

    Args:
        shape: (C, H, W) of an image. Odd sizes are halved rounding up.
        classes: classes of the data set.
        channels: width of the first level.
        multipliers: width of each level, in units of ``channels``; every level halves the resolution.
        blocks: residual blocks a level, on the way down and again on the way up.
        attention: heights of the feature maps at which every block is followed by self-attention.
        dropout: rate within the blocks.
        class_conditional: add an embedding of the label to that of the noise level.
        conditions: see :mod:`cmbench.networks`.
        patch: squares of this many pixels a side become the channels of one; the first level then works on
            images ``patch`` times smaller, at a fraction of the cost. Must divide H and W.

    Raises:
        UsageError: an option out of range.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        class_conditional: bool = False,
        conditions: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        C, H, W = shape
        if patch < 1 or H % patch or W % patch:
            raise UsageError(f"patch={patch} must divide the {H}x{W} pixels of an image")
        heights = level_sizes((H // patch, W // patch), channels, multipliers, blocks, attention)
        labels = label_count(class_conditional, classes)
        rate = require_rate(dropout)
        width = 4 * channels
        self.channels, self.patch = channels, patch
        pixels = C * patch**2  # channels of an image whose squares are folded
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(labels, width) if labels else None

        def block(inputs: int, outputs: int, level: int) -> Block:
            return Block(inputs, outputs, width, rate, heights[level] in attention)

        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        current = channels
        self.first = nn.Conv2d(pixels, current, 3, padding=1)
        self.encoder = nn.ModuleList()
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                self.encoder.append(block(current, outputs, level))
                current = outputs
            if level < last:
                self.encoder.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
        self.middle = block(current, current, last)
        self.decoder = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.decoder.append(block(current + outputs, outputs, level))
                current = outputs
        self.last = nn.Sequential(
            group_norm(current), nn.SiLU(), zeroed(nn.Conv2d(current, pixels, 3, padding=1))
        )
        self.more_conditions = more_embeddings(
            conditions,
            lambda: nn.Sequential(nn.Linear(channels, width), nn.SiLU(), zeroed(nn.Linear(width, width))),
        )

    def _features(self, condition: Tensor) -> Tensor:
        slow, fast = (math.log2(frequency) for frequency in FREQUENCIES)
        frequencies = torch.logspace(slow, fast, self.channels // 2, base=2, device=condition.device)
        phase = condition.float()[:, None] * frequencies.float()
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network; see ``cmbench.networks``. Starts as zero.

        Raises:
            UsageError: the network is class-conditional and ``labels`` is None.
        """
        first, *others = split_conditions(c_noise, 1 + len(self.more_conditions))
        embedding = self.embed(self._features(first))
        for embed, condition in zip(self.more_conditions, others, strict=True):
            embedding = embedding + embed(self._features(condition))
        if self.embed_label is not None:
            embedding = embedding + chosen_rows(self.embed_label.weight, need_labels(labels))
        embedding = F.silu(embedding)

        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.first(x)
        skips: list[Tensor] = []
        for layer in self.encoder:
            if isinstance(layer, Block):
                h = layer(h, embedding)
                skips.append(h)
            else:
                h = layer(h)
        h = self.middle(h, embedding)
        for layer in self.decoder:
            skip = skips.pop()
            if h.shape[-2:] != skip.shape[-2:]:
                h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
            h = layer(torch.cat([h, skip], dim=1), embedding)
        out: Tensor = self.last(h)
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out
