"""Ancestral sampling against diffusers' DDPMScheduler, in float64 and with the same noise."""

import pytest
import torch
from diffusers import DDPMScheduler
from mixture import SHAPE, Mixture

from cmbench.diffusion.ddpm import ancestral, linear_sigmas, respaced


class Recorded:
    """Noise drawn beforehand, for both."""

    def __init__(self, count: int, draws: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.draws = torch.randn(draws, count, *SHAPE, generator=generator, dtype=torch.float64)
        self.used = 0

    def normal(self, shape):
        assert shape == SHAPE
        self.used += 1
        return self.draws[self.used - 1]


@pytest.mark.parametrize(("ours", "theirs"), [("large", "fixed_large"), ("small", "fixed_small")])
@pytest.mark.parametrize("nfe", [1000, 250, 20])
def test_trajectory_is_that_of_diffusers(ours, theirs, nfe: int, monkeypatch):
    data, count = Mixture(), 5
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rng = Recorded(count, nfe)

    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type=theirs, timestep_spacing="linspace")
    # their table in float64: the schedule's own float32 is not what is compared
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(nfe)
    drawn = iter(rng.draws)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_args, **_kwargs: next(drawn)
    )
    x = noise
    sigmas = linear_sigmas()
    for t in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[t]
        clean = data.denoise(x / kept.sqrt(), sigmas[t].expand(count))
        epsilon = (x - kept.sqrt() * clean) / (1 - kept).sqrt()
        x = scheduler.step(epsilon, t, x).prev_sample

    made = ancestral(data.denoise, noise, respaced(sigmas, nfe), None, rng, ours)
    assert rng.used == nfe - 1
    torch.testing.assert_close(made.double(), x, rtol=0, atol=1e-6)  # made is float32
