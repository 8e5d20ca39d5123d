"""Knowledge distillation (Luhman & Luhman, 2021, arXiv 2101.02388): one step from the noise to the teacher's sample.

The teacher's deterministic sampler turns noise z into an image once, ahead of the training; the student, which starts
from the teacher's weights, regresses D(sigma_max z, sigma_max) on that image (their equation 11).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmbench.consistency.distance import Distance, distance
from cmbench.consistency.methods import DistanceName
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoise, Denoiser
from cmbench.diffusion.trajectories import Trajectories
from cmbench.methods import DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class KDRecipe:
    """Knowledge distillation.

    Attributes:
        fit: optimisation.
        pairs: how the teacher makes the pairs; of a stored trajectory the last point is the target.
        metric: distance of the loss (l2 is squared); l1 is the original's on CIFAR-10.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    pairs: Trajectories = field(default_factory=Trajectories)
    metric: DistanceName = "l1"
    dropout: float = 0.0
    seed: int | None = None


def one_step(denoise: Denoise, noise: NoiseRange, z: Tensor, labels: Tensor | None) -> Tensor:
    """The student's image of unit-normal noise ``z`` [B, C, H, W]: its denoiser at sigma_max."""
    sigma = torch.full((len(z),), noise.sigma_max, device=z.device, dtype=z.dtype)
    return denoise(z * noise.sigma_max, sigma, labels)


class RegressionObjective:
    """``d(D(sigma_max z, sigma_max), x)`` for pairs of noise z and the teacher's image x."""

    def __init__(self, noise: NoiseRange, distance: Distance) -> None:
        self.noise, self.distance = noise, distance
        self.modules: Mapping[str, nn.Module] = {}

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, _rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B] for pairs ``x`` [B, 1 + M, C, H, W]."""
        made = one_step(Denoiser(network, self.noise.sigma_data), self.noise, x[:, 0], labels)
        return self.distance(made, x[:, -1])

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Regress the teacher's images on their noise; the student starts from the teacher's weights."""
    recipe: KDRecipe = job.recipe
    objective = RegressionObjective(
        job.noise, distance(recipe.metric, job.device, job.images.name, job.download)
    )
    return job.fit_pairs(job.student(), objective, recipe.fit)


def sampler(model: Model, _recipe: KDRecipe, _nfe: int) -> "Sampler":
    """One evaluation at sigma_max."""
    denoise = model.denoiser()
    return lambda noise, labels, _rng: one_step(denoise, model.noise, noise, labels)


def only_one(nfe: int, _recipe: object) -> str | None:
    """The student knows the noisiest level alone."""
    return None if nfe == 1 else "a student of one step"


KD = Method(
    name="kd",
    label="Knowledge Distillation",
    group=DISTILLATION,
    reference="Luhman & Luhman, 2021",
    summary="one step, regressed on stored pairs of noise and teacher's image",
    recipe=KDRecipe,
    sampler=sampler,
    train=train,
    parent=lambda _variant, _recipe: Parent("edm"),
    pairs=lambda _variant, recipe: recipe.pairs.pairs(Parent("edm")),
    refuses=only_one,
    nfes=(1,),
    paper="arXiv:2101.02388",
    differs=(
        "the teacher is the EDM network with a deterministic sampler on the Karras grid (theirs is a DDPM network with "
        "DDIM on a grid quadratic in t), the student keeps EDM's preconditioning (theirs predicts the image), images "
        "stay float32 (theirs are rounded to 8 bits, the noise to float16), and the last weights count, not those of "
        "the least test loss"
    ),
)
