"""Shortcut models, on one image and on the mixture."""

import pytest
import torch
from cmbench_baselines.shortcut import SHORTCUT, ShortcutObjective, ShortcutRecipe, direction
from flow_maps import NOISE, check_sampler, rms, straight_path_map
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.training.fit import Fit

IMAGE = torch.tensor([[0.3, -0.2], [0.5, 0.1]]).reshape(1, 1, 2, 2)


class Straight(nn.Module):
    """The exact directions where the data are one image: (image - x) / (1 - t), whatever the step."""

    seen: Tensor | None = None

    def forward(self, x: Tensor, conditions: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen = conditions
        return (IMAGE - x) / (1 - conditions[:, 0]).reshape(-1, 1, 1, 1)


def test_on_one_image_the_exact_directions_have_no_loss_and_sample_it():
    x = IMAGE.expand(64, -1, -1, -1)
    objective = ShortcutObjective(ShortcutRecipe(finest=16), Straight())
    loss = objective.loss(Straight(), x, None, 0, torch.Generator().manual_seed(0))
    assert float(loss.max()) < 1e-6
    for nfe in (1, 4):
        made = SHORTCUT.sampler(Model(Straight(), NOISE), ShortcutRecipe(), nfe)(
            torch.randn(3, 1, 2, 2), None, None
        )
        torch.testing.assert_close(made, IMAGE.expand(3, -1, -1, -1), rtol=1e-5, atol=1e-5)


def test_a_quarter_learns_from_half_steps_on_their_own_grid_and_the_rest_at_the_finest():
    network = Straight()
    objective = ShortcutObjective(ShortcutRecipe(finest=16, consistency=0.25), Straight())
    objective.loss(network, IMAGE.expand(4000, -1, -1, -1), None, 0, torch.Generator().manual_seed(0))
    t, size = network.seen.unbind(1)
    assert bool((size[1000:] == 1).all())
    assert sorted(set(size[:1000].tolist())) == pytest.approx([0, 0.25, 0.5, 0.75])
    places = t * 16**size  # in units of the step
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-4)
    assert bool((t + 16**-size <= 1 + 1e-5).all())


def test_the_target_is_the_mean_of_two_half_steps_of_the_averaged_network():
    class Target(nn.Module):
        def forward(self, x, conditions, labels=None):
            return torch.sin(3 * x) + conditions.sum(1).reshape(-1, 1, 1, 1)

    class Zero(nn.Module):
        seen = None

        def forward(self, x, conditions, labels=None):
            self.seen = (x, conditions)
            return torch.zeros_like(x)

    network, target = Zero(), Target()
    x = torch.rand(40, 1, 2, 2)
    recipe = ShortcutRecipe(finest=8, consistency=1.0)
    loss = ShortcutObjective(recipe, target).loss(network, x, None, 0, torch.Generator().manual_seed(0))
    at_t, conditions = network.seen
    t, d = conditions[:, 0], 8 ** -conditions[:, 1]
    first = direction(target, at_t, t, d / 2, 8, None)
    second = direction(target, at_t + d.reshape(-1, 1, 1, 1) / 2 * first, t + d / 2, d / 2, 8, None)
    torch.testing.assert_close(loss, ((first + second) / 2).square().flatten(1).mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nfe", [1, 2, 4, 128])
def test_sampler(nfe: int):
    check_sampler(SHORTCUT, ShortcutRecipe(), nfe)


@pytest.mark.parametrize("nfe", [3, 6, 256])
def test_other_numbers_of_evaluations_are_refused(nfe: int):
    assert "powers of two up to 128" in SHORTCUT.refuses(nfe, ShortcutRecipe())


def test_settings_that_make_no_sense_are_refused():
    for values in ({"finest": 12}, {"finest": 1}, {"consistency": 2.0}, {"target_ema": 1.0}):
        with pytest.raises(UsageError, match="shortcut"):
            ShortcutRecipe(**values)


@pytest.mark.slow
def test_on_the_mixture_one_step_is_the_flow(tmp_path):
    data = Mixture()
    fit = Fit(steps=3000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    recipe = ShortcutRecipe(fit=fit, finest=32, target_ema=0.99)
    model = train_on_mixture(SHORTCUT, recipe, tmp_path)
    z = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(7))
    exact = straight_path_map(data, z)
    with torch.no_grad():
        made = {nfe: SHORTCUT.sampler(model, recipe, nfe)(z, None, None) for nfe in (1, 4)}
    assert rms(made[1] - exact) < 0.14
    assert rms(made[4] - exact) < 0.1
    assert two_sample_p(made[1], data.sample(300, seed=11)) > 0.01
