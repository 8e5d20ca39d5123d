"""Parts that the networks share."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmbench.errors import UsageError

M = TypeVar("M", bound=nn.Module)

NULL = -1
"""The label of the null class, which every class-conditional network takes: no class is told."""


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the input's precision; the output has the input's."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` [B, C, ...]."""
        return super().forward(input.float()).to(input.dtype)


def group_norm(channels: int, eps: float = 1e-5) -> GroupNorm32:
    """Norm with 32 groups, or as many as divide ``channels`` into groups of at least 4."""
    groups = max(1, min(32, channels // 4))
    while channels % groups:
        groups -= 1
    return GroupNorm32(groups, channels, eps=eps)


class SelfAttention(nn.Module):
    """Residual multi-head self-attention over pixels, x + proj(attention(norm(x))); starts as the identity.

    The 3·C output channels of ``qkv`` are laid out (three, heads, width), as in the released models
    of openai/consistency_models.
    """

    def __init__(self, norm: nn.Module, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``x`` [B, C, H, W]."""
        batch, channels, height, width = x.shape
        qkv: Tensor = self.qkv(self.norm(x))
        qkv = qkv.reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj_out(h.transpose(-1, -2).reshape(x.shape))
        return x + out


def zeroed(module: M) -> M:
    """The same module with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


MORE_CONDITIONS = "more_conditions"
"""Where every network keeps the embeddings of the conditions after the first."""


def more_embeddings(conditions: int, make: Callable[[], nn.Module]) -> nn.ModuleList:
    """An embedding for each condition after the first, made last so that the other weights start as without them.

    ``make`` gives one that starts as zero: a network that takes over weights of one condition then starts as it was.

    Raises:
        UsageError: no condition at all.
    """
    if conditions < 1:
        raise UsageError(f"a network needs at least one condition, got conditions={conditions}")
    return nn.ModuleList(make() for _ in range(conditions - 1))


def split_conditions(c_noise: Tensor, conditions: int) -> list[Tensor]:
    """The conditions one by one, [B] each, of ``c_noise`` [B] (one condition) or [B, conditions].

    Raises:
        UsageError: another number of conditions than the network was built for.
    """
    columns = [c_noise] if c_noise.ndim == 1 else list(c_noise.unbind(1))
    if len(columns) != conditions:
        raise UsageError(f"this network takes {conditions} conditions, got {len(columns)}")
    return columns


def level_sizes(
    size: tuple[int, int], channels: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int]
) -> list[int]:
    """Heights of the feature maps at each level, halved and rounded up from ``size`` (H, W).

    Raises:
        UsageError: no levels or blocks, or attention asked for at a height that no level has.
    """
    if channels < 4 or channels % 2 or blocks < 1 or not multipliers or min(multipliers) < 1:
        raise UsageError(
            "a U-Net needs an even number of channels >= 4, blocks >= 1 and multipliers >= 1, "
            f"got channels={channels}, blocks={blocks}, multipliers={list(multipliers)}"
        )
    heights = [-(-size[0] // 2**level) for level in range(len(multipliers))]
    if missing := set(attention) - set(heights):
        raise UsageError(f"attention at {sorted(missing)}: the network's resolutions are {heights}")
    return heights


def require_even_halving(size: tuple[int, int], levels: int) -> None:
    """Raise UsageError unless ``size`` (H, W) can be halved ``levels - 1`` times without a remainder."""
    if size[0] % 2 ** (levels - 1) or size[1] % 2 ** (levels - 1):
        raise UsageError(
            f"{size[0]}x{size[1]} images cannot be halved {levels - 1} times: give fewer multipliers"
        )


def label_count(class_conditional: bool, classes: int) -> int:
    """Number of labels that a network embeds: ``classes`` if it is class-conditional, else 0.

    Raises:
        UsageError: a class-conditional network for data without classes.
    """
    if class_conditional and classes < 1:
        raise UsageError("class_conditional needs a data set with labels, and this one has none")
    return classes if class_conditional else 0


def need_labels(labels: Tensor | None) -> Tensor:
    """The labels, of a class-conditional network; UsageError if there are none."""
    if labels is None:
        raise UsageError("this network is class-conditional: it needs a label for every image")
    return labels


def chosen_rows(table: Tensor, labels: Tensor) -> Tensor:
    """Rows of ``table`` [classes, E] for ``labels`` [B]; zeros for the null class. [B, E]."""
    known = (labels != NULL)[:, None]
    return torch.where(known, F.embedding(labels.clamp(min=0), table), 0.0)


def require_rate(dropout: float) -> float:
    """The dropout rate itself; UsageError unless it lies in [0, 1)."""
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must lie in [0, 1), got {dropout}")
    return dropout
