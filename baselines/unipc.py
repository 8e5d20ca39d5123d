"""UniPC (Zhao et al., 2023, arXiv 2302.04867) on the EDM network. One evaluation a step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmbench.diffusion.grid import GridRecipe, Spacing
from cmbench.diffusion.schedule import Name
from cmbench.diffusion.unipc import Prediction, Variant, unipc
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Method, Model, Parent

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class UniPCRecipe(GridRecipe):
    """The authors' settings for CIFAR-10: UniPC-3 of the clean image, steps uniform in log-SNR, the end at t = 1e-3.

    Attributes:
        order: p of predictor and corrector.
        prediction: whether the clean image (``data``) or epsilon (``noise``) is extrapolated.
        variant: B(h) = h (``bh1``) or e^h - 1 (``bh2``).
        lower_final: whether the last steps are of lower order.
    """

    schedule: Name = "vp-linear"
    spacing: Spacing = "log-snr"
    sigma_min: float | None = 0.0105
    order: int = 3
    prediction: Prediction = "data"
    variant: Variant = "bh1"
    lower_final: bool = True

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UsageError(f"unipc.order {self.order}: the order is at least 1")


def sampler(model: Model, recipe: UniPCRecipe, nfe: int) -> "Sampler":
    """``nfe`` predictions, each corrected by the next one's evaluation, the last excepted."""
    denoise, sigmas = model.denoiser(), recipe.levels(model.noise, nfe)
    return lambda noise, labels, _rng: unipc(
        denoise,
        noise,
        sigmas,
        labels,
        recipe.order,
        prediction=recipe.prediction,
        variant=recipe.variant,
        lower_final=recipe.lower_final,
    ).float()


UNIPC = Method(
    name="unipc",
    label="UniPC",
    group=SAMPLERS,
    reference="Zhao et al., 2023",
    summary="multistep predictor and corrector in log-SNR",
    recipe=UniPCRecipe,
    sampler=sampler,
    nfes=(10, 20),
    paper="arXiv:2302.04867",
    parent=lambda _variant, _recipe: Parent("edm"),
    differs="on the EDM network, from its highest noise level down",
)
