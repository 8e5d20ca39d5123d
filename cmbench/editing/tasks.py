"""Zero-shot editing as tasks: what is given, and what a consistency or a diffusion model makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from cmbench import recipes
from cmbench.checkpoints import Checkpoint
from cmbench.consistency import editing as algorithm
from cmbench.consistency.function import ConsistencyModel
from cmbench.diffusion import editing as diffusion
from cmbench.diffusion import operators
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.operators import Operator
from cmbench.diffusion.preconditioning import Denoise
from cmbench.diffusion.solvers import STEPS, integrate
from cmbench.errors import UsageError, WorkError
from cmbench.methods import Method, Model
from cmbench.metrics.quantize import quantize
from cmbench.sampling.seeds import SampleRng, initial_noise

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

PASSES = 4
"""How often RePaint takes each step."""
STROKE_COLOURS = 6


def to_floats(pixels: Pixels) -> Tensor:
    """uint8 [B, C, H, W] to float64 in [-1, 1]."""
    return torch.tensor(pixels, dtype=torch.float64) / 127.5 - 1


def to_pixels(images: Tensor) -> Pixels:
    """Floats in [-1, 1] to uint8, rounded: given pixels come back as they were."""
    made: Pixels = quantize(images, "round").cpu().numpy()
    return made


@dataclass(frozen=True)
class Problem:
    """What an editing task gives, for a batch of images [B, C, H, W].

    Attributes:
        given: A and Omega.
        y: float64 in [-1, 1]; its given part is what is known.
        shown: the input as a picture, float in [-1, 1].
        start: where the first noise is added, if not to ``y`` with zeros as the missing part.
        noisy: an image under noise of level ``high``, to be denoised, instead of all that.
        high: the first noise level; sigma_max where None.
    """

    given: Operator
    y: Tensor
    shown: Tensor
    start: Tensor | None = None
    noisy: Tensor | None = None
    high: float | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """The same with all images changed so: some of them, repeated, on another device."""
        return replace(
            self,
            y=change(self.y),
            shown=change(self.shown),
            start=None if self.start is None else change(self.start),
            noisy=None if self.noisy is None else change(self.noisy),
        )


# --- the tasks ------------------------------------------------------------------------------------


def inpainting(images: Tensor, missing: Tensor) -> Problem:
    """The pixels where ``missing`` (bool [H, W]) is true are to be made."""
    return Problem(operators.inpainting(missing), images, images.masked_fill(missing, 0.0))


def superresolution(images: Tensor, factor: int) -> Problem:
    """Only the means of blocks of factor x factor pixels are given."""
    given = operators.superresolution(factor)
    small = given.impose(given.forward(images), torch.zeros_like(images))
    return Problem(given, small, small)


def colorization(images: Tensor) -> Problem:
    """Only the luma of RGB images is given. Raises UsageError for others."""
    if images.shape[1] != 3:
        raise UsageError("colorize: the network's images are grey, there is no colour to give them")
    given = operators.colorization()
    luma = given.forward(images)[..., 0] / given.basis[0].sum().to(images)
    grey = luma[:, None].expand_as(images)
    return Problem(given, images, grey)


def stroke(paintings: Tensor, sigma: float, missing: Tensor | None = None) -> Problem:
    """Paintings to be made into images, from noise level ``sigma`` on; only where ``missing`` if that is given."""
    given = operators.everything_missing() if missing is None else operators.inpainting(missing)
    return Problem(given, paintings, paintings, start=paintings, high=sigma)


def denoising(noisy: Tensor, sigma: float) -> Problem:
    """Images under Gaussian noise of standard deviation ``sigma`` on the scale [-1, 1]."""
    return Problem(operators.everything_missing(), noisy, noisy.clamp(-1, 1), noisy=noisy, high=sigma)


def paint(pixels: Pixels) -> Pixels:
    """Stroke paintings of images uint8 [B, C, H, W], as SDEdit simulates them: a median filter, then six colours."""
    side = pixels.shape[-1]
    window = max(3, 2 * round(23 / 256 * side / 2) + 1)  # SDEdit's 23 pixels for 256
    out = np.empty_like(pixels)
    for row, image in zip(out, pixels, strict=True):
        grey = len(image) == 1
        picture = Image.fromarray(image[0] if grey else image.transpose(1, 2, 0)).convert("RGB")
        flat = picture.filter(ImageFilter.MedianFilter(window)).quantize(
            STROKE_COLOURS, dither=Image.Dither.NONE
        )
        values = np.asarray(flat.convert("RGB")).transpose(2, 0, 1)
        row[:] = values[:1] if grey else values
    return out


# --- who solves them ------------------------------------------------------------------------------


def solve(
    model: ConsistencyModel, problem: Problem, sigmas: Sequence[float], rng: SampleRng, labels: Tensor | None
) -> Tensor:
    """Algorithm 4, or for a noisy image Algorithm 1 from its level on: float64 [B, C, H, W] in [-1, 1]."""
    if problem.noisy is not None:
        return algorithm.denoise(model, problem.noisy, sigmas, rng, labels)
    return algorithm.edit(model, problem.given, problem.y, sigmas, rng, labels, problem.start)


@dataclass(frozen=True)
class Arm:
    """A diffusion baseline.

    Attributes:
        name, label: short name, and as tables print it.
        points: evaluations asked for -> levels of the Karras grid, or None where it cannot do that number.
        run: ``(denoise, problem, sigmas, rng, labels)`` -> images.
        not_for: tasks that it does not do: RePaint's passes are there for a given part, and only the ODE starts at a
            noisy image.
    """

    name: str
    label: str
    points: Callable[[int], int | None]
    run: Callable[[Denoise, Problem, Tensor, SampleRng, Tensor | None], Tensor]
    not_for: tuple[str, ...] = ()

    def can(self, task: str, nfe: int) -> bool:
        """Whether it does this task with so many evaluations."""
        return task not in self.not_for and self.points(nfe) is not None

    def solve(
        self,
        denoise: Denoise,
        levels: NoiseRange,
        problem: Problem,
        nfe: int,
        rng: SampleRng,
        labels: Tensor | None,
    ) -> Tensor:
        """Images float64 [B, C, H, W] in [-1, 1] from ``nfe`` evaluations."""
        count = self.points(nfe)
        assert count is not None  # can() has been asked
        top = replace(levels, sigma_max=problem.high) if problem.high is not None else levels
        return self.run(denoise, problem, karras_sigmas(top, count), rng, labels)


def _ode(heun: bool) -> Callable[[Denoise, Problem, Tensor, SampleRng, Tensor | None], Tensor]:
    def run(
        denoise: Denoise, problem: Problem, sigmas: Tensor, rng: SampleRng, labels: Tensor | None
    ) -> Tensor:
        if problem.noisy is not None:
            noise = problem.noisy / sigmas[0].item()
            with torch.no_grad():
                made = integrate(denoise, noise, sigmas, STEPS["heun" if heun else "euler"], labels)
            return made.double().clamp(-1, 1)
        return diffusion.replacement(
            denoise, problem.given, problem.y, sigmas, rng, labels, problem.start, heun=heun
        )

    return run


def _ancestral(passes: int) -> Callable[[Denoise, Problem, Tensor, SampleRng, Tensor | None], Tensor]:
    return lambda denoise, problem, sigmas, rng, labels: diffusion.repaint(
        denoise, problem.given, problem.y, sigmas, rng, labels, problem.start, passes=passes
    )


ARMS = (
    Arm("ddim", "DDIM", lambda nfe: nfe, _ode(heun=False)),
    Arm("edm", "EDM (Heun)", lambda nfe: (nfe + 1) // 2 if nfe % 2 else None, _ode(heun=True)),
    Arm("ancestral", "Ancestral", lambda nfe: nfe, _ancestral(1), not_for=("denoise",)),
    Arm(
        "repaint",
        f"RePaint × {PASSES}",
        lambda nfe: (nfe - 1) // PASSES + 1 if nfe > 1 and (nfe - 1) % PASSES == 0 else None,
        _ancestral(PASSES),
        not_for=("stroke", "denoise"),
    ),
)
"""All run on the data set's EDM network, the teacher of consistency distillation."""


def consistency_model(method: Method, recipe: Any, model: Model) -> ConsistencyModel:
    """The method's consistency function. Raises UsageError for a method that has none."""
    check_able(method)
    assert method.consistency is not None
    return method.consistency(model, recipe)


def check_able(method: Method) -> None:
    """Raise UsageError for a method without a consistency function."""
    if method.consistency is None:
        raise UsageError(
            f"editing takes a consistency function, and '{method.name}' has none; methods that have: "
            f"{', '.join(able())}"
        )


def able() -> list[str]:
    """Names of the registered methods that have a consistency function; plug-ins that do not load are left out."""
    from cmbench import methods, registry

    found = []
    for name in registry.names("method"):
        try:
            method = methods.get(name)
        except WorkError:
            continue
        if method.consistency is not None:
            found.append(name)
    return found


def trained_recipe(method: Method, checkpoint: Checkpoint) -> Any:
    """The recipe that a checkpoint was trained with: its training grid is the one to edit on."""
    return recipes.parse(method.recipe, checkpoint.header.recipe, str(checkpoint.path))


def open_consistency(method: Method, checkpoint: Checkpoint, device: torch.device) -> ConsistencyModel:
    """The consistency function of a checkpoint."""
    model = Model(checkpoint.network(device), checkpoint.header.noise)
    return consistency_model(method, trained_recipe(method, checkpoint), model)


def noise_for(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The noise that denoising is shown, float64: not the noise that the methods draw."""
    return initial_noise(seed, indices, shape).double()


Solver = Callable[[Problem, SampleRng, "Tensor | None"], Tensor]
"""``(problem, noise, labels) -> images``."""


def in_batches(
    solver: Solver, problem: Problem, seed: int, indices: Sequence[int], labels: Tensor | None,
    size: int, device: torch.device, progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tensor:  # fmt: skip
    """Solve ``size`` images at a time; image i draws from stream (seed, indices[i]). Float64, on the CPU."""
    parts = []
    for first in range(0, len(indices), size):
        rows = slice(first, first + size)
        own = None if labels is None else labels[rows].to(device)
        part = problem.map(lambda images, rows=rows: images[rows].to(device))  # type: ignore[misc]
        parts.append(solver(part, SampleRng(seed, indices[rows], device), own).cpu())
        progress(min(first + size, len(indices)), len(indices))
    return torch.cat(parts)


TITLES: Mapping[str, str] = {
    "inpaint": "Inpainting",
    "superres": "Super-resolution",
    "colorize": "Colorization",
    "stroke": "Stroke-guided",
    "denoise": "Denoising",
}
"""Tasks that are measured: name -> title."""
