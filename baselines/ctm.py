"""Consistency trajectory models (Kim et al., 2023, arXiv 2310.02279): jumps between any two points of the ODE.

``G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)`` takes ``x`` at noise level t to level s on the teacher's trajectory;
g is preconditioned as EDM's denoiser, and at s = t it is the denoiser.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cmbench.consistency.distance import Distance, distance
from cmbench.consistency.function import ConsistencyModel, default_taus
from cmbench.consistency.methods import DistanceName
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise, Denoiser, expand, run_network, scaled_input
from cmbench.diffusion.solvers import STEPS, Step
from cmbench.errors import UsageError
from cmbench.methods import DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit
from cmbench.training.loop import move_towards

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler
    from cmbench.sampling.seeds import SampleRng


@dataclass(frozen=True)
class CTMRecipe:
    """Consistency trajectory distillation.

    Attributes:
        fit: optimisation.
        points: N, the grid points of the Karras grid.
        solver: the teacher's ODE step.
        most_steps: the teacher takes 1 up to this many steps from t to u, all numbers equally often.
        metric: distance of the trajectory loss (l2 is squared).
        target_ema: mu of the target network; 0 is the stop-gradient of the current parameters.
        denoising: weight of the denoising score matching loss.
        log_mean, log_std: the log-normal distribution of its noise levels.
        gamma: of gamma-sampling: 0 follows the ODE, 1 returns to the start and noises again at each step.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    points: int = 18
    solver: Literal["euler", "heun"] = "heun"
    most_steps: int = 17
    metric: DistanceName = "l2"
    target_ema: float = 0.999
    denoising: float = 1.0
    log_mean: float = -1.2
    log_std: float = 1.2
    gamma: float = 0.0
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.points < 2 or not 1 <= self.most_steps < self.points:
            raise UsageError(
                f"ctm: need points >= 2, not {self.points}, and 1 <= most_steps < points, not {self.most_steps}"
            )
        if not 0 <= self.target_ema < 1 or not 0 <= self.gamma <= 1 or self.denoising < 0:
            raise UsageError("ctm: need 0 <= target_ema < 1, 0 <= gamma <= 1 and denoising >= 0")


class Trajectory(nn.Module):
    """The jumps G around a raw network of two conditions, the noise levels t and s (equation 5)."""

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def clean(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """g(x, t, s) [B, C, H, W] for levels t >= s > 0, [B]."""
        sd = self.sigma_data
        t, s = t.to(x.dtype), s.to(x.dtype)
        total = t**2 + sd**2
        raw = run_network(self.network, x, torch.stack([t, s], dim=1), labels, scaled_input(t, sd))
        return expand(sd**2 / total, x) * x + expand(t * sd / torch.sqrt(total), x) * raw

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(x, t, s) [B, C, H, W]."""
        ratio = expand(s.to(x.dtype) / t.to(x.dtype), x)
        return ratio * x + (1 - ratio) * self.clean(x, t, s, labels)


class TrajectoryObjective:
    """``d(G'(G(x_t, t, s), s, 0), G'(G'(x_u, u, s), s, 0)) + weight * denoising loss`` (equations 8, 9 and 12).

    G' is the target network, x_u comes from x_t by steps of the teacher, s <= u < t are grid points, and 0 is
    sigma_min. All samples of a batch take the same number of teacher steps.
    """

    def __init__(
        self,
        recipe: CTMRecipe,
        noise: NoiseRange,
        distance: Distance,
        teacher: Denoise,
        step: Step,
        target: nn.Module,
    ) -> None:
        self.recipe, self.noise, self.distance = recipe, noise, distance
        self.teacher, self.step, self.target = teacher, step, target
        self.levels = karras_sigmas(noise, recipe.points).flip(0)
        self.modules: Mapping[str, nn.Module] = {"target": target}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        return self.trajectory(network, x, labels, rng) + self.recipe.denoising * self.denoising(
            network, x, labels, rng
        )

    def trajectory(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        """The soft consistency loss, [B]."""
        levels = self.levels.to(x.device, x.dtype)

        def draw(count: Tensor) -> Tensor:
            """Whole numbers below ``count``."""
            uniform = torch.rand(count.shape, device=x.device, generator=rng)
            return torch.minimum((uniform * count).long(), count - 1)

        steps = int(torch.randint(1, self.recipe.most_steps + 1, (), device=x.device, generator=rng))
        index_u = draw(torch.full((len(x),), len(levels) - steps, device=x.device))
        t, u, s = levels[index_u + steps], levels[index_u], levels[draw(index_u + 1)]
        start = levels[0].expand(len(x))
        x_t = x + expand(t, x) * torch.randn(x.shape, device=x.device, generator=rng)

        target = Trajectory(self.target, self.noise.sigma_data)
        with torch.no_grad():
            x_u = x_t
            for k in range(steps, 0, -1):
                x_u = self.step(self.teacher, x_u, levels[index_u + k], levels[index_u + k - 1], labels)
            goal = target(target(x_u, u, s, labels), s, start, labels)
        at_s = Trajectory(network, self.noise.sigma_data)(x_t, t, s, labels)
        return self.distance(target(at_s, s, start, labels), goal)

    def denoising(self, network: nn.Module, x: Tensor, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """EDM's loss of the denoiser g(x, t, t), [B]."""
        sd = self.noise.sigma_data
        normal = torch.randn(len(x), device=x.device, generator=rng)
        t = torch.exp(self.recipe.log_mean + self.recipe.log_std * normal)
        noisy = x + expand(t, x) * torch.randn(x.shape, device=x.device, generator=rng)
        error = Trajectory(network, sd).clean(noisy, t, t, labels) - x
        return (t**2 + sd**2) / (t * sd) ** 2 * error.square().flatten(1).mean(1)

    def after_step(self, network: nn.Module, _step: int) -> None:
        """Move the target network towards the current one."""
        move_towards(self.target, network, self.recipe.target_ema)


def train(job: TrainJob) -> nn.Module:
    """Distil the teacher; the student starts from the teacher's weights."""
    recipe: CTMRecipe = job.recipe
    student = job.student()
    assert job.teacher is not None  # student() has checked it
    objective = TrajectoryObjective(
        recipe,
        job.noise,
        distance(recipe.metric, job.device, job.images.name, job.download),
        Denoiser(job.teacher, job.noise.sigma_data),
        STEPS[recipe.solver],
        copy.deepcopy(student).requires_grad_(False).to(job.device),
    )
    return job.fit(student, objective, recipe.fit)


def consistency(model: Model, recipe: CTMRecipe) -> ConsistencyModel:
    """The jumps to sigma_min."""
    jump, low = Trajectory(model.network, model.noise.sigma_data), model.noise.sigma_min
    return ConsistencyModel(
        lambda x, sigma, labels: jump(x, sigma, torch.full_like(sigma, low), labels),
        model.noise,
        recipe.points,
    )


def sampler(model: Model, recipe: CTMRecipe, nfe: int) -> "Sampler":
    """Gamma-sampling (Algorithm 3) over evenly spaced points of the training grid; float64, returns float32."""
    low, high = model.noise.sigma_min, model.noise.sigma_max
    levels = [high, *default_taus(nfe, recipe.points, model.noise), low]
    jump = Trajectory(model.network, model.noise.sigma_data)

    def sample(noise: Tensor, labels: Tensor | None, rng: "SampleRng") -> Tensor:
        x = noise.double() * high
        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        for t, following in pairwise(levels):
            last = following == low
            s = low if last else max(low, (1 - recipe.gamma**2) ** 0.5 * following)
            x = jump(x, t * ones, s * ones, labels)
            if recipe.gamma and not last:
                # from s to the next level, as far as gamma says
                x = x + (following**2 - s**2) ** 0.5 * rng.normal(tuple(x.shape[1:])).to(x)
        return x.float()

    return sample


def refuses(nfe: int, recipe: CTMRecipe) -> str | None:
    """The training grid has only so many intervals."""
    most = recipe.points - 1
    return (
        None if nfe <= most else f"the training grid of {most + 1} points has levels for {most} evaluations"
    )


CTM = Method(
    name="ctm",
    label="CTM",
    group=DISTILLATION,
    reference="Kim et al., 2023",
    summary="consistency trajectory model: a student that jumps between any two levels of the teacher's ODE",
    recipe=CTMRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=refuses,
    nfes=(1, 2, 4),
    network=lambda _recipe: {"conditions": 2},
    paper="arXiv:2310.02279",
    differs="without the adversarial loss, which the paper's figures need; a fixed weight of the denoising loss where "
    "the paper's follows the gradients, and EDM's log-normal levels in it; the number of teacher steps is uniform",
)
