"""DDPM's schedule and ancestral step against the formulas of its paper, in the paper's own variables."""

import math

import pytest
import torch

from cmbench.diffusion.ddpm import ancestral_step, linear_sigmas, respaced
from cmbench.errors import UsageError


def test_levels_are_those_of_the_linear_schedule():
    kept, levels = 1.0, []
    for i in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        levels.append(math.sqrt((1 - kept) / kept))
    torch.testing.assert_close(linear_sigmas(), torch.tensor(levels, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_step_is_equation_7(variance: str):
    sigmas = linear_sigmas()
    x, clean, z = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(3))
    for high, low in ((999, 998), (999, 700), (500, 400), (1, 0)):
        a, b = (1 / (1 + sigmas[i] ** 2) for i in (high, low))  # alpha-bar
        beta = 1 - a / b
        own = x * a.sqrt()
        mean = b.sqrt() * beta / (1 - a) * clean + (a / b).sqrt() * (1 - b) / (1 - a) * own
        spread = beta if variance == "large" else (1 - b) / (1 - a) * beta
        made = ancestral_step(x, clean, sigmas[high].expand(3), sigmas[low].expand(3), z, variance)
        torch.testing.assert_close(made * b.sqrt(), mean + spread.sqrt() * z)


def test_respacing_keeps_both_ends_and_one_level_is_the_highest():
    sigmas = linear_sigmas()
    assert torch.equal(respaced(sigmas, 1000), sigmas.flip(0))
    for n in (2, 10, 250, 999):
        chosen = respaced(sigmas, n)
        assert len(chosen) == n
        assert (chosen[0], chosen[-1]) == (sigmas[-1], sigmas[0])
        assert bool((chosen[1:] < chosen[:-1]).all())
    assert respaced(sigmas, 1).tolist() == [float(sigmas[-1])]
    for n in (0, 1001):
        with pytest.raises(UsageError, match="1000 noise levels"):
            respaced(sigmas, n)
