"""DDPM++ and NCSN++ of Song et al. (arXiv 2011.13456), as EDM (Karras et al., arXiv 2206.00364) trains them.

Parameters carry the names, shapes and channel order of EDM's ``SongUNet``: weights of that family load once
their constant ``resample_filter`` buffers and the layer ``map_augment``, used in training only, are dropped.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.networks.layers import (
    chosen_rows,
    group_norm,
    label_count,
    level_sizes,
    more_embeddings,
    need_labels,
    require_even_halving,
    require_rate,
    split_conditions,
    zeroed,
)

L = TypeVar("L", nn.Linear, nn.Conv2d)

EPS = 1e-6
SKIP_SCALE = math.sqrt(0.5)
ALMOST_ZERO = 1e-5
"""Gain on weights that start at "zero": as in Score SDE, small rather than zero."""


class Resample(nn.Module):
    """A separable FIR filter, zeros beyond the border, that halves or doubles an image (StyleGAN2's upfirdn).

    With taps (1, 1) halving is the 2×2 mean and doubling the nearest neighbour; NCSN++ has (1, 3, 3, 1).
    A constant stays itself, but at the border of the latter, which mixes in the zeros.
    """

    taps: Tensor

    def __init__(self, taps: Sequence[int]) -> None:
        super().__init__()
        if len(taps) < 2 or len(taps) % 2 or sum(taps) == 0 or list(taps) != list(reversed(taps)):
            raise UsageError(f"resample_filter must be symmetric, of even length, got {list(taps)}")
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("taps", torch.outer(line, line)[None, None], persistent=False)
        self.padding = (len(taps) - 1) // 2


class Halve(Resample):
    """[B, C, H, W] to [B, C, H/2, W/2]; with ``pad=False`` x comes with the filter's padding around it."""

    def forward(self, x: Tensor, pad: bool = True) -> Tensor:
        """Filter, then keep every second pixel."""
        kernel = self.taps.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=self.padding if pad else 0, groups=x.shape[1])


class Double(Resample):
    """[B, C, H, W] to [B, C, 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Put zeros between the pixels, then filter, four times as strong."""
        kernel = (4 * self.taps.to(x.dtype)).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])


class FourierEmbedding(nn.Module):
    """cos and sin of random frequencies N(0, scale²), drawn once and kept with the weights."""

    freqs: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(features // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        """[B] to [B, features]."""
        return _sines(c_noise.float()[:, None] * (2 * math.pi * self.freqs.float()))


class PositionalEmbedding(nn.Module):
    """sin and cos of frequencies spaced geometrically from 1 down to 1/10000, both included."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.count = features // 2

    def forward(self, c_noise: Tensor) -> Tensor:
        """[B] to [B, features]."""
        steps = torch.arange(self.count, device=c_noise.device, dtype=torch.float32)
        return _sines(c_noise.float()[:, None] * 10000 ** (-steps / (self.count - 1)))


def _sines(phase: Tensor) -> Tensor:
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class Block(nn.Module):
    """Residual block with optional resampling and one-head attention; each sum is scaled by √½."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        *,
        attention: bool = False,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm0 = group_norm(inputs, EPS)
        self.conv0 = _xavier(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.affine = _xavier(nn.Linear(embedding, outputs))
        self.norm1 = group_norm(outputs, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = _xavier(nn.Conv2d(outputs, outputs, 3, padding=1), ALMOST_ZERO)
        projected = inputs != outputs or resample is not None
        self.skip = _xavier(nn.Conv2d(inputs, outputs, 1)) if projected else nn.Identity()
        self.attention = attention
        if attention:
            self.norm2 = group_norm(outputs, EPS)
            self.qkv = _xavier(nn.Conv2d(outputs, 3 * outputs, 1), math.sqrt(0.2))
            self.proj = _xavier(nn.Conv2d(outputs, outputs, 1), ALMOST_ZERO)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``x`` [B, inputs, H, W], given ``embedding`` [B, E], to [B, outputs, H', W']."""
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h) + self.affine(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        x = (self.skip(x) + h) * SKIP_SCALE
        if self.attention:
            # Output channel 3c + j of qkv is channel c of the query, key or value (j = 0, 1, 2).
            qkv: Tensor = self.qkv(self.norm2(x)).unflatten(1, (-1, 3)).flatten(3)
            q, k, v = qkv.permute(2, 0, 3, 1).unsqueeze(2)
            h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
            x = (x + self.proj(h.transpose(1, 2).reshape(x.shape))) * SKIP_SCALE
        return x


class SongUNet(nn.Module):
    """DDPM++ (the defaults) or NCSN++ (``embedding="fourier"``, ``encoder="residual"``, filter 1, 3, 3, 1).

    Args:
        shape: (C, H, W) of an image.
        classes: classes of the data set.
        channels: width unit.
        multipliers: width of each level, in units of ``channels``; every level halves the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: heights of the feature maps with self-attention: after every block on the way down, after
            the last of a level on the way up. The middle always has it.
        dropout: rate within the blocks.
        class_conditional: add a linear map of the label to the embedding of the noise level.
        embedding: "positional" (DDPM++) or "fourier" (NCSN++, twice as wide) embedding of ``c_noise``.
        fourier_scale: standard deviation of the Fourier frequencies.
        encoder: "residual" adds the shrunk input image, through a convolution, after every halving (NCSN++).
        resample_filter: taps of the FIR filter that halves and doubles the resolution.
        conditions: see :mod:`cmbench.networks`.

    Raises:
        UsageError: an option out of range, or an image size that the levels cannot halve.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        class_conditional: bool = False,
        embedding: Literal["positional", "fourier"] = "positional",
        fourier_scale: float = 16.0,
        encoder: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        conditions: int = 1,
    ) -> None:
        super().__init__()
        heights = level_sizes(shape[1:], channels, multipliers, blocks, attention)
        require_even_halving(shape[1:], len(multipliers))
        labels = label_count(class_conditional, classes)
        rate = require_rate(dropout)
        self.halve, double = Halve(resample_filter), Double(resample_filter)
        width = 4 * channels

        features = channels if embedding == "positional" else 2 * channels
        fourier = embedding == "fourier"
        self.map_noise = (
            FourierEmbedding(features, fourier_scale) if fourier else PositionalEmbedding(features)
        )
        self.map_label = _xavier(nn.Linear(labels, features)) if labels else None
        self.map_layer0 = _xavier(nn.Linear(features, width))
        self.map_layer1 = _xavier(nn.Linear(width, width))

        def block(inputs: int, outputs: int, attention: bool = False) -> Block:
            return Block(inputs, outputs, width, rate, attention=attention)

        names = [f"{height}x{height}" for height in heights]
        last = len(heights) - 1
        image, current = shape[0], channels
        skips = [channels]
        self.enc = nn.ModuleDict({f"{names[0]}_conv": _xavier(nn.Conv2d(image, channels, 3, padding=1))})
        for level, name in enumerate(names):
            if level > 0:
                self.enc[f"{name}_down"] = Block(current, current, width, rate, resample=self.halve)
                if encoder == "residual":
                    # The convolution also pads for the filter that follows: no border in between.
                    convolution = nn.Conv2d(image, current, 3, padding=1 + self.halve.padding)
                    self.enc[f"{name}_aux_residual"] = _xavier(convolution)
                    image = current
                skips.append(current)
            for i in range(blocks):
                outputs = channels * multipliers[level]
                self.enc[f"{name}_block{i}"] = block(current, outputs, heights[level] in attention)
                current = outputs
                skips.append(current)

        self.dec = nn.ModuleDict()
        for level, name in reversed(list(enumerate(names))):
            if level == last:
                self.dec[f"{name}_in0"] = block(current, current, attention=True)
                self.dec[f"{name}_in1"] = block(current, current)
            else:
                self.dec[f"{name}_up"] = Block(current, current, width, rate, resample=double)
            for i in range(blocks + 1):
                outputs = channels * multipliers[level]
                attend = i == blocks and heights[level] in attention
                self.dec[f"{name}_block{i}"] = block(current + skips.pop(), outputs, attend)
                current = outputs
        self.dec[f"{names[0]}_aux_norm"] = group_norm(current, EPS)
        self.dec[f"{names[0]}_aux_conv"] = _xavier(nn.Conv2d(current, shape[0], 3, padding=1), ALMOST_ZERO)
        self.more_conditions = more_embeddings(
            conditions,
            lambda: nn.Sequential(
                _xavier(nn.Linear(features, width)), nn.SiLU(), zeroed(nn.Linear(width, width))
            ),
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network; see ``cmbench.networks``. Starts near zero.

        Raises:
            UsageError: the network is class-conditional and ``labels`` is None.
        """
        first, *others = split_conditions(c_noise, 1 + len(self.more_conditions))
        embedding = self.map_noise(first)
        if self.map_label is not None:
            weight, bias = self.map_label.weight, self.map_label.bias
            # Row of the weight: the product with a one-hot vector, scaled to unit variance as in EDM.
            chosen = chosen_rows(weight.t(), need_labels(labels))
            embedding = embedding + chosen * math.sqrt(weight.shape[1]) + bias
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        for embed, condition in zip(self.more_conditions, others, strict=True):
            embedding = embedding + embed(self.map_noise(condition))
        embedding = F.silu(embedding)

        h = image = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if isinstance(layer, Block):
                h = layer(h, embedding)
                skips.append(h)
            elif name.endswith("aux_residual"):
                shrunk = self.halve(layer(image), pad=False)
                h = image = skips[-1] = (h + shrunk) * SKIP_SCALE
            else:
                h = layer(h)
                skips.append(h)
        for name, layer in self.dec.items():
            if "_block" in name:
                h = torch.cat([h, skips.pop()], dim=1)
            if isinstance(layer, Block):
                h = layer(h, embedding)
            elif name.endswith("aux_norm"):
                h = F.silu(layer(h))
            else:
                h = layer(h)
        return h


def _xavier(layer: L, gain: float = 1.0) -> L:
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
