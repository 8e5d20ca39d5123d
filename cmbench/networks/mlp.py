"""A residual MLP with modulated layer norm: the network of the embedded 8 x 8 data set."""

import math

import torch
from torch import Tensor, nn

from cmbench.networks.layers import (
    chosen_rows,
    label_count,
    more_embeddings,
    need_labels,
    split_conditions,
    zeroed,
)


class TimeEmbedding(nn.Module):
    """Sine and cosine features of the noise condition, then a two-layer perceptron: [B] -> [B, width].

    Frequencies run geometrically from 1/4 to ``max_frequency`` cycles per unit of c_noise. The whole noise range
    spans 2.7 units, so a low maximum makes the network smooth in sigma, which consistency training relies on.
    """

    frequencies: Tensor

    def __init__(self, width: int, max_frequency: float, features: int = 64) -> None:
        super().__init__()
        exponents = torch.linspace(0, 1, features // 2)
        self.register_buffer("frequencies", 0.25 * (4 * max_frequency) ** exponents, persistent=False)
        self.mix = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise conditions [B]."""
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies
        out: Tensor = self.mix(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out


class Block(nn.Module):
    """``x + gate * MLP(modulated layer norm of x)``; shift, scale and gate come from the embedding."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 3 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` [B, width], ``embedding`` [B, embedding] -> [B, width]."""
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        hidden = nn.functional.silu(self.inner(self.norm(x) * (1 + scale) + shift))
        out: Tensor = x + (1 + gate) * self.outer(hidden)
        return out


class ResidualMLP(nn.Module):
    """Flattens the image; ``blocks`` residual blocks of ``width``; class-conditional on request.

    Args:
        shape: C, H, W of the images.
        classes: number of classes of the data set.
        width: width of the residual stream.
        blocks: number of residual blocks.
        embedding: width of the time (and class) embedding.
        max_frequency: see :class:`TimeEmbedding`.
        skip: add the input to the output, each value times a factor that the network predicts. Images of more values
            than ``width`` need it: at low noise levels the network is to predict the noise of its input, pixel by
            pixel, and that does not pass through a narrower stream.
        class_conditional: whether labels are read; they are then required (``NULL`` is the null class).
        conditions: see :mod:`cmbench.networks`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        width: int = 256,
        blocks: int = 4,
        embedding: int = 128,
        max_frequency: float = 1.0,
        skip: bool = False,
        class_conditional: bool = False,
        conditions: int = 1,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.time = TimeEmbedding(embedding, max_frequency)
        labelled = label_count(class_conditional, classes)
        self.label = nn.Embedding(labelled, embedding) if labelled else None
        self.head = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, embedding) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.tail = nn.Linear(width, size)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        self.skip = zeroed(nn.Linear(width, size)) if skip else None

        def zero_embedding() -> TimeEmbedding:
            made = TimeEmbedding(embedding, max_frequency)
            zeroed(made.mix[2])
            return made

        self.more_conditions = more_embeddings(conditions, zero_embedding)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``x`` [B, C, H, W], ``c_noise`` [B] or [B, conditions], ``labels`` [B] or None -> [B, C, H, W]."""
        first, *others = split_conditions(c_noise, 1 + len(self.more_conditions))
        embedding = self.time(first)
        for embed, condition in zip(self.more_conditions, others, strict=True):
            embedding = embedding + embed(condition)
        if self.label is not None:
            embedding = embedding + chosen_rows(self.label.weight, need_labels(labels))
        hidden = self.head(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        hidden = self.norm(hidden)
        out: Tensor = self.tail(hidden).reshape(x.shape)
        if self.skip is not None:
            out = out + self.skip(hidden).reshape(x.shape) * x
        return out
