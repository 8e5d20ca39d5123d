"""The sampler of ADM (Dhariwal & Nichol, 2021, arXiv 2105.05233) on DDPM's network: ancestral, over 250 levels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench_baselines.ddpm import LEVELS, refuses

from cmbench.diffusion.ddpm import Variance, ancestral, linear_sigmas, respaced
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class ADMRecipe:
    """Sampling.

    Attributes:
        variance: of a step: ``small``, the posterior's, or ``large``, beta; ADM's network learns where between.
    """

    variance: Variance = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise UsageError(f"adm.variance {self.variance!r} is neither 'small' nor 'large'")


def sampler(model: Model, recipe: ADMRecipe, nfe: int) -> "Sampler":
    """Ancestral sampling over ``nfe`` of the 1,000 levels."""
    denoise, sigmas = model.denoiser(), respaced(linear_sigmas(LEVELS), nfe)
    return lambda noise, labels, rng: ancestral(denoise, noise, sigmas, labels, rng, recipe.variance)


ADM = Method(
    name="adm",
    label="ADM sampler",
    group=DIRECT,
    reference="Dhariwal & Nichol, 2021",
    summary="ancestral sampler over 250 of DDPM's 1,000 noise levels",
    recipe=ADMRecipe,
    sampler=sampler,
    parent=lambda _variant, _recipe: Parent("ddpm"),
    refuses=refuses,
    nfes=(250,),
    deterministic=False,
    paper="arXiv:2105.05233",
    differs="on DDPM's network: the step's variance is fixed where ADM's network learns it, and the schedule is "
    "linear, ADM's on ImageNet-64 being cosine; no classifier guidance",
)
