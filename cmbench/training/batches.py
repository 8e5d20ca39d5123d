"""Training batches as a function of (seed, step): what a resumed run needs to go on exactly."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class TrainingImages(Protocol):
    """What training reads of a data set."""

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N], or None."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [B, C, H, W] at these indices; of synthetic pairs float32 [B, 1 + M, C, H, W], taken as they are."""
        ...


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device, without the host waiting for what the device has still to do."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Batches:
    """Batches of a data set (normalised to [-1, 1]) or of synthetic pairs, on the training device.

    Sets of at most 2 GiB are moved to the device once, larger ones are read batch by batch.
    """

    def __init__(
        self, images: TrainingImages, device: torch.device, batch: int, seed: int, flip: bool
    ) -> None:
        self.images, self.device, self.batch, self.seed, self.flip = images, device, batch, seed, flip
        self._epoch: tuple[int, np.ndarray] | None = None
        probe = images.read(np.arange(1))
        small = probe.nbytes * len(images) <= 2**31
        self._all = torch.from_numpy(images.read(np.arange(len(images)))).to(device) if small else None
        labels = images.labels
        self._labels = None if labels is None else torch.from_numpy(labels).to(device)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.images)))
        return self._epoch[1]

    def indices(self, step: int) -> np.ndarray:
        """The images of a step: consecutive slices of an endless stream of seeded permutations."""
        total, position = len(self.images), step * self.batch
        parts, missing = [], self.batch
        while missing:
            epoch, offset = divmod(position, total)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    def at(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Images float32 [B, C, H, W] in [-1, 1] and labels [B] or None of a step; flips draw from ``generator``.

        Of pairs, float32 [B, 1 + M, C, H, W].
        """
        chosen = self.indices(step)
        where = on_device(torch.from_numpy(chosen), self.device)
        raw = (
            self._all[where]
            if self._all is not None
            else on_device(torch.from_numpy(self.images.read(chosen)), self.device)
        )
        x = raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw
        if self.flip:
            flipped = torch.rand(len(x), device=self.device, generator=generator) < 0.5
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, None if self._labels is None else self._labels[where]
