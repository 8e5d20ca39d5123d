"""EDM (Karras et al., 2022, arXiv 2206.00364): denoiser training, and the deterministic Heun sampler.

The network that this trains is also the teacher of the distilled methods and the network of the samplers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.guidance import drop_labels
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser, expand
from cmbench.diffusion.solvers import heun_step, integrate
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class EDMRecipe:
    """Denoiser training.

    Attributes:
        fit: optimisation.
        log_mean, log_std: the log-normal distribution of training noise levels (EDM, Table 1).
        dropout: of the network, in training.
        label_dropout: how often a class-conditional network is told no class in training, for guidance.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    log_mean: float = -1.2
    log_std: float = 1.2
    dropout: float = 0.0
    label_dropout: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise UsageError(f"edm.label_dropout must lie in [0, 1), not {self.label_dropout}")


class DenoisingObjective:
    """``lambda(sigma) |D(x + sigma z, sigma) - x|^2`` with lambda = (sigma^2 + sd^2) / (sigma sd)^2 (EDM, eq. 2, 8)."""

    def __init__(
        self, noise: NoiseRange, log_mean: float, log_std: float, label_dropout: float = 0.0
    ) -> None:
        self.noise, self.log_mean, self.log_std = noise, log_mean, log_std
        self.label_dropout = label_dropout
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        normal = torch.randn(len(x), device=x.device, generator=rng)
        sigma = torch.exp(self.log_mean + self.log_std * normal)
        noisy = x + expand(sigma, x) * torch.randn(x.shape, device=x.device, generator=rng)
        labels = drop_labels(labels, self.label_dropout, rng)
        sd = self.noise.sigma_data
        weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
        error: Tensor = Denoiser(network, sd)(noisy, sigma, labels) - x
        return weight * error.square().flatten(1).mean(1)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train the denoiser from random weights."""
    recipe: EDMRecipe = job.recipe
    objective = DenoisingObjective(job.noise, recipe.log_mean, recipe.log_std, recipe.label_dropout)
    return job.fit(job.new_network(), objective, recipe.fit)


def sampler(model: Model, _recipe: EDMRecipe, nfe: int) -> "Sampler":
    """Deterministic Heun (EDM, Algorithm 1) over (nfe + 1) / 2 points of the Karras grid."""
    denoise = model.denoiser()
    sigmas = karras_sigmas(model.noise, (nfe + 1) // 2)
    return lambda noise, labels, _rng: integrate(denoise, noise, sigmas, heun_step, labels)


def refuses(nfe: int, _recipe: EDMRecipe) -> str | None:
    """Heun over N grid points costs 2N - 1 evaluations."""
    return None if nfe % 2 else "Heun takes an odd number of evaluations (2N - 1 for N grid points)"


EDM = Method(
    name="edm",
    label="EDM",
    group=DIRECT,
    reference="Karras et al., 2022",
    summary="diffusion model in the EDM formulation with the deterministic Heun sampler",
    recipe=EDMRecipe,
    sampler=sampler,
    train=train,
    refuses=refuses,
    nfes=(35,),
    paper="arXiv:2206.00364",
    denoiser=True,
    differs="no augmentation pipeline",
)
