"""A network that emits a whole trajectory in one pass: Fourier convolutions over time between its blocks (DFNO)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.networks import adm, mlp, song, unet

BLOCKS = (mlp.Block, unet.Block, song.Block, adm.ResBlock)


class TemporalConvolution(nn.Module):
    """``h + irfft(R rfft(h))`` along the time axis; R mixes channels, one complex matrix for each of the low modes.

    Starts as the identity. R is kept as two real tensors, which optimisers and files take as they are.
    """

    def __init__(self, channels: int, points: int, modes: int) -> None:
        super().__init__()
        self.points = points
        self.real = nn.Parameter(torch.zeros(modes, channels, channels))
        self.imaginary = nn.Parameter(torch.zeros(modes, channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """Mix the points of ``h`` [B * points, C, ...]."""
        series = h.float().reshape(-1, self.points, *h.shape[1:])
        spectrum = torch.fft.rfft(series, dim=1)[:, : len(self.real)]
        kernel = torch.complex(self.real, self.imaginary)
        mixed = torch.einsum("bkc...,kcd->bkd...", spectrum, kernel)
        change = torch.fft.irfft(mixed, n=self.points, dim=1)
        out: Tensor = h + change.flatten(0, 1).to(h.dtype)
        return out

    def after(self, _block: nn.Module, _args: Any, h: Tensor) -> Tensor:
        """As a forward hook of a block."""
        out: Tensor = self(h)
        return out


class TrajectoryNetwork(nn.Module):
    """Any network of cmbench with a time axis of ``points`` points.

    The points go through ``inner`` as a batch, each with its own noise condition; after every residual block a
    :class:`TemporalConvolution` connects them. The convolutions are hooks: ``inner`` knows nothing of time, and its
    weights carry the names of the plain network, whose weights it can take.

    Args:
        inner: the plain network.
        shape: C, H, W of an image.
        classes: number of classes of the data set.
        points: points of the trajectory, M.
        modes: Fourier modes that a convolution keeps, at most M / 2 + 1.

    Raises:
        UsageError: points or modes out of range.
    """

    def __init__(
        self, inner: nn.Module, shape: tuple[int, int, int], classes: int, *, points: int, modes: int
    ) -> None:
        super().__init__()
        if points < 1 or not 1 <= modes <= points // 2 + 1:
            raise UsageError(
                f"trajectory: need points >= 1, not {points}, and 1 <= modes <= points // 2 + 1, not {modes}"
            )
        self.inner, self.points = inner, points
        blocks = [module for module in inner.modules() if isinstance(module, BLOCKS)]
        widths = _widths(inner, blocks, shape, classes)
        self.temporal = nn.ModuleList(TemporalConvolution(width, points, modes) for width in widths)
        for block, convolution in zip(blocks, self.temporal, strict=True):
            assert isinstance(convolution, TemporalConvolution)
            block.register_forward_hook(convolution.after)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``x`` [B, C, H, W], ``c_noise`` [B, M], ``labels`` [B] or None -> [B, M, C, H, W]."""
        repeated = x.repeat_interleave(self.points, dim=0)
        of_points = None if labels is None else labels.repeat_interleave(self.points)
        out: Tensor = self.inner(repeated, c_noise.flatten(), of_points)
        return out.reshape(-1, self.points, *x.shape[1:])


@torch.no_grad()
def _widths(
    inner: nn.Module, blocks: Sequence[nn.Module], shape: tuple[int, int, int], classes: int
) -> list[int]:
    """The channels that each block emits, found by a pass over a blank image."""
    widths: dict[nn.Module, int] = {}

    def note(block: nn.Module, _args: Any, h: Tensor) -> None:
        widths[block] = h.shape[1]

    hooks = [block.register_forward_hook(note) for block in blocks]
    labels = torch.zeros(1, dtype=torch.long) if classes else None
    inner.eval()(torch.zeros(1, *shape), torch.zeros(1), labels)
    inner.train()
    for hook in hooks:
        hook.remove()
    return [widths[block] for block in blocks]
