"""Denoise, add noise of the next lower level, and so on: DDIM with a share of fresh noise in every step."""

from dataclasses import dataclass

from cmbench.diffusion.grid import karras_sigmas
from cmbench.methods import SAMPLERS, Method, Parent


@dataclass(frozen=True)
class RenoiseRecipe:
    """Settings.

    Attributes:
        fresh: share of the variance that each step draws anew; 0 is DDIM on this grid (`euler`).
    """

    fresh: float = 0.5


def sampler(model, recipe, nfe):
    denoise, sigmas = model.denoiser(), karras_sigmas(model.noise, nfe).tolist()

    def sample(noise, labels, rng):
        x = noise.double() * sigmas[0]
        for sigma, lower in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            clean = denoise(x, x.new_full((len(x),), sigma), labels)
            kept, drawn = (x - clean) / sigma, rng.normal(tuple(x.shape[1:]))
            x = clean + lower * ((1 - recipe.fresh) ** 0.5 * kept + recipe.fresh**0.5 * drawn)
        return x.float()

    return sample


RENOISE = Method(
    name="renoise",
    label="Renoise",
    group=SAMPLERS,
    reference="Us, 2026",
    summary="denoise and noise again, level by level",
    recipe=RenoiseRecipe,
    sampler=sampler,
    parent=lambda variant, recipe: Parent("edm"),
    deterministic=False,
)
