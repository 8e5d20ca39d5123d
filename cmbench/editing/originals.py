"""The images that a measurement edits, and what each task gives of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmbench.data import ImageData
from cmbench.editing import tasks
from cmbench.editing.tasks import TITLES, Pixels, Problem, to_floats
from cmbench.errors import UsageError, unknown
from cmbench.sampling.seeds import class_labels

CHUNK = 1000  # images read at a time


@dataclass(frozen=True)
class Setting:
    """How hard the tasks are, by the side of the images.

    Attributes:
        hole: side of the square in the middle that inpainting leaves out.
        factor: of super-resolution.
        stroke: noise level at which strokes are drowned.
        noise: standard deviation of the noise to be removed, on the scale [-1, 1].
    """

    hole: int
    factor: int
    stroke: float
    noise: float = 0.5

    @classmethod
    def of(cls, side: int) -> "Setting":
        """Half the side; blocks of 2, 4 or the paper's 8; strokes at 0.5, 1 or the paper's 5.38, by the side."""
        if side <= 16:
            return cls(side // 2, 2, 0.5)
        return cls(side // 2, 4, 1.0) if side <= 64 else cls(side // 2, 8, 5.38)

    def words(self, task: str) -> str:
        """What the task gives, for figures and tables."""
        return {
            "inpaint": f"without the middle {self.hole} × {self.hole} pixels",
            "superres": f"means of {self.factor} × {self.factor} blocks",
            "colorize": "luma",
            "stroke": f"painted in {tasks.STROKE_COLOURS} colours, from σ = {self.stroke:g}",
            "denoise": f"under noise of σ = {self.noise:g}",
        }[task]


def choose_tasks(names: Sequence[str], channels: int) -> tuple[str, ...]:
    """The tasks of these names; all that the images allow where none is named.

    Raises UsageError for an unknown one, and for colorization of grey images.
    """
    for name in names:
        if name not in TITLES:
            raise unknown("task", name, TITLES)
    if "colorize" in names and channels != 3:
        raise UsageError("colorize: the images of this data set are grey, there is no colour to give them")
    chosen = tuple(dict.fromkeys(names)) or tuple(TITLES)
    return tuple(name for name in chosen if name != "colorize" or channels == 3)


@dataclass(frozen=True, eq=False)
class Originals:
    """Some of the images of ``source``, drawn without replacement: the same for every seed and method.

    Raises UsageError where there are fewer than ``count``.
    """

    source: ImageData
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.source):
            raise UsageError(f"--images {self.count}: there are {len(self.source)}")

    @property
    def setting(self) -> Setting:
        """How hard the tasks are."""
        return Setting.of(self.source.shape[-1])

    @cached_property
    def picked(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Their indices in the source."""
        return np.sort(np.random.default_rng(0).permutation(len(self.source))[: self.count])

    @cached_property
    def pixels(self) -> Pixels:
        """uint8 [N, C, H, W]."""
        return self.source.read(self.picked)

    @cached_property
    def truth(self) -> Tensor:
        """float64 [N, C, H, W] in [-1, 1]."""
        return to_floats(self.pixels)

    def labels(self, classes: int, seed: int) -> Tensor | None:
        """The images' labels [N] for a network of so many classes; drawn where they have none."""
        if not classes:
            return None
        if (known := self.source.present().labels) is not None:
            return torch.from_numpy(known[self.picked])
        return class_labels(seed, range(self.count), classes)

    def problem(self, task: str, seed: int) -> Problem:
        """What the task gives; only denoising depends on the seed."""
        setting, shape = self.setting, self.source.shape
        if task == "inpaint":
            low = (shape[-1] - setting.hole) // 2
            missing = torch.zeros(shape[1:], dtype=torch.bool)
            missing[low : low + setting.hole, low : low + setting.hole] = True
            return tasks.inpainting(self.truth, missing)
        if task == "superres":
            return tasks.superresolution(self.truth, setting.factor)
        if task == "colorize":
            return tasks.colorization(self.truth)
        if task == "stroke":
            return tasks.stroke(to_floats(tasks.paint(self.pixels)), setting.stroke)
        noise = tasks.noise_for(seed, range(self.count), shape)
        return tasks.denoising(self.truth + setting.noise * noise, setting.noise)


def mean_image(images: ImageData) -> Tensor:
    """The mean of a data set, float64 [C, H, W] in [-1, 1]."""
    total = torch.zeros(images.shape, dtype=torch.float64)
    for first in range(0, len(images), CHUNK):
        rows = np.arange(first, min(first + CHUNK, len(images)))
        total += to_floats(images.read(rows)).sum(0)
    return total / len(images)
