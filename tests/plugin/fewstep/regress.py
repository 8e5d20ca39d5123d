"""One step that imitates many: a student regresses on where its teacher takes the same noise."""

from dataclasses import dataclass, field

import torch

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.diffusion.solvers import euler_step, integrate
from cmbench.methods import DISTILLATION, Method, Parent
from cmbench.training.fit import Fit


@dataclass(frozen=True)
class RegressRecipe:
    """Settings.

    Attributes:
        fit: optimisation.
        steps: of the teacher.
    """

    fit: Fit = field(default_factory=Fit)
    steps: int = 8


class Objective:
    def __init__(self, job):
        self.job, self.sigmas = job, karras_sigmas(job.noise, job.recipe.steps)
        self.modules = {}  # networks that must be saved with the training

    def loss(self, network, x, labels, step, rng):
        sd = self.job.noise.sigma_data
        noise = torch.randn(x.shape, generator=rng, device=x.device)
        with torch.no_grad():
            goal = integrate(Denoiser(self.job.teacher, sd), noise, self.sigmas, euler_step, labels)
        made = integrate(Denoiser(network, sd), noise, self.sigmas[:1], euler_step, labels)
        return (made - goal).square().flatten(1).mean(1)

    def after_step(self, network, step):
        pass


def train(job):
    return job.fit(job.student(), Objective(job), job.recipe.fit)


def sampler(model, recipe, nfe):
    denoise, sigmas = model.denoiser(), karras_sigmas(model.noise, 1)
    return lambda noise, labels, rng: integrate(denoise, noise, sigmas, euler_step, labels)


REGRESS = Method(
    name="regress",
    label="Regress",
    group=DISTILLATION,
    reference="Us, 2026",
    summary="regression on the teacher's samples",
    recipe=RegressRecipe,
    sampler=sampler,
    train=train,
    parent=lambda variant, recipe: Parent("edm"),
    refuses=lambda nfe, recipe: None if nfe == 1 else "a student of one step",
    nfes=(1,),
)
