"""Inductive moment matching: the path, the discrepancy, and the mixture's distribution."""

import pytest
import torch
from cmbench_baselines.imm import IMM, Bridge, IMMRecipe, MomentMatchingObjective, Path, laplace_mmd
from flow_maps import NOISE, Stub, check_sampler
from mixture import SHAPE, Mixture, train_on_mixture, two_sample_p
from torch import Tensor, nn

from cmbench.errors import UsageError
from cmbench.methods import Model
from cmbench.training.fit import Fit

PATHS = pytest.mark.parametrize("name", ["ot-fm", "cosine"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@PATHS
def test_the_path_runs_from_data_to_noise_and_its_slopes_are_derivatives(name):
    path = Path(name)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    ends = path.alpha_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(torch.stack(ends), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(path.time(path.eta(t)), t)

    def log_snr(t: Tensor) -> Tensor:
        alpha, sigma = path.alpha_sigma(t)
        return 2 * torch.log(alpha / sigma)

    numeric = -(log_snr(t + 1e-6) - log_snr(t - 1e-6)) / 2e-6
    torch.testing.assert_close(path.log_snr_slope(t), numeric, rtol=1e-6, atol=1e-6)


class Perfect(nn.Module):
    """The raw network that knows the one image, so that f is the interpolant itself."""

    def __init__(self, image: Tensor, path: Path) -> None:
        super().__init__()
        self.image, self.bridge = image, Bridge(nn.Identity(), path, 0.5)

    def forward(self, x: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        t, s = times.double().unbind(1)
        (a_t, s_t), (a_s, s_s) = (
            tuple(v.reshape(-1, 1, 1, 1) for v in self.bridge.path.alpha_sigma(time)) for time in (t, s)
        )
        x_t = x.double() * torch.sqrt(a_t**2 + s_t**2) * 0.5
        wanted = a_s * self.image + s_s * (x_t - a_t * self.image) / s_t
        skip = (a_t * a_s + s_t * s_s) / (a_t**2 + s_t**2)
        c_out = self.bridge.c_out(t, s).reshape(-1, 1, 1, 1)
        return torch.where(c_out == 0, 0 * x_t, (wanted - skip * x_t) / c_out).to(x.dtype)


@PATHS
def test_f_stays_where_it_is_at_equal_times_and_follows_the_interpolant(name):
    path = Path(name)
    x, t = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(Bridge(Stub(), path, 0.5)(x, t, t), x, rtol=1e-6, atol=1e-6)
    image = torch.rand(1, 1, 2, 2)
    for nfe in (1, 3):
        made = IMM.sampler(Model(Perfect(image, path), NOISE), IMMRecipe(path=name), nfe)(x, None, None)
        assert float((made - image).abs().max()) < 0.1  # t_min leaves a little noise


@PATHS
def test_on_one_image_the_interpolant_has_no_loss(name):
    image = torch.rand(1, 1, 2, 2)
    objective = MomentMatchingObjective(IMMRecipe(path=name, halvings=4), 0.5)
    x = image.expand(64, -1, -1, -1)
    right = objective.loss(Perfect(image, Path(name)), x, None, 0, generator())
    wrong = objective.loss(Perfect(image + 0.3, Path(name)), x, None, 0, generator())
    assert float(right.mean()) < 1e-3 * float(wrong.mean())
    assert right.shape == (64,)
    assert bool((right.reshape(16, 4) == right.reshape(16, 4)[:, :1]).all())


def test_the_discrepancy_is_the_sum_over_all_pairs():
    a, b = torch.randn(2, 3, 4, 5, generator=generator())
    scale = torch.tensor([0.5, 1.0, 2.0])
    for g in range(3):

        def kernel(x, y, g=g):
            return torch.exp(-scale[g] * (x - y).norm() / 5)

        wanted = sum(
            kernel(a[g, i], a[g, j]) + kernel(b[g, i], b[g, j]) - 2 * kernel(a[g, i], b[g, j])
            for i in range(4)
            for j in range(4)
        )
        torch.testing.assert_close(laplace_mmd(a, b, scale)[g], wanted / 16, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(laplace_mmd(a, a.flip(1), scale), torch.zeros(3), rtol=0, atol=1e-6)
    same = a.clone().requires_grad_()
    laplace_mmd(same, a, scale).sum().backward()  # coinciding points have no slope, and no NaN
    assert bool(same.grad.isfinite().all())


def test_r_lies_between_s_and_t_by_a_constant_decrement_of_eta():
    recipe = IMMRecipe(halvings=7)
    objective, path = MomentMatchingObjective(recipe, 0.5), Path("ot-fm")
    t = torch.linspace(0.3, 0.99, 40, dtype=torch.float64)
    r = objective.earlier(t, torch.full_like(t, 0.006))
    step = (0.994 / 0.006 - 0.006 / 0.994) / 2**7
    free = r > 0.0061
    assert 5 < int(free.sum()) < 40
    torch.testing.assert_close(
        (path.eta(t) - path.eta(r))[free], torch.full_like(t, step)[free], rtol=1e-4, atol=0
    )
    assert bool((objective.earlier(t, t - 1e-4) >= t - 1e-4).all())
    assert bool((r < t).all())


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_sampler(nfe: int):
    check_sampler(IMM, IMMRecipe(), nfe)
    check_sampler(IMM, IMMRecipe(path="cosine", times={"2": (0.4,)}), nfe)


def test_settings_that_make_no_sense_are_refused():
    for values in (
        {"t_min": 0.0}, {"t_max": 1.0}, {"t_min": 0.9, "t_max": 0.5}, {"halvings": -1},
        {"fit": Fit(batch_size=130)}, {"group": 0},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="imm"):
            IMMRecipe(**values)
    assert "2 evaluations take 1" in IMM.refuses(2, IMMRecipe(times={"2": (0.5, 0.4)}))
    with pytest.raises(UsageError, match="must fall strictly"):
        IMM.sampler(Model(Stub(), NOISE), IMMRecipe(times={"2": (0.999,)}), 2)


@pytest.mark.slow
def test_on_the_mixture_one_step_has_its_distribution(tmp_path):
    data = Mixture()
    fit = Fit(steps=3000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    recipe = IMMRecipe(fit=fit, halvings=5, group=16)
    model = train_on_mixture(IMM, recipe, tmp_path)
    z = torch.randn(300, *SHAPE, generator=generator(7))
    with torch.no_grad():
        made = IMM.sampler(model, recipe, 1)(z, None, None)
    assert two_sample_p(made, data.sample(300, seed=11)) > 0.01
