"""The ADM U-Net of Dhariwal & Nichol (arXiv 2105.05233), as the released consistency models use it.

Parameters carry the names and shapes of the released ``.pt`` files of openai/consistency_models, so that one
of them loads with ``load_state_dict`` as it is.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmbench.errors import UsageError
from cmbench.networks.layers import (
    GroupNorm32,
    SelfAttention,
    chosen_rows,
    label_count,
    level_sizes,
    more_embeddings,
    need_labels,
    require_even_halving,
    require_rate,
    split_conditions,
    zeroed,
)

GROUPS = 32


class ResBlock(nn.Module):
    """BigGAN residual block, which may halve or double the resolution between its first norm and convolution.

    The embedding scales and shifts the second norm (``scale_shift``) or is added before it. ``resample`` is
    1, 1/2 (2×2 mean) or 2 (nearest neighbour).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        dropout: float,
        scale_shift: bool,
        resample: float = 1,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            GroupNorm32(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(GROUPS, outputs),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``x`` [B, inputs, H, W], given ``embedding`` [B, E], to [B, outputs, H', W']."""
        norm, activation, convolution = self.in_layers
        h = convolution(self._resampled(activation(norm(x))))
        condition = self.emb_layers(embedding).to(h.dtype)[:, :, None, None]
        norm, activation, dropout, convolution = self.out_layers
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + condition)
        out: Tensor = self.skip_connection(self._resampled(x)) + convolution(dropout(activation(h)))
        return out

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample < 1:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample > 1 else x


class Stage(nn.ModuleList):
    """Layers applied in turn; the residual blocks among them also get the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``x`` [B, C, H, W], given ``embedding`` [B, E]."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ADMUNet(nn.Module):
    """ADM U-Net with residual resampling blocks. Starts as zero; other layers have PyTorch's initialisation.

    Args:
        shape: (C, H, W) of an image.
        classes: classes of the data set.
        channels: width unit, a multiple of 32.
        multipliers: width of each level, in units of ``channels``; every level halves the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: heights of the feature maps at which every block is followed by self-attention. The middle
            always has it.
        head_channels: width of an attention head.
        scale_shift: whether the embedding scales and shifts a norm (ImageNet-64) or is added (LSUN-256).
        dropout: rate within the residual blocks.
        class_conditional: add an embedding of the label to that of the noise level.
        time_scale: factor on ``c_noise``. The released models were trained on 1000·ln(σ)/4 where every other
            network takes ln(σ)/4, so the factor is applied here and callers need not know.
        checkpointing: recompute activations in the backward pass instead of keeping them: slower, smaller.
        conditions: see :mod:`cmbench.networks`.

    Raises:
        UsageError: an option out of range, or an image size that the levels cannot halve.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        channels: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        head_channels: int = 64,
        scale_shift: bool = True,
        dropout: float = 0.0,
        class_conditional: bool = False,
        time_scale: float = 1000.0,
        checkpointing: bool = False,
        conditions: int = 1,
    ) -> None:
        super().__init__()
        heights = level_sizes(shape[1:], channels, multipliers, blocks, attention)
        require_even_halving(shape[1:], len(multipliers))
        labels = label_count(class_conditional, classes)
        rate = require_rate(dropout)
        if channels % GROUPS:
            raise UsageError(f"channels of network 'adm' must be a multiple of {GROUPS}, got {channels}")
        self.channels, self.time_scale, self.checkpointing = channels, time_scale, checkpointing

        def res(inputs: int, outputs: int, resample: float = 1) -> ResBlock:
            return ResBlock(
                inputs, outputs, 4 * channels, dropout=rate, scale_shift=scale_shift, resample=resample
            )

        def attend(width: int) -> SelfAttention:
            if head_channels < 1 or width % head_channels:
                raise UsageError(
                    f"head_channels must divide the attention's width {width}, got {head_channels}"
                )
            return SelfAttention(GroupNorm32(GROUPS, width), width, width // head_channels)

        def block(inputs: int, outputs: int, level: int) -> list[nn.Module]:
            return [res(inputs, outputs), *([attend(outputs)] if heights[level] in attention else [])]

        self.time_embed = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
        )
        self.label_emb = nn.Embedding(labels, 4 * channels) if labels else None

        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        current = widths[0]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(shape[0], current, 3, padding=1)])])
        skips = [current]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(Stage(block(current, width, level)))
                current = width
                skips.append(current)
            if level < last:
                self.input_blocks.append(Stage([res(current, current, resample=0.5)]))
                skips.append(current)
        self.middle_block = Stage([res(current, current), attend(current), res(current, current)])
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                stage = block(current + skips.pop(), width, level)
                current = width
                if level > 0 and i == blocks:
                    stage.append(res(current, current, resample=2))
                self.output_blocks.append(Stage(stage))
        self.out = nn.Sequential(
            GroupNorm32(GROUPS, current), nn.SiLU(), zeroed(nn.Conv2d(current, shape[0], 3, padding=1))
        )
        self.more_conditions = more_embeddings(
            conditions,
            lambda: nn.Sequential(
                nn.Linear(channels, 4 * channels), nn.SiLU(), zeroed(nn.Linear(4 * channels, 4 * channels))
            ),
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network; see ``cmbench.networks``.

        Raises:
            UsageError: the network is class-conditional and ``labels`` is None.
        """
        first, *others = split_conditions(c_noise, 1 + len(self.more_conditions))
        embedding = self.time_embed(self._features(first))
        for embed, condition in zip(self.more_conditions, others, strict=True):
            embedding = embedding + embed(self._features(condition))
        if self.label_emb is not None:
            embedding = embedding + chosen_rows(self.label_emb.weight, need_labels(labels))

        h = x
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            h = self._run(stage, h, embedding)
            skips.append(h)
        h = self._run(self.middle_block, h, embedding)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.out(h)
        return out

    def _features(self, condition: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, device=condition.device, dtype=torch.float32)
        phase = self.time_scale * condition.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    def _run(self, stage: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(stage, h, embedding, use_reentrant=False)
            return recomputed
        out: Tensor = stage(h, embedding)
        return out
