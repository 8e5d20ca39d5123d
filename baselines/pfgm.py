"""PFGM (Xu et al., 2022, arXiv 2209.11178): Poisson flow in the N + 1 dimensions (x, z).

Data are charges on the plane z = 0. Field lines carry a uniform distribution on a large hemisphere to the data
distribution; sampling follows them down to the plane. The field at (x, z) points from the mean of the data, weighted by
distance^-(N + 1), to (x, z). So the field is known from that mean, which is what the network, as a denoiser, estimates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.adaptive import solve_rk45, unless_nominal
from cmbench.diffusion.preconditioning import Denoise, Denoiser, expand
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler

NFE = 110


@dataclass(frozen=True)
class PFGMRecipe:
    """Poisson flow. ``gamma`` and ``upper`` are norms divided by sqrt(N), so that they suit images of any size.

    Attributes:
        fit: optimisation; ``fit.batch_size`` is the large batch, whose field is the target.
        points: how many images of the large batch are perturbed.
        sigma, tau, levels: training points lie at x + sigma (1 + tau)^m e, z = sigma (1 + tau)^m |e'| with unit-normal
            e, e' and m uniform in [0, levels] (paper, equation 5 and appendix B.1).
        gamma: softens the normalisation of the field; the default is the paper's 5 for CIFAR-10.
        z_max, z_min: where sampling starts and ends.
        upper: largest norm of x at the start; the default is 4000 for CIFAR-10.
        tolerance: relative and absolute tolerance of the solver.
        dropout: of the network, in training.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    points: int = 128
    sigma: float = 0.01
    tau: float = 0.03
    levels: int = 291
    gamma: float = 5 / math.sqrt(3072)
    z_max: float = 50.0
    z_min: float = 1e-3
    upper: float = 4000 / math.sqrt(3072)
    tolerance: float = 1e-4
    dropout: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        if not 0 < self.z_min < self.z_max:
            raise UsageError(f"z_min {self.z_min} and z_max {self.z_max}: need 0 < min < max")
        if min(self.sigma, self.tau, self.gamma, self.upper, self.levels, self.points) <= 0:
            raise UsageError("sigma, tau, gamma, upper, levels and points must be positive")
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance {self.tolerance} must lie between 0 and 1")


def poisson_mean(x: Tensor, z: Tensor, data: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The mean of ``data`` [n, ...] by weights distance^-(N + 1) from (``x`` [B, ...], ``z`` [B]); float64 [B, ...].

    ``allowed`` [B, n] masks the data of each point.
    """
    flat, charges = x.flatten(1).double(), data.flatten(1).double()
    squared = torch.cdist(flat, charges, compute_mode="use_mm_for_euclid_dist").square()
    squared = squared + z.double().square()[:, None]
    logits = -(flat.shape[1] + 1) / 2 * torch.log(squared)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    mean: Tensor = torch.softmax(logits, 1) @ charges
    return mean.reshape(x.shape)


def normalised_field(clean: Tensor, x: Tensor, z: Tensor, gamma: float) -> Tensor:
    """-sqrt(N) E / (|E| + gamma) of the field E = (x - clean, z) (their equation 4); [B, N + 1]."""
    toward = torch.cat([(clean - x).flatten(1), -z[:, None].to(x.dtype)], dim=1)
    size = math.sqrt(toward.shape[1] - 1)
    norm: Tensor = toward.norm(dim=1, keepdim=True)
    return size * toward / (norm + gamma * size)


def noise_level(x: Tensor, z: Tensor) -> Tensor:
    """What the network is told of (x, z), [B]: sqrt(z^2 + max(rms(x) - 1, 0)^2).

    At one z the points lie at very different distances, of which z alone tells little; images have a root mean square
    of at most one, so what ``x`` has beyond that is distance.
    """
    beyond = (x.flatten(1).square().mean(1).sqrt() - 1).clamp(min=0)
    return torch.sqrt(z**2 + beyond**2)


class PoissonObjective:
    """``|f - f*|^2`` of the normalised field in N + 1 dimensions, f* being the large batch's (their equation 5).

    ``conditional`` takes for each point the field of the images of its class alone.
    """

    def __init__(self, recipe: PFGMRecipe, sigma_data: float, conditional: bool) -> None:
        self.recipe, self.sigma_data, self.conditional = recipe, sigma_data, conditional
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Losses of the perturbed images, [points]."""
        recipe = self.recipe
        some, own = x[: recipe.points], None if labels is None else labels[: recipe.points]
        m = recipe.levels * torch.rand(len(some), device=x.device, generator=rng)
        spread = recipe.sigma * (1 + recipe.tau) ** m
        noisy = some + expand(spread, x) * torch.randn(some.shape, device=x.device, generator=rng)
        z = spread * torch.randn(len(some), device=x.device, generator=rng).abs().clamp(min=1e-4)
        same = None
        if self.conditional and own is not None and labels is not None:
            same = own[:, None] == labels[None]
        goal = normalised_field(poisson_mean(noisy, z, x, same).to(x.dtype), noisy, z, recipe.gamma)
        clean = Denoiser(network, self.sigma_data)(noisy, noise_level(noisy, z), own)
        return (normalised_field(clean, noisy, z, recipe.gamma) - goal).square().mean(1)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train from random weights."""
    objective = PoissonObjective(job.recipe, job.noise.sigma_data, job.classes > 0)
    return job.fit(job.new_network(), objective, job.recipe.fit)


def prior(noise: Tensor, radial: Tensor, z_max: float, upper: float) -> Tensor:
    """Points of the plane z = z_max, as uniform points of a hemisphere project to it from the origin; float64 [B, ...].

    For unit-normal ``noise`` [B, ...] and ``radial`` [B] the squared radius over z_max^2 is beta-prime(N / 2, 1 / 2)
    distributed, as in their appendix A.4. The root mean square is cut to ``upper``.
    """
    noise, radial = noise.double(), radial.double().abs().clamp(min=1e-30)
    longest = upper / noise.flatten(1).square().mean(1).sqrt()
    return noise * expand(torch.minimum(z_max / radial, longest), noise)


def follow_field(denoise: Denoise, x: Tensor, labels: Tensor | None, recipe: PFGMRecipe) -> Tensor:
    """The field line through ``x`` at z_max down to z_min, dx / d ln z = x - mean (their section 3.3); float64."""

    def slope(u: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        own = None if labels is None else labels[rows]
        return x - denoise(x, noise_level(x, torch.exp(u)), own)

    ends = math.log(recipe.z_max), math.log(recipe.z_min)
    return solve_rk45(slope, x, *ends, rtol=recipe.tolerance, atol=recipe.tolerance)


def sampler(model: Model, recipe: PFGMRecipe, _nfe: int) -> "Sampler":
    """As many evaluations as the tolerance takes."""
    denoise = model.denoiser()
    return lambda noise, labels, rng: follow_field(
        denoise, prior(noise, rng.normal((1,))[:, 0], recipe.z_max, recipe.upper), labels, recipe
    ).float()


PFGM = Method(
    name="pfgm",
    label="PFGM",
    group=DIRECT,
    reference="Xu et al., 2022",
    summary="Poisson flow: follows the field lines of the data, as charges, in one more dimension",
    recipe=PFGMRecipe,
    sampler=sampler,
    train=train,
    refuses=unless_nominal(NFE),
    nfes=(NFE,),
    deterministic=False,
    paper="arXiv:2209.11178",
    differs="the loss is the paper's, but the network estimates the weighted mean of the data that the field points "
    "from, in EDM's preconditioning, and both parts of the field follow from it; the paper's network puts out the "
    "field, its z part too. RK45 takes each sample's own steps, where the paper's code solves a batch as one system; "
    "the NFE asked for is nominal, the one counted is the mean over the samples; the code's cut of large steps "
    "(restrict_M) is left out",
)
