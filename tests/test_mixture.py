"""The tests' own yardstick: the mixture's denoiser, solution map and two-sample test."""

import torch
from mixture import SHAPE, ExactNetwork, Mixture, two_sample_p

from cmbench.diffusion.preconditioning import Denoiser


def test_the_exact_network_is_the_exact_denoiser():
    data = Mixture()
    x = data.sample(50, seed=0) * 3
    sigma = torch.linspace(0.01, 20, 50, dtype=torch.float64)
    torch.testing.assert_close(
        Denoiser(ExactNetwork(data), 0.5)(x, sigma), data.denoise(x, sigma), rtol=1e-5, atol=1e-5
    )


def test_the_solution_map_turns_noise_into_the_mixture():
    data = Mixture()
    noise = 80 * torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = data.solve(noise, 80.0, 0.002)
    assert two_sample_p(made, data.sample(500, seed=3)) > 0.01
    assert two_sample_p(made + 0.1, data.sample(500, seed=3)) < 0.01


def test_one_component_follows_the_closed_form():
    data = Mixture(centres=((0.2, -0.1),), weights=(1.0,))
    x = data.sample(20, seed=0) * 50
    centre = torch.tensor([0.2, -0.1], dtype=torch.float64)
    shrink = ((data.std**2 + 0.002**2) / (data.std**2 + 80.0**2)) ** 0.5
    torch.testing.assert_close(
        data.solve(x, 80.0, 0.002), centre + shrink * (x - centre), rtol=1e-6, atol=1e-7
    )
