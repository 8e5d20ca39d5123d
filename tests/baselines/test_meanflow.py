"""MeanFlow, on Gaussian data and on the mixture, whose straight-path flows are known."""

import math

import pytest
import torch
from cmbench_baselines.meanflow import MEANFLOW, MeanFlowObjective, MeanFlowRecipe
from flow_maps import NOISE, check_sampler, rms, straight_path_map
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.training.fit import Fit

MEAN, STD = 0.2, 0.4


class Exact(nn.Module):
    """u(z, r, t) for N(MEAN, STD^2), plus ``offset + slope z`` with two parameters that are zero at the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        t, gap = times[:, 0].reshape(-1, 1, 1, 1), times[:, 1].reshape(-1, 1, 1, 1).clamp(min=1e-4)
        r = t - gap

        def moments(time: Tensor) -> tuple[Tensor, Tensor]:
            return (1 - time) * MEAN, torch.sqrt(((1 - time) * STD) ** 2 + time**2)

        (mean_t, std_t), (mean_r, std_r) = moments(t), moments(r)
        at_r = mean_r + std_r / std_t * (z - mean_t)
        return (z - at_r) / gap + self.offset + self.slope * z


def gradient(network: Exact, mean: float) -> Tensor:
    """Mean gradient of the unweighted loss over many draws, in units of its standard error: [2]."""
    objective = MeanFlowObjective(MeanFlowRecipe(logit_mean=0.0, logit_std=1.0, power=0.0))
    rows = []
    for seed in range(40):
        draws = torch.Generator().manual_seed(seed)
        x = mean + STD * torch.randn(2000, 1, 1, 1, generator=draws)
        loss = objective.loss(network, x, None, 0, draws).mean()
        rows.append(torch.stack(torch.autograd.grad(loss, [network.offset, network.slope])))
    each = torch.stack(rows)
    return each.mean(0) / (each.std(0) / math.sqrt(len(each)))


def test_the_exact_average_velocity_is_where_the_gradient_vanishes():
    assert bool((gradient(Exact(), MEAN).abs() < 4).all())
    assert float(gradient(Exact(), MEAN + 0.1)[0].abs()) > 10  # of other data it does not
    wrong = Exact()
    with torch.no_grad():
        wrong.slope.fill_(0.1)
    assert float(gradient(wrong, MEAN)[1].abs()) > 10


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_with_the_exact_average_velocity_any_number_of_steps_is_the_flow(nfe: int):
    z = torch.randn(6, 1, 2, 2)
    made = MEANFLOW.sampler(Model(Exact(), NOISE), MeanFlowRecipe(), nfe)(z, None, None)
    torch.testing.assert_close(made, MEAN + STD * z, rtol=1e-4, atol=1e-4)


def test_times_are_ordered_logit_normal_and_equal_as_often_as_asked():
    recipe = MeanFlowRecipe(logit_mean=-0.5, logit_std=0.8, ratio=0.75)
    r, t = MeanFlowObjective(recipe).times(20_000, torch.Generator().manual_seed(0))
    assert bool((r <= t).all())
    assert float((r < t).float().mean()) == pytest.approx(0.75, abs=0.01)
    different = r < t
    drawn = torch.logit(torch.cat([r[different], t[different]]))
    assert float(drawn.mean()) == pytest.approx(-0.5, abs=0.03)
    assert float(drawn.std()) == pytest.approx(0.8, abs=0.03)


def test_the_adaptive_weight_is_a_power_of_the_error():
    class Constant(nn.Module):
        def forward(self, z: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
            return 0 * z + 0.3

    x = torch.rand(5, 1, 2, 2)
    plain, weighted = (
        MeanFlowObjective(MeanFlowRecipe(power=power)).loss(
            Constant(), x, None, 0, torch.Generator().manual_seed(1)
        )
        for power in (0.0, 0.75)
    )
    torch.testing.assert_close(weighted, plain / (plain + 1e-3) ** 0.75)


@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_sampler(nfe: int):
    check_sampler(MEANFLOW, MeanFlowRecipe(), nfe)


def test_settings_that_make_no_sense_are_refused():
    for values in ({"ratio": 1.5}, {"logit_std": 0.0}, {"power": -1.0}, {"c": 0.0}):
        with pytest.raises(UsageError, match="meanflow"):
            MeanFlowRecipe(**values)


@pytest.mark.slow
def test_on_the_mixture_one_step_is_the_flow(tmp_path):
    data = Mixture()
    # The adaptive weight does not go with two dimensions, where a conditional velocity's error has a broad
    # distribution: with power 0.75 the error stays at 0.3.
    fit = Fit(steps=2000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    recipe = MeanFlowRecipe(fit=fit, logit_mean=-0.4, logit_std=1.0, power=0.0)
    model = train_on_mixture(MEANFLOW, recipe, tmp_path)
    z = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(7))
    exact = straight_path_map(data, z)
    with torch.no_grad():
        made = {nfe: MEANFLOW.sampler(model, recipe, nfe)(z, None, None) for nfe in (1, 4)}
    assert rms(made[1] - exact) < 0.22
    assert rms(made[4] - exact) < 0.15
    assert two_sample_p(made[1], data.sample(300, seed=11)) > 0.01
