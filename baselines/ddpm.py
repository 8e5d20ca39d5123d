"""DDPM (Ho et al., 2020, arXiv 2006.11239): 1,000 discrete noise levels, the simple loss, ancestral sampling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmbench.diffusion.ddpm import ancestral, linear_sigmas, respaced
from cmbench.diffusion.preconditioning import Denoiser, expand
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler

LEVELS = 1000


@dataclass(frozen=True)
class DDPMRecipe:
    """DDPM's training.

    Attributes:
        fit: optimisation.
        dropout: of the network, in training.
        seed: training seed; one network serves all runs unless it is None, which takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    dropout: float = 0.0
    seed: int | None = 0


class EpsilonObjective:
    """``|epsilon - epsilon_hat|^2``, DDPM's simple loss (its equation 14), of epsilon_hat = (noisy - D) / sigma.

    ``level`` maps uniform draws [B] to noise levels [B].
    """

    def __init__(self, level: Callable[[Tensor], Tensor], sigma_data: float) -> None:
        self.level, self.sigma_data = level, sigma_data
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]."""
        uniform = torch.rand(len(x), device=x.device, generator=rng, dtype=torch.float64)
        sigma = self.level(uniform).float()
        noisy = x + expand(sigma, x) * torch.randn(x.shape, device=x.device, generator=rng)
        error: Tensor = (Denoiser(network, self.sigma_data)(noisy, sigma, labels) - x) / expand(sigma, x)
        return error.square().flatten(1).mean(1)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train from random weights on the 1,000 levels, all equally likely."""
    sigmas = linear_sigmas(LEVELS).to(job.device)
    objective = EpsilonObjective(lambda u: sigmas[(u * LEVELS).long()], job.noise.sigma_data)
    return job.fit(job.new_network(), objective, job.recipe.fit)


def sampler(model: Model, _recipe: DDPMRecipe, nfe: int) -> "Sampler":
    """Ancestral sampling with variance beta over all levels, or over ``nfe`` of them."""
    denoise, sigmas = model.denoiser(), respaced(linear_sigmas(LEVELS), nfe)
    return lambda noise, labels, rng: ancestral(denoise, noise, sigmas, labels, rng, "large")


def refuses(nfe: int, _recipe: Any) -> str | None:
    """One evaluation a level, and there are 1,000."""
    return None if nfe <= LEVELS else f"the diffusion has {LEVELS} noise levels"


DDPM = Method(
    name="ddpm",
    label="DDPM",
    group=DIRECT,
    reference="Ho et al., 2020",
    summary="diffusion model of 1,000 discrete noise levels with the ancestral sampler",
    recipe=DDPMRecipe,
    sampler=sampler,
    train=train,
    refuses=refuses,
    nfes=(1000,),
    deterministic=False,
    paper="arXiv:2006.11239",
    differs="loss and schedule are the paper's, but its epsilon network is EDM's preconditioned denoiser, told "
    "ln(sigma) / 4 in place of the step number; the variance is always beta, which the paper takes for CIFAR-10; fewer "
    "than 1,000 evaluations, by respacing, are not in the paper",
)
