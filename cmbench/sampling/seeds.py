"""Randomness by sample: everything drawn for sample i is a function of (seed, i) alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Independent streams of one sample. Synthetic pairs have their own: no student trains on the noise it is tested on.
NOISE, LABEL, SAMPLER, PAIR_NOISE, PAIR_LABEL, *_HELD_OUT = range(11)


class Streams(NamedTuple):
    """The streams that samples are drawn from: their noise, their label, what a stochastic sampler adds."""

    noise: int
    label: int
    sampler: int


RECORDS = Streams(NOISE, LABEL, SAMPLER)
"""Of all that is reported."""

SEARCH, CONFIRMATION = Streams(*_HELD_OUT[:3]), Streams(*_HELD_OUT[3:])
"""Held out from every report, whatever its seed: what settings are chosen on, and what the choice is checked on."""


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The counter-based generator (Philox) of one sample for one purpose; made on the CPU, the same on any device."""
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def initial_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...], purpose: int = NOISE) -> Tensor:
    """Unit-normal noise of the samples ``indices``: float32 [B, *shape], on the CPU."""
    draws = [stream(seed, i, purpose).standard_normal(shape, dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(draws))


def class_labels(seed: int, indices: Sequence[int], classes: int, purpose: int = LABEL) -> Tensor:
    """Uniform class labels of the samples ``indices``: int64 [B], on the CPU."""
    return torch.tensor([int(stream(seed, i, purpose).integers(classes)) for i in indices])


class SampleRng:
    """Fresh noise inside a stochastic sampler: one stream a sample, so that no draw depends on the batch."""

    def __init__(
        self, seed: int, indices: Sequence[int], device: torch.device, purpose: int = SAMPLER
    ) -> None:
        self._streams = [stream(seed, i, purpose) for i in indices]
        self._device = device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """The next unit-normal draw of every sample: float32 [B, *shape]."""
        draws = [generator.standard_normal(shape, dtype=np.float32) for generator in self._streams]
        return torch.from_numpy(np.stack(draws)).to(self._device)
