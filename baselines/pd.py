"""Progressive distillation (Salimans & Ho, 2022, arXiv 2202.00512).

Each stage halves the steps: a student of n DDIM steps learns to make in one step what its teacher, the student of
2n steps, makes in two. The first stage's teacher is the EDM network. Stages are checkpoints of their own, variant
``"n"`` being the student of n steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise, Denoiser, expand
from cmbench.diffusion.solvers import euler_step, integrate
from cmbench.errors import UsageError
from cmbench.methods import DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class PDRecipe:
    """Progressive distillation.

    Attributes:
        fit: optimisation of a stage (the paper anneals the rate to zero in each).
        start: steps of the first student; a power of two.
        last_factor: how many times longer the stages with one and two steps train (the paper: 2).
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    start: int = 32
    last_factor: int = 2
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.start < 1 or self.start & (self.start - 1):
            raise UsageError(f"pd.start {self.start} is not a power of two")


def grid(noise: NoiseRange, steps: int, start: int) -> Tensor:
    """The levels of a student of ``steps`` steps: float64 [steps + 1], from sigma_max to zero.

    They are every (2 start / steps)-th point of the first teacher's grid, so each stage's grid contains the next one's.
    """
    finest = torch.cat([karras_sigmas(noise, 2 * start), torch.zeros(1, dtype=torch.float64)])
    return finest[:: 2 * start // steps]


def two_steps(
    teacher: Denoise, x: Tensor, high: Tensor, middle: Tensor, low: Tensor, labels: Tensor | None
) -> Tensor:
    """The clean image that takes one DDIM step from ``x`` at ``high`` to where two steps of the teacher end.

    With y the end point at ``low``: ``(y - (low / high) x) / (1 - low / high)``, the target of the paper's
    Algorithm 2 with alpha = 1.
    """
    at_middle = euler_step(teacher, x, high, middle, labels)
    at_low = euler_step(teacher, at_middle, middle, low, labels)
    ratio = expand(low / high, x)
    return (at_low - ratio * x) / (1 - ratio)


class StageObjective:
    """``max(|x_hat - x|^2, |x_hat - x|^2 / sigma^2)``: the larger of the losses in x and in epsilon ("truncated SNR").

    ``levels`` is the teacher's grid, float64 [2n + 1] for a student of n steps.
    """

    def __init__(self, teacher: Denoise, levels: Tensor, sigma_data: float) -> None:
        self.teacher, self.levels, self.sigma_data = teacher, levels, sigma_data
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        levels = self.levels = self.levels.to(x.device)  # moved once
        index = 2 * torch.randint(len(levels) // 2, (len(x),), device=x.device, generator=rng)
        # float64: the target divides by 1 - low / high, which is small on fine grids
        high, middle, low = levels[index], levels[index + 1], levels[index + 2]
        noisy = x.double() + expand(high, x) * torch.randn(x.shape, device=x.device, generator=rng)
        with torch.no_grad():
            goal = two_steps(self.teacher, noisy, high, middle, low, labels).float()
        made = Denoiser(network, self.sigma_data)(noisy.float(), high.float(), labels)
        weight = torch.clamp(high**-2, min=1).float()
        error: Tensor = (made - goal).square().flatten(1).mean(1)
        return weight * error

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train the stage ``job.variant``; the student starts from its teacher."""
    recipe: PDRecipe = job.recipe
    steps = int(job.variant)
    student = job.student()
    assert job.teacher is not None  # student() has checked it
    levels = grid(job.noise, 2 * steps, recipe.start)
    objective = StageObjective(Denoiser(job.teacher, job.noise.sigma_data), levels, job.noise.sigma_data)
    longer = recipe.last_factor if steps <= 2 else 1
    return job.fit(student, objective, replace(recipe.fit, steps=longer * recipe.fit.steps))


def sampler(model: Model, recipe: PDRecipe, nfe: int) -> "Sampler":
    """DDIM over the student's grid."""
    denoise = model.denoiser()
    sigmas = grid(model.noise, nfe, recipe.start)[:-1]
    return lambda noise, labels, _rng: integrate(denoise, noise, sigmas, euler_step, labels)


def refuses(nfe: int, recipe: PDRecipe) -> str | None:
    """Students exist for powers of two up to the first stage's."""
    if nfe <= recipe.start and nfe & (nfe - 1) == 0:
        return None
    return f"students exist for powers of two up to {recipe.start} (pd.start)"


def parent(variant: str, recipe: PDRecipe) -> Parent:
    """The student of twice the steps, or for the first stage the EDM network."""
    steps = int(variant)
    return Parent("edm") if steps == recipe.start else Parent("pd", str(2 * steps))


PD = Method(
    name="pd",
    label="PD",
    group=DISTILLATION,
    reference="Salimans & Ho, 2022",
    summary="progressive distillation: students that halve the number of DDIM steps, stage by stage",
    recipe=PDRecipe,
    sampler=sampler,
    train=train,
    parent=parent,
    variant=lambda nfe, _recipe: str(nfe),
    refuses=refuses,
    paper="arXiv:2202.00512",
    differs="in the EDM formulation and on the Karras grid; the paper's is variance-preserving with a cosine schedule",
)
