"""Score SDE (Song et al., 2021, arXiv 2011.13456): score networks in continuous time.

``score-sde-ve`` samples its variance-exploding network by predictor and corrector, ``score-sde-vp`` its
variance-preserving one by the reverse SDE, ``score-sde-ode`` the latter by the probability-flow ODE. The score is
(D(x, sigma) - x) / sigma^2, of the denoiser that all networks here are.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from cmbench_baselines.ddpm import EpsilonObjective
from torch import Tensor, nn

from cmbench.diffusion.adaptive import solve_rk45, unless_nominal
from cmbench.diffusion.preconditioning import Denoise, expand
from cmbench.diffusion.sde import VarianceExploding, VariancePreserving, geometric
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, Parent, TrainJob
from cmbench.sampling.seeds import SampleRng
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler

VP = VariancePreserving()
TRAIN_END = 1e-5  # least time in training
SAMPLE_END = 1e-3  # least time of the variance-preserving samplers
ODE_NFE = 140


@dataclass(frozen=True)
class VERecipe:
    """Variance-exploding training, and the corrector.

    Attributes:
        fit: optimisation.
        sigma_min, sigma_max: range of noise levels for images in [-1, 1].
        snr: signal-to-noise ratio r of the Langevin corrector.
        dropout: of the network, in training.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    sigma_min: float = 0.02
    sigma_max: float = 100.0
    snr: float = 0.16
    dropout: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.snr <= 0:
            raise UsageError(f"snr {self.snr} must be positive")
        VarianceExploding(self.sigma_min, self.sigma_max)  # raises where the range makes no sense


@dataclass(frozen=True)
class VPRecipe:
    """Variance-preserving training.

    Attributes:
        fit: optimisation.
        dropout: of the network, in training.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    dropout: float = 0.0
    seed: int | None = 0


@dataclass(frozen=True)
class ODERecipe:
    """The adaptive solver.

    Attributes:
        tolerance: relative and absolute tolerance of the local error.
    """

    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance {self.tolerance} must lie between 0 and 1")


def train(job: TrainJob, sde: VarianceExploding | VariancePreserving) -> nn.Module:
    """Train from random weights, times uniform (their equation 7, weighted by the squared noise level)."""
    objective = EpsilonObjective(lambda u: sde.sigma(TRAIN_END + (1 - TRAIN_END) * u), job.noise.sigma_data)
    return job.fit(job.new_network(), objective, job.recipe.fit)


def langevin_step(x: Tensor, score: Tensor, z: Tensor, snr: float) -> Tensor:
    """One corrector step (their Algorithm 4), of size 2 (snr |z| / |score|)^2 by each sample's own norms."""
    ratio = z.flatten(1).double().norm(dim=1) / score.flatten(1).norm(dim=1)
    size = expand(2 * (snr * ratio) ** 2, x)
    return x + size * score + torch.sqrt(2 * size) * z


def predictor_corrector(
    denoise: Denoise, noise: Tensor, sigmas: Tensor, labels: Tensor | None, rng: SampleRng, snr: float
) -> Tensor:
    """Over the falling levels: a Langevin step at each, then the reverse diffusion step to the next (Algorithm 2).

    The corrector comes first, as in their code; the last predictor step ends at zero and adds no noise. Two evaluations
    a level. Runs in float64; returns float32.
    """
    sigmas = sigmas.to(noise.device, torch.float64)
    shape = tuple(noise.shape[1:])
    x = noise.double() * sigmas[0]
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for sigma, below in pairwise([*sigmas, torch.zeros_like(sigmas[0])]):
        score = (denoise(x, sigma * ones, labels) - x) / sigma**2
        x = langevin_step(x, score, rng.normal(shape), snr)
        gap = sigma**2 - below**2
        x = x + gap * (denoise(x, sigma * ones, labels) - x) / sigma**2
        if below > 0:
            x = x + torch.sqrt(gap) * rng.normal(shape)
    return x.float()


def vp_score(denoise: Denoise, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The score of the variance-preserving diffusion at ``x`` [B, ...], times ``t`` [B]."""
    scale, sigma = VP.scale(t), VP.sigma(t)
    clean = denoise(x / expand(scale, x), sigma, labels)
    return (expand(scale, x) * clean - x) / expand((scale * sigma) ** 2, x)


def euler_maruyama(
    denoise: Denoise, noise: Tensor, steps: int, labels: Tensor | None, rng: SampleRng
) -> Tensor:
    """The reverse SDE (their equation 6) from t = 1, the last step without noise; one evaluation a step.

    Times fall evenly from 1 to 1e-3, then to zero: with 1,000 steps, steps of 1e-3. Runs in float64; returns float32.
    """
    times = torch.linspace(1, SAMPLE_END, steps, dtype=torch.float64, device=noise.device)
    shape = tuple(noise.shape[1:])
    x = noise.double()
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for t, below in pairwise([*times, torch.zeros_like(times[0])]):
        rate = VP.beta(t) * (t - below)
        x = x + rate * (x / 2 + vp_score(denoise, x, t * ones, labels))
        if below > 0:
            x = x + torch.sqrt(rate) * rng.normal(shape)
    return x.float()


def probability_flow(denoise: Denoise, noise: Tensor, labels: Tensor | None, tolerance: float) -> Tensor:
    """The ODE dx/dt = -beta (x + score) / 2 (their equation 13) from t = 1 to 1e-3; returns float32."""

    def slope(t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        own = None if labels is None else labels[rows]
        return -expand(VP.beta(t), x) / 2 * (x + vp_score(denoise, x, t, own))

    return solve_rk45(slope, noise, 1.0, SAMPLE_END, rtol=tolerance, atol=tolerance).float()


def ve_sampler(model: Model, recipe: VERecipe, nfe: int) -> "Sampler":
    """Predictor and corrector over nfe / 2 levels of constant ratio."""
    denoise, sigmas = model.denoiser(), geometric(recipe.sigma_max, recipe.sigma_min, nfe // 2)
    return lambda noise, labels, rng: predictor_corrector(denoise, noise, sigmas, labels, rng, recipe.snr)


def vp_sampler(model: Model, _recipe: VPRecipe, nfe: int) -> "Sampler":
    """The predictor alone, which the paper's variance-preserving models sample with."""
    denoise = model.denoiser()
    return lambda noise, labels, rng: euler_maruyama(denoise, noise, nfe, labels, rng)


def ode_sampler(model: Model, recipe: ODERecipe, _nfe: int) -> "Sampler":
    """As many evaluations as the tolerance takes."""
    denoise = model.denoiser()
    return lambda noise, labels, _rng: probability_flow(denoise, noise, labels, recipe.tolerance)


def refuses_odd(nfe: int, _recipe: Any) -> str | None:
    """A predictor and a corrector evaluation at each level."""
    return "predictor and corrector take an even number of evaluations" if nfe % 2 else None


_NETWORK = (
    "times and loss are the paper's, but the score network is EDM's preconditioned denoiser, told ln(sigma) / 4 of the "
    "noise level at that time"
)

VE = Method(
    name="score-sde-ve",
    label="Score SDE",
    group=DIRECT,
    reference="Song et al., 2021",
    summary="variance-exploding score model with the predictor-corrector sampler",
    recipe=VERecipe,
    sampler=ve_sampler,
    train=lambda job: train(job, VarianceExploding(job.recipe.sigma_min, job.recipe.sigma_max)),
    refuses=refuses_odd,
    nfes=(2000,),
    deterministic=False,
    paper="arXiv:2011.13456",
    differs=f"{_NETWORK}; the corrector's step size is by each sample's own norms, as Algorithm 4 has it, where the "
    "paper's code takes the batch's mean norms, so that a sample does not depend on its batch",
)

VP_SDE = Method(
    name="score-sde-vp",
    label="Score SDE (VP)",
    group=DIRECT,
    reference="Song et al., 2021",
    summary="variance-preserving score model with the Euler-Maruyama sampler of the reverse SDE",
    recipe=VPRecipe,
    sampler=vp_sampler,
    train=lambda job: train(job, VP),
    nfes=(1000,),
    deterministic=False,
    paper="arXiv:2011.13456",
    differs=f"{_NETWORK}; no corrector, as in the paper's configuration of this model",
)

ODE = Method(
    name="score-sde-ode",
    label="Score SDE (ODE)",
    group=DIRECT,
    reference="Song et al., 2021",
    summary="the variance-preserving score model sampled by its probability-flow ODE with an adaptive solver",
    recipe=ODERecipe,
    sampler=ode_sampler,
    parent=lambda _variant, _recipe: Parent("score-sde-vp"),
    refuses=unless_nominal(ODE_NFE),
    nfes=(ODE_NFE,),
    paper="arXiv:2011.13456",
    differs="RK45 takes each sample's own steps, where the paper's code solves a batch as one system; the NFE asked "
    "for is nominal, the one counted is the mean over the samples",
)
