"""From sample indices to images: noise, sampler, and the count of network evaluations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.sampling.seeds import RECORDS, SampleRng, Streams, class_labels, initial_noise

if TYPE_CHECKING:
    from cmbench.checkpoints import Checkpoint
    from cmbench.methods import Method
    from cmbench.workshop import Workshop

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

    ``classes`` is 0 for an unconditional network; ``shape`` is C, H, W. Labels are drawn uniformly for each sample;
    with ``labels``, sample i has the (i mod their number)-th of them instead. ``streams``: where its randomness comes
    from.
    """

    sampler: Sampler
    shape: tuple[int, int, int]
    classes: int
    seed: int
    device: torch.device
    labels: tuple[int, ...] = ()
    streams: Streams = RECORDS

    @torch.no_grad()
    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of these samples: float [B, C, H, W] in [-1, 1], on the device."""
        noise = initial_noise(self.seed, indices, self.shape, self.streams.noise).to(self.device)
        rng = SampleRng(self.seed, indices, self.device, self.streams.sampler)
        return self.sampler(noise, self._labels(indices), rng)

    def _labels(self, indices: Sequence[int]) -> Tensor | None:
        if not self.classes:
            return None
        if self.labels:
            return torch.tensor([self.labels[i % len(self.labels)] for i in indices], device=self.device)
        return class_labels(self.seed, indices, self.classes, self.streams.label).to(self.device)

    def batches(self, start: int, stop: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """``(first index, images)`` for the samples start..stop-1, ``size`` at a time."""
        for first in range(start, stop, size):
            yield first, self.images(range(first, min(first + size, stop)))


def check_labels(labels: Sequence[int], classes: int) -> None:
    """Raise UsageError unless these are labels of a network conditioned on so many classes."""
    if labels and not classes:
        raise UsageError("--label is for a class-conditional network: --set network.class_conditional=true")
    if any(not 0 <= label < classes for label in labels):
        raise UsageError(f"--label {' '.join(map(str, labels))}: the classes are 0 to {classes - 1}")


def open_source(
    workshop: "Workshop",
    method: "Method",
    checkpoint: "Checkpoint",
    network: nn.Module,
    *,
    nfe: int,
    seed: int,
    labels: tuple[int, ...] = (),
    recipe: Any = None,
    streams: Streams = RECORDS,
) -> Source:
    """The samples of a method's checkpoint, guided as the recipe says; ``network`` is the checkpoint's, on the device.

    ``recipe`` stands in for the workshop's where it is given.

    Raises UsageError where guidance is asked for and the method does not sample through the denoiser.
    """
    from cmbench.methods import Model

    head = checkpoint.header
    model = Model(network, head.noise, workshop.common.guided)
    sampler = method.sample_with(model, recipe or workshop.recipe(method), nfe)
    return Source(sampler, head.shape, head.classes, seed, workshop.device, labels, streams)


def shard_ranges(samples: int, shard: int) -> list[tuple[int, int]]:
    """Cut 0..samples-1 into contiguous ranges of ``shard`` indices; the last may be shorter."""
    return [(start, min(start + shard, samples)) for start in range(0, samples, shard)]
