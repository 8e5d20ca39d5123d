"""The network that edits a user's images: found, or trained, and what its size allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmbench import checkpoints, methods
from cmbench.consistency import editing as algorithm
from cmbench.consistency.editing import editing_levels
from cmbench.consistency.function import ConsistencyModel
from cmbench.diffusion.editing import encode
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.editing import files, tasks
from cmbench.editing.originals import Setting
from cmbench.editing.tasks import Pixels, Problem, to_floats, to_pixels
from cmbench.errors import UsageError
from cmbench.sampling.generate import check_labels

if TYPE_CHECKING:
    from cmbench.session import Options
    from cmbench.workshop import Workshop

FULL = 40  # evaluations where a function knows every level: the paper's number of grid points on LSUN
POINTS = 18  # of the grid on which images are taken to noise space; 36 move latents of digits by 0.01
APART = 2**20  # how far apart the sample indices of two results for one image lie


@dataclass(frozen=True)
class Desk:
    """A consistency model, ready to edit.

    Attributes:
        model: its consistency function.
        shape: C, H, W of its images.
        classes: that it is conditioned on; 0 for none.
        device: where it runs.
        given: the user's checkpoints.
        workshop: opens the data set's workshop, which finds or trains the EDM network.
    """

    model: ConsistencyModel
    shape: tuple[int, int, int]
    classes: int
    device: torch.device
    given: tuple[checkpoints.Checkpoint, ...]
    workshop: "Callable[[], Workshop]"

    # --- input ------------------------------------------------------------------------------------

    def read(self, paths: Sequence[Path], *, fitted: bool = False, smaller: int = 1) -> Tensor:
        """The images as float64 [B, C, H, W] in [-1, 1]; see :func:`cmbench.editing.files.read_image`."""
        images = [files.read_image(one, self.shape, fitted=fitted, smaller=smaller) for one in paths]
        return torch.cat([to_floats(one[None]) for one in images])

    def mask(self, path: Path, *, fitted: bool = False) -> Tensor:
        """bool [H, W]; see :func:`cmbench.editing.files.read_mask`."""
        return torch.from_numpy(files.read_mask(path, self.shape, fitted=fitted))

    def check_colour(self) -> None:
        """Raise UsageError where the network's images are grey."""
        if self.shape[0] != 3:
            raise UsageError("colorize: the network's images are grey, there is no colour to give them")

    def check_factor(self, factor: int) -> None:
        """Raise UsageError where blocks of this side do not fill the network's images."""
        _, height, width = self.shape
        if height % factor or width % factor:
            raise UsageError(f"--factor {factor}: blocks of that side do not fill {width} × {height} pixels")

    def check_level(self, sigma: float) -> None:
        """Raise UsageError where the network does not know this noise level."""
        editing_levels(self.model, 1, sigma)

    def stroke_level(self, sigma: float | None) -> float:
        """The noise level for strokes: the user's, or what :class:`Setting` has for this size."""
        chosen = Setting.of(self.shape[2]).stroke if sigma is None else sigma
        self.check_level(chosen)
        return chosen

    # --- output -----------------------------------------------------------------------------------

    def edit(
        self, problem: Problem, *, nfe: int | None, seed: int, count: int = 1, labels: tuple[int, ...] = (),
        batch_size: int | None = None, progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Pixels:  # fmt: skip
        """``count`` results for each image, one image's beside each other: uint8 [B * count, C, H, W].

        Result k of image i draws from the stream (seed, i + k 2^20), whatever else is edited with it.
        """
        images = len(problem.y)
        default = FULL if self.model.points is None else self.model.points - 1
        sigmas = editing_levels(self.model, nfe or default, problem.high)
        repeated = problem.map(lambda images: images.repeat_interleave(count, 0))
        indices = [image + k * APART for image in range(images) for k in range(count)]
        made = tasks.in_batches(
            lambda p, rng, own: tasks.solve(self.model, p, sigmas, rng, own),
            repeated, seed, indices, self._labels(labels, images, count), batch_size or 64, self.device, progress,
        )  # fmt: skip
        return to_pixels(made)

    def interpolate(self, ends: Tensor, steps: int, labels: tuple[int, ...] = ()) -> Pixels:
        """``steps`` images from one image to another: uint8 [steps, C, H, W]; ``ends`` [2, C, H, W] in [-1, 1]."""
        own = self._labels(labels[:1], 1, steps)
        denoise, levels = self._diffusion()
        two = None if own is None else own[:2].to(self.device)
        latents = encode(denoise, ends.to(self.device), karras_sigmas(levels, POINTS).flip(0), two)
        path = algorithm.slerp(latents[0], latents[1], torch.linspace(0, 1, steps, device=self.device))
        made = algorithm.from_latents(self.model, path, None if own is None else own.to(self.device))
        return to_pixels(made)

    def _labels(self, labels: tuple[int, ...], images: int, count: int) -> Tensor | None:
        check_labels(labels, self.classes)
        if not self.classes:
            return None
        if not labels:
            raise UsageError("this network is class-conditional: name the images' classes, --label 3")
        own = [labels[image % len(labels)] for image in range(images)]
        return torch.tensor(own).repeat_interleave(count)

    def _diffusion(self) -> "tuple[Denoiser, NoiseRange]":
        """The EDM network: the user's, or the data set's."""
        for one in self.given:
            if methods.get(one.header.method).denoiser and one.header.shape == self.shape:
                return Denoiser(one.network(self.device), one.header.noise.sigma_data), one.header.noise
        shop = self.workshop()
        checkpoint = shop.ensure(shop.need(methods.get("edm"), 1, 0))
        return Denoiser(
            checkpoint.network(self.device), checkpoint.header.noise.sigma_data
        ), checkpoint.header.noise


def open_desk(
    method: str | None,
    dataset: str | None,
    options: "Callable[[str], Options]",
    given: Sequence[Path] = (),
    seed: int = 0,
) -> Desk:
    """The network that edits.

    A checkpoint of the user's says which method and data set it is of, and needs no images of that data set. Otherwise
    the workshop finds the method's checkpoint, or trains it.

    Args:
        method: name, or None: that of the first checkpoint with a consistency function, else CD.
        dataset: name, or None: that of the checkpoint, else digits.
        options: the options of the command, for a data set's name.
        given: the user's checkpoint files.
        seed: training seed, where no checkpoint is given.

    Raises:
        UsageError: a method without a consistency function, a checkpoint of another method.
    """
    from cmbench import session

    loaded = tuple(checkpoints.load(path) for path in given)
    chosen = method or next(
        (one.header.method for one in loaded if methods.get(one.header.method).consistency is not None),
        loaded[0].header.method if loaded else "cd",
    )
    of = methods.get(chosen)
    tasks.check_able(of)
    own = next((one for one in loaded if one.header.method == chosen), None)
    if (
        loaded
        and own is None
        and method is not None
        and not any(methods.get(c.header.method).denoiser for c in loaded)
    ):
        raise UsageError(
            f"--checkpoint {loaded[0].path} is of '{loaded[0].header.method}', not of '{chosen}'"
        )
    name = dataset or (own.header.dataset if own else "digits")
    opened = options(name)

    def workshop() -> "Workshop":
        return session.open_workshop(opened)

    if own is None:
        shop = workshop()
        own = shop.ensure(shop.need(of, 1, seed))
    device = session.choose_device(opened.device)
    model = tasks.open_consistency(of, own, device)
    return Desk(model, own.header.shape, own.header.classes, device, loaded, workshop)
