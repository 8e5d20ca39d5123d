"""Score identity distillation (Zhou et al., 2024, arXiv 2404.04057): a one-step generator, without data.

A generator, a copy of the teacher evaluated once at one noise level, is trained so that its samples' scores are the
teacher's. The samples' scores come from a second network, trained on the generator's samples as they change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise, Denoiser, expand
from cmbench.errors import UsageError
from cmbench.methods import DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit
from cmbench.training.loop import Stateful

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class SiDRecipe:
    """Score identity distillation.

    Attributes:
        fit: optimisation of the generator.
        fake_learning_rate: of the network of the samples' scores; Adam with the moments of ``fit``.
        alpha: weight of the score difference's square in the generator's loss, which is biased unless removed.
        sigma_init: the noise level that the generator starts from.
        ramp_min, ramp_max: the generator's loss takes noise levels from this part of the Karras ramp, 0 being
            sigma_min and 1 sigma_max.
        log_mean, log_std: the log-normal distribution of noise levels that the samples' scores are learnt at.
        dropout: of the generator, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    fake_learning_rate: float = 1e-3
    alpha: float = 1.2
    sigma_init: float = 2.5
    ramp_min: float = 0.02
    ramp_max: float = 0.8
    log_mean: float = -1.2
    log_std: float = 1.2
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.fake_learning_rate <= 0 or self.sigma_init <= 0:
            raise UsageError("sid: fake_learning_rate and sigma_init must be positive")
        if not 0 <= self.ramp_min < self.ramp_max <= 1:
            raise UsageError("sid: need 0 <= ramp_min < ramp_max <= 1")


class ScoreIdentityObjective:
    """First a step of the fake network on new samples, then the generator's loss (Algorithm 1).

    The loss is ``(D - F) . (D - x - alpha (D - F)) / |x - D|_1`` with the teacher D and the fake network F, both
    denoising the generator's sample x at a random noise level, and its gradient runs through both.

    ``fake`` is a trainable copy of the teacher's network; it and its optimiser are part of the saved state.
    """

    def __init__(self, recipe: SiDRecipe, noise: NoiseRange, teacher: Denoise, fake: nn.Module) -> None:
        self.recipe, self.noise, self.teacher, self.fake = recipe, noise, teacher, fake
        self.optimizer = torch.optim.Adam(
            fake.parameters(),
            lr=recipe.fake_learning_rate,
            betas=(recipe.fit.beta1, recipe.fit.beta2),
            fused=True,
        )
        self.modules: Mapping[str, Stateful] = {"fake": fake, "fake_optimizer": self.optimizer}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """The generator's per-sample losses [B]; of ``x`` only the shape is used."""
        with torch.no_grad():
            made = self._generate(network, x, labels, rng)
        self._learn_scores(made, labels, rng)
        return self._generator_loss(self._generate(network, x, labels, rng), labels, rng)

    def _generate(
        self, network: nn.Module, like: Tensor, labels: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        noise = torch.randn(like.shape, device=like.device, generator=rng)
        return generate(Denoiser(network, self.noise.sigma_data), noise, self.recipe.sigma_init, labels)

    def _learn_scores(self, made: Tensor, labels: Tensor | None, rng: torch.Generator) -> None:
        self.fake.requires_grad_(True)
        sd = self.noise.sigma_data
        normal = torch.randn(len(made), device=made.device, generator=rng)
        sigma = torch.exp(self.recipe.log_mean + self.recipe.log_std * normal)
        noisy = made + expand(sigma, made) * torch.randn(made.shape, device=made.device, generator=rng)
        error = Denoiser(self.fake, sd)(noisy, sigma, labels) - made
        weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
        self.optimizer.zero_grad(set_to_none=True)
        (weight * error.square().flatten(1).mean(1)).mean().backward()
        self.optimizer.step()

    def _generator_loss(self, made: Tensor, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        share = torch.rand(len(made), device=made.device, generator=rng)
        ramp = self.recipe.ramp_min + (self.recipe.ramp_max - self.recipe.ramp_min) * share
        low, high = (end ** (1 / self.noise.rho) for end in (self.noise.sigma_min, self.noise.sigma_max))
        sigma = (low + ramp * (high - low)) ** self.noise.rho
        noisy = made + expand(sigma, made) * torch.randn(made.shape, device=made.device, generator=rng)
        self.fake.requires_grad_(False)  # the loss runs through it, to the sample
        true = self.teacher(noisy, sigma, labels)
        false = Denoiser(self.fake, self.noise.sigma_data)(noisy, sigma, labels)
        difference = true - false
        size = (made - true).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        product = difference * (true - made - self.recipe.alpha * difference)
        loss: Tensor = product.flatten(1).mean(1) / size
        return loss

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def generate(denoise: Denoise, noise: Tensor, sigma_init: float, labels: Tensor | None) -> Tensor:
    """The generator: one evaluation of its network on ``noise`` (unit normal) at level ``sigma_init``."""
    return denoise(sigma_init * noise, sigma_init * torch.ones(len(noise), device=noise.device), labels)


def train(job: TrainJob) -> nn.Module:
    """Train the generator; it and the fake network start from the teacher's weights."""
    recipe: SiDRecipe = job.recipe
    generator = job.student()
    assert job.teacher is not None  # student() has checked it
    fake = job.student().to(job.device)
    teacher = Denoiser(job.teacher, job.noise.sigma_data)
    return job.fit(generator, ScoreIdentityObjective(recipe, job.noise, teacher, fake), recipe.fit)


def sampler(model: Model, recipe: SiDRecipe, _nfe: int) -> "Sampler":
    """One evaluation of the generator."""
    denoise = model.denoiser()
    return lambda noise, labels, _rng: generate(denoise, noise, recipe.sigma_init, labels)


def refuses(nfe: int, _recipe: SiDRecipe) -> str | None:
    """The generator makes an image in one evaluation."""
    return None if nfe == 1 else "the generator takes one evaluation, no more"


SID = Method(
    name="sid",
    label="SiD",
    group=DISTILLATION,
    reference="Zhou et al., 2024",
    summary="score identity distillation: a one-step generator whose samples have the teacher's scores",
    recipe=SiDRecipe,
    sampler=sampler,
    train=train,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=refuses,
    nfes=(1,),
    paper="arXiv:2404.04057",
    differs="noise levels of the generator's loss are continuous where the paper's are a grid of 1,000",
)
