"""From sample indices to images: noise, sampler, and the count of network evaluations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmbench.sampling.seeds import SampleRng, class_labels, initial_noise

Sampler = Callable[[Tensor, Tensor | None, SampleRng], Tensor]
"""``(noise [B, C, H, W] unit normal, labels [B] or None, rng) -> images [B, C, H, W] in [-1, 1]``."""


class EvaluationCounter:
    """Counts, by a hook, how many times each sample goes through the network (guidance counts double)."""

    def __init__(self, network: nn.Module) -> None:
        self.rows = 0
        self._hook = network.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
        self.rows += len(args[0])

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()


@dataclass(frozen=True)
class Source:
    """All that turns sample indices into images.

    ``classes`` is 0 for an unconditional network; ``shape`` is C, H, W.
    """

    sampler: Sampler
    shape: tuple[int, int, int]
    classes: int
    seed: int
    device: torch.device

    @torch.no_grad()
    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of these samples: float [B, C, H, W] in [-1, 1], on the device."""
        noise = initial_noise(self.seed, indices, self.shape).to(self.device)
        labels = class_labels(self.seed, indices, self.classes).to(self.device) if self.classes else None
        return self.sampler(noise, labels, SampleRng(self.seed, indices, self.device))

    def batches(self, start: int, stop: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """``(first index, images)`` for the samples start..stop-1, ``size`` at a time."""
        for first in range(start, stop, size):
            yield first, self.images(range(first, min(first + size, stop)))


def shard_ranges(samples: int, shard: int) -> list[tuple[int, int]]:
    """Cut 0..samples-1 into contiguous ranges of ``shard`` indices; the last may be shorter."""
    return [(start, min(start + shard, samples)) for start in range(0, samples, shard)]
