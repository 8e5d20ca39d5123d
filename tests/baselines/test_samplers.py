"""The methods that sample with the EDM network: evaluations, labels, batches, and the distribution they reach."""

import pytest
import torch
from cmbench_baselines.dpm_solver_pp import SDERecipe
from cmbench_baselines.edm_samplers import EDMGridRecipe, EDMSDERecipe
from gaussian import ExactDenoiser, Gaussian
from mixture import SHAPE, ExactNetwork, Mixture, two_sample_p
from torch import Tensor, nn

from cmbench import methods, recipes, registry
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.errors import UsageError
from cmbench.methods import SAMPLERS, Model, Parent
from cmbench.report import published
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.sampling.seeds import SampleRng, class_labels, initial_noise

NOISE = NoiseRange()
CPU = torch.device("cpu")
ANY = (
    "ddim",
    "ancestral",
    "dpm-solver-fast",
    "dpmpp-2m",
    "dpmpp-3m",
    "dpmpp-sde",
    "deis",
    "unipc",
    "euler",
    "ab",
)
ODD = ("heun", "edm-sde")
EVEN = ("dpm-solver-2",)
NAMES = (*ANY, *ODD, *EVEN)
STOCHASTIC = ("ancestral", "dpmpp-sde", "edm-sde")


def source(name: str, network: nn.Module, nfe: int, *, shape=SHAPE, classes: int = 0, recipe=None) -> Source:
    method = methods.get(name)
    sampler = method.sampler(Model(network, NOISE), recipe or method.recipe(), nfe)
    return Source(sampler, shape, classes, 0, CPU)


def usual(name: str) -> int:
    """A number of evaluations that the method can do and that is enough."""
    return {"heun": 35, "edm-sde": 35, "ancestral": 100, "dpmpp-sde": 50}.get(name, 40)


def test_these_are_all():
    found = {n for n in registry.names("method") if methods.get(n).group == SAMPLERS}
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_take_the_network_of_edm(name: str):
    method = methods.get(name)
    assert method.train is None
    assert method.parent("", method.recipe()) == Parent("edm")
    assert method.deterministic == (name not in STOCHASTIC)
    assert all(method.refuses(nfe, method.recipe()) is None for nfe in method.nfes)


def test_labels_of_the_papers_table():
    rows = {(row.method, row.reference, row.group) for row in published.load(1) if row.group == SAMPLERS}
    ours = [methods.get(name) for name in ("ddim", "dpm-solver-2", "dpm-solver-fast", "deis")]
    assert {(m.label, m.reference, m.group) for m in ours} == rows


# --- evaluations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_spends_exactly_the_evaluations_asked_for(name: str):
    method, network = methods.get(name), ExactNetwork(Mixture())
    done = []
    for nfe in (1, 2, 3, 4, 5, 8, 9, 10, 11, 20):
        if method.refuses(nfe, method.recipe()) is None:
            counter = EvaluationCounter(network)
            assert bool(source(name, network, nfe).images(range(3)).isfinite().all())
            counter.close()
            assert counter.rows == 3 * nfe, nfe
            done.append(nfe)
    assert len(done) == (10 if name in ANY else 5)


@pytest.mark.parametrize("name", [*ODD, *EVEN])
def test_what_cannot_be_done_is_refused_with_the_reason(name: str):
    method = methods.get(name)
    for nfe in (9, 10):
        reason = method.refuses(nfe, method.recipe())
        assert (reason is None) == (nfe % 2 == (name in ODD))
        assert reason is None or ("odd" if name in ODD else "even") in reason


def test_heun_that_ends_above_zero_takes_even_numbers():
    recipe = EDMGridRecipe(to_zero=False)
    heun = methods.get("heun")
    assert heun.refuses(10, recipe) is None
    assert "even" in heun.refuses(11, recipe)
    network = ExactNetwork(Mixture())
    counter = EvaluationCounter(network)
    source("heun", network, 10, recipe=recipe).images(range(2))
    assert counter.rows == 20


# --- batches, labels, precision --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str):
    made = source(name, ExactNetwork(Mixture()), 11 if name in ODD else 10)
    whole = made.images(range(12))
    parts = torch.cat([made.images(range(0, 5)), made.images(range(5, 6)), made.images(range(6, 12))])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_labels_reach_the_network(name: str):
    """With its label, each sample ends at the component of that label."""
    data = Mixture()
    made = source(name, ExactNetwork(data), usual(name), classes=len(data.centres))
    labels = class_labels(0, range(60), len(data.centres))
    images = made.images(range(60)).flatten(1)
    centres = torch.tensor(data.centres)
    assert float((images - centres[labels]).square().sum(1).sqrt().max()) < 6 * data.std
    nearest = torch.cdist(images, centres).argmin(1)
    assert float((nearest == labels).float().mean()) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_samplers_integrate_in_float64_and_return_float32(name: str):
    seen = set()

    class Spy(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.add((x.dtype, sigma.dtype))
            return super().forward(x, sigma, labels)

    class Spied(Model):
        def denoiser(self):
            return Spy(self.network, self.noise.sigma_data)

    method = methods.get(name)
    sampler = method.sampler(Spied(ExactNetwork(Mixture()), NOISE), method.recipe(), usual(name))
    assert Source(sampler, SHAPE, 0, 0, CPU).images(range(2)).dtype == torch.float32
    assert seen == {(torch.float64, torch.float64)}


# --- where they end --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_samplers_reach_the_gaussian(name: str):
    data = Gaussian()
    nfe = {"euler": 200, "ddim": 100, "heun": 79, "ancestral": 400, "edm-sde": 199}.get(name, usual(name))
    # 1.007 is there to make up for what a trained network removes too much; the exact one removes what there is
    recipe = EDMSDERecipe(s_noise=1.0) if name == "edm-sde" else None
    x = source(name, ExactDenoiser(data), nfe, shape=(1, 40, 40), recipe=recipe).images(range(12)).double()
    assert float(x.mean()) == pytest.approx(data.mean, abs=0.015)
    assert float(x.std()) == pytest.approx(data.std, rel=0.03)
    third = float(((x - x.mean()) / x.std()).pow(3).mean())
    fourth = float(((x - x.mean()) / x.std()).pow(4).mean())
    assert third == pytest.approx(0, abs=0.06)
    assert fourth == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_of_the_mixture_pass_a_two_sample_test(name: str):
    data = Mixture()
    made = source(name, ExactNetwork(data), usual(name)).images(range(300))
    assert two_sample_p(made, data.sample(300, seed=9)) > 0.01


def test_the_two_sample_test_sees_a_sampler_without_its_noise():
    """Steps of the SDE whose noise is left out shrink to the centres."""
    data = Mixture()
    method = methods.get("dpmpp-sde")

    class Silent:
        def normal(self, shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(300, *shape)

    sampler = method.sampler(Model(ExactNetwork(data), NOISE), SDERecipe(), 50)
    noise = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert two_sample_p(sampler(noise, None, Silent()), data.sample(300, seed=9)) < 0.01


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_forget_their_start(name: str):
    """One start, many draws: the same noise ends in more than one component."""
    data = Mixture()
    method = methods.get(name)
    recipe = (
        EDMSDERecipe(s_churn=80.0, s_min=0.0, s_max=100.0, s_noise=1.0)
        if name == "edm-sde"
        else method.recipe()
    )
    sampler = method.sampler(Model(ExactNetwork(data), NOISE), recipe, usual(name))
    start = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).expand(60, *SHAPE)
    made = sampler(start, None, SampleRng(0, range(60), CPU)).flatten(1)
    assert len(torch.cdist(made, torch.tensor(data.centres)).argmin(1).unique()) == len(data.centres)


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ancestral", {"eta": 1.5}), ("ancestral", {"eta": -0.1}), ("dpmpp-sde", {"order": 3}),
        ("unipc", {"order": 0}), ("deis", {"order": -1}), ("ab", {"order": 0}), ("edm-sde", {"s_churn": -1}),
        ("ddim", {"schedule": "vp"}), ("ddim", {"spacing": "linear"}), ("unipc", {"variant": "bh3"}),
        ("dpm-solver-2", {"to_zero": True}), ("dpm-solver-fast", {"to_zero": True}),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(name: str, setting):
    with pytest.raises(UsageError):
        recipes.parse(methods.get(name).recipe, setting, name)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("dpm-solver")])
def test_the_last_step_can_go_to_zero(name: str):
    method = methods.get(name)
    recipe = method.recipe(to_zero=True)
    network = ExactNetwork(Mixture())
    counter = EvaluationCounter(network)
    made = source(name, network, 11, recipe=recipe).images(range(3))
    assert bool(made.isfinite().all())
    assert counter.rows == 33


@pytest.mark.parametrize("schedule", ["vp-linear", "vp-cosine", "ve", "edm"])
@pytest.mark.parametrize("spacing", ["karras", "time", "time-quadratic", "log-snr"])
def test_every_parameterisation_runs_over_one_network(schedule: str, spacing: str):
    """Their ODEs are one: in enough steps a sample ends at one place, where the exact flow takes it."""
    if spacing.startswith("time") and schedule in ("ve", "edm"):
        pytest.skip("even steps in sigma or its square leave no steps for the low levels")
    data = Gaussian()
    recipe = EDMGridRecipe(schedule=schedule, spacing=spacing, to_zero=False)
    made = source("heun", ExactDenoiser(data), 200, recipe=recipe, shape=(1, 1, 1)).images(range(6))
    noise = initial_noise(0, range(6), (1, 1, 1))
    wanted = data.flow(80 * noise, torch.full((6,), 80.0), torch.full((6,), 0.002))
    torch.testing.assert_close(made, wanted, rtol=0, atol=0.04)
