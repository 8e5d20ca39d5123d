"""Score identity distillation: the loss by hand, exact resume with a second network, the mixture's distribution."""

import copy

import numpy as np
import pytest
import torch
from cmbench_baselines.edm import EDM, EDMRecipe
from cmbench_baselines.sid import SID, ScoreIdentityObjective, SiDRecipe
from flow_maps import NOISE, ExactTeacher, check_sampler
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import nn

from cmbench.data.base import ArraySource, ImageData
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.networks import build
from cmbench.training.fit import Fit
from cmbench.training.loop import train


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build({"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8}, (1, 2, 2), 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def test_a_generator_whose_samples_the_fake_scores_as_the_teacher_does_has_no_loss():
    teacher = small(1).requires_grad_(False)
    recipe = SiDRecipe(fake_learning_rate=1e-12)
    x = torch.zeros(50, 1, 2, 2)

    def gradient(fake: nn.Module) -> float:
        generator = small(2)
        objective = ScoreIdentityObjective(recipe, NOISE, Denoiser(teacher, 0.5), fake)
        loss = objective.loss(generator, x, None, 0, torch.Generator().manual_seed(0)).mean()
        loss.backward()
        return sum(float(p.grad.abs().sum()) for p in generator.parameters() if p.grad is not None)

    same = gradient(copy.deepcopy(teacher).requires_grad_(True))
    assert gradient(small(3)) > 1e4 * same


@pytest.mark.parametrize("alpha", [0.5, 1.2])
def test_the_loss_is_that_of_the_paper(alpha: float):
    teacher, fake, generator = (small(seed) for seed in (1, 2, 3))
    recipe = SiDRecipe(alpha=alpha)
    objective = ScoreIdentityObjective(recipe, NOISE, Denoiser(teacher, 0.5), fake)
    made = objective._generate(generator, torch.zeros(6, 1, 2, 2), None, torch.Generator().manual_seed(0))
    loss = objective._generator_loss(made, None, torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    ramp = 0.02 + 0.78 * torch.rand(6, generator=draws)
    sigma = (0.002 ** (1 / 7) + ramp * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    noisy = made + sigma.reshape(-1, 1, 1, 1) * torch.randn(made.shape, generator=draws)
    d, f = Denoiser(teacher, 0.5)(noisy, sigma), Denoiser(fake, 0.5)(noisy, sigma)
    wanted = (1 - alpha) * (d - f).square() + (d - f) * (f - made)
    wanted = wanted.flatten(1).mean(1) / (made - d).abs().flatten(1).mean(1)
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-5)


class Killed(Exception):  # noqa: N818
    pass


def test_a_killed_run_that_is_repeated_ends_as_one_that_was_not(tmp_path):
    """The second network and its optimiser come back too."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 2, 2), np.uint8)
    images = ImageData("toy", "Toy", ArraySource(pixels))
    fit = Fit(steps=60, batch_size=8, beta1=0.0, checkpoint_every=15, learning_rate=1e-3)

    def run(path, kill_at=None):
        def report(progress):
            if progress.step == kill_at:
                raise Killed

        teacher = small(1).requires_grad_(False)
        fake = copy.deepcopy(teacher).requires_grad_(True)
        objective = ScoreIdentityObjective(SiDRecipe(fit), NOISE, Denoiser(teacher, 0.5), fake)
        made = train(
            small(1),
            objective,
            images,
            fit,
            seed=0,
            device=torch.device("cpu"),
            state_path=path,
            report=report,
        )
        return made, fake

    whole = run(tmp_path / "a")
    for kill_at in (20, 40):
        with pytest.raises(Killed):
            run(tmp_path / "b", kill_at)
    resumed = run(tmp_path / "b")
    for ours, theirs in zip(whole, resumed, strict=True):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert not all(
        torch.equal(a, b) for a, b in zip(whole[1].parameters(), small(1).parameters(), strict=True)
    )


def test_sampler():
    check_sampler(SID, SiDRecipe(), 1)
    assert SID.refuses(2, SiDRecipe()) is not None


def test_settings_that_make_no_sense_are_refused():
    for values in ({"fake_learning_rate": 0.0}, {"sigma_init": 0.0}, {"ramp_min": 0.9}):
        with pytest.raises(UsageError, match="sid"):
            SiDRecipe(**values)


@pytest.mark.slow
def test_on_the_mixture_the_generator_has_its_distribution(tmp_path):
    data = Mixture()
    fit = Fit(steps=1000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    start = train_on_mixture(EDM, EDMRecipe(fit=fit), tmp_path).network
    fit = Fit(steps=1500, batch_size=256, learning_rate=5e-4, beta1=0.0, schedule="cosine", ema=0.99)
    recipe = SiDRecipe(fit=fit, fake_learning_rate=1e-3)
    model = train_on_mixture(SID, recipe, tmp_path, teacher=ExactTeacher(data, start))
    z = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        made = SID.sampler(model, recipe, 1)(z, None, None)
        before = SID.sampler(Model(start, NOISE), recipe, 1)(z, None, None)
    wanted = data.sample(300, seed=11)
    assert two_sample_p(made, wanted) > 0.01
    assert two_sample_p(before, wanted) < 0.01
