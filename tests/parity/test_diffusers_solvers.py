"""Our solvers against diffusers' schedulers: one network function, one grid of noise levels, float64.

The network function is a mixture's exact denoiser, which both get as prediction of the clean image. Diffusers keeps its
tables and its samples in float32; here its modules see a torch and a numpy whose float32 is float64, so that what is
compared is the formulas. Its schedulers take integer time steps of a discrete chain: DDIM and DDPM look their levels
up by them, and we take the same levels; the others hold a table ``sigmas`` which we replace by our grid.

Where the two differ by definition:

- A single-step solver's inner evaluations are points of diffusers' grid; for DPM-solver-2 we give it our midpoints.
- Its third-order single-step solver has another second stage than the paper's DPM-solver-3, and so is not compared;
  DPM-solver-fast is held against the exact solution in tests/diffusion/test_solver_order.py.
- Its DEIS extrapolates in log sigma, the paper's tAB in time; ours does so with log sigma as clock.
- Its third-order DPM-solver++ has the authors' weight of the second derivative: ours with ``released``.
- Its UniPC reaches 0 only with the data prediction, bh2 and lower order at the end; other grids end above 0.
- Its Euler with churn evaluates the network at the level before the churn; EDM's sampler is not compared.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mixture import SHAPE, Mixture
from torch import Tensor

from cmbench.diffusion.ddim import ddim
from cmbench.diffusion.deis import deis
from cmbench.diffusion.dpm_solver import dpm_solver
from cmbench.diffusion.dpm_solver_pp import dpm_solver_pp
from cmbench.diffusion.grid import GridRecipe
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.ode import solve
from cmbench.diffusion.schedule import SCHEDULES
from cmbench.diffusion.unipc import unipc

pytest.importorskip("diffusers")

DATA = Mixture()
NOISE = NoiseRange()
BATCH = 6
Z = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
GRIDS = [
    GridRecipe("vp-linear", "time-quadratic"),
    GridRecipe("edm", "karras", sigma_min=0.02),
]


class Double:
    """A module whose ``float32`` is ``float64``."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


class Noise:
    """The same draws for both: ours asks as a SampleRng is asked, theirs takes ``draws`` in turn."""

    def __init__(self) -> None:
        self._rng = torch.Generator().manual_seed(11)
        self.draws: list[Tensor] = []

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        self.draws.append(torch.randn(BATCH, *shape, generator=self._rng).double())
        return self.draws[-1]


@pytest.fixture
def scheduler(monkeypatch) -> Callable[..., Any]:
    """``(module, class, **settings) -> scheduler`` that computes in float64."""

    def make(module: str, cls: str, **settings: Any) -> Any:
        home = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        monkeypatch.setattr(home, "torch", Double(torch))
        monkeypatch.setattr(home, "np", Double(np))
        made = getattr(home, cls)(prediction_type="sample", **settings)
        assert made.alphas_cumprod.dtype == torch.float64
        return made

    return make


def run(made: Any, sigmas: Tensor, *, preserving: bool = True, **step: Any) -> Tensor:
    """Run a scheduler that holds a table of sigmas down ``sigmas`` [N + 1]; returns y at the end."""
    steps = len(sigmas) - 1
    made.set_timesteps(steps)
    made.sigmas = sigmas.clone()
    made.set_begin_index(0)
    alphas = 1 / torch.sqrt(1 + sigmas**2) if preserving else torch.ones_like(sigmas)
    x = alphas[0] * sigmas[0] * Z
    extra: dict[str, Any] = {}
    for i, t in enumerate(made.timesteps):
        made.scale_model_input(x, t)  # some complain where it is not called
        clean = DATA.denoise(x / alphas[i], sigmas[i].repeat(BATCH))
        if "draws" in step:
            # none is drawn for a step to 0, whose noise has no size
            extra = {"variance_noise": step["draws"][i] if i < len(step["draws"]) else torch.zeros_like(x)}
        x = made.step(clean, t, x, **extra).prev_sample
    return x / alphas[-1]


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-8) -> None:
    assert theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_the_comparison_is_in_float64_and_can_fail(scheduler):
    made = scheduler("dpmsolver_multistep", "DPMSolverMultistepScheduler", final_sigmas_type="sigma_min")
    sigmas = GRIDS[0].levels(NOISE, 12)
    theirs = run(made, sigmas)
    with pytest.raises(AssertionError):
        same(dpm_solver_pp(DATA.denoise, Z, sigmas, None, 1), theirs)
    with pytest.raises(AssertionError):
        same(dpm_solver_pp(DATA.denoise, Z, sigmas * (1 + 1e-6), None, 2), theirs)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("steps", [4, 20])
def test_ddim(scheduler, steps: int, to_one: bool, eta: float):
    made = scheduler("ddim", "DDIMScheduler", clip_sample=False, set_alpha_to_one=to_one)
    made.set_timesteps(steps)
    signal = torch.cat([made.alphas_cumprod[made.timesteps], made.final_alpha_cumprod.double()[None]])
    sigmas = torch.sqrt((1 - signal) / signal)
    if eta and not to_one:
        sigmas = sigmas[
            :-1
        ]  # their last two levels are one: a step of no length, in which ours draws nothing
    noise = Noise()
    ours = ddim(DATA.denoise, Z, sigmas, None, eta, noise)
    x = signal[0].sqrt() * sigmas[0] * Z
    for i, t in enumerate(made.timesteps[: len(sigmas) - 1]):
        clean = DATA.denoise(x / signal[i].sqrt(), sigmas[i].repeat(BATCH))
        fresh = {"variance_noise": noise.draws[i] if i < len(noise.draws) else torch.zeros_like(x)}
        x = made.step(clean, t, x, eta=eta, **(fresh if eta else {})).prev_sample
    same(ours, x / signal[len(sigmas) - 1].sqrt())


@pytest.mark.parametrize("steps", [5, 100])
def test_ddpm_ancestral(scheduler, monkeypatch, steps: int):
    made = scheduler("ddpm", "DDPMScheduler", clip_sample=False, variance_type="fixed_small")
    made.set_timesteps(steps)
    signal = torch.cat([made.alphas_cumprod[made.timesteps], torch.ones(1, dtype=torch.float64)])
    sigmas = torch.sqrt((1 - signal) / signal)
    noise = Noise()
    ours = ddim(DATA.denoise, Z, sigmas, None, 1.0, noise)
    draws = iter(noise.draws)
    monkeypatch.setattr(
        importlib.import_module("diffusers.schedulers.scheduling_ddpm"),
        "randn_tensor",
        lambda *_, **__: next(draws),
    )
    x = signal[0].sqrt() * sigmas[0] * Z
    for i, t in enumerate(made.timesteps):
        x = made.step(DATA.denoise(x / signal[i].sqrt(), sigmas[i].repeat(BATCH)), t, x).prev_sample
    assert next(draws, None) is None
    same(ours, x)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_dpm_solver_2(scheduler, steps: int, grid: GridRecipe):
    made = scheduler(
        "dpmsolver_singlestep",
        "DPMSolverSinglestepScheduler",
        algorithm_type="dpmsolver",
        solver_order=2,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    sigmas = grid.levels(NOISE, steps)
    middles = torch.sqrt(sigmas[:-1] * sigmas[1:])
    finer = torch.cat([torch.stack([sigmas[:-1], middles], 1).flatten(), sigmas[-1:]])
    same(dpm_solver(DATA.denoise, Z, sigmas, None, (2,) * steps), run(made, finer))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 7])
def test_dpm_solver_1(scheduler, steps: int, grid: GridRecipe):
    made = scheduler(
        "dpmsolver_singlestep",
        "DPMSolverSinglestepScheduler",
        algorithm_type="dpmsolver",
        solver_order=1,
        final_sigmas_type="sigma_min",
    )
    sigmas = grid.levels(NOISE, steps)
    same(dpm_solver(DATA.denoise, Z, sigmas, None, (1,) * steps), run(made, sigmas))


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 4, 14, 15])
def test_dpm_solver_pp_multistep(scheduler, steps: int, order: int, grid: GridRecipe, to_zero: bool):
    """Below and above the 15 steps at which theirs stops lowering the order of the last ones."""
    end = "zero" if to_zero else "sigma_min"
    made = scheduler(
        "dpmsolver_multistep", "DPMSolverMultistepScheduler", solver_order=order, final_sigmas_type=end
    )
    sigmas = GridRecipe(grid.schedule, grid.spacing, grid.sigma_min, to_zero).levels(NOISE, steps)
    ours = dpm_solver_pp(DATA.denoise, Z, sigmas, None, order, lower_final=steps < 15, released=True)
    same(ours, run(made, sigmas))


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [4, 18])
def test_sde_dpm_solver_pp(scheduler, steps: int, order: int, to_zero: bool):
    made = scheduler(
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="zero" if to_zero else "sigma_min",
    )
    sigmas = GridRecipe("vp-linear", "time", to_zero=to_zero).levels(NOISE, steps)
    noise = Noise()
    ours = dpm_solver_pp(DATA.denoise, Z, sigmas, None, order, noise, lower_final=steps < 15)
    same(ours, run(made, sigmas, draws=noise.draws))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize("steps", [2, 9])
def test_deis_in_log_sigma(scheduler, steps: int, points: int, grid: GridRecipe):
    """They integrate by formula, we by quadrature, whose error at a logarithm over a wide step is about 1e-6."""
    made = scheduler("deis_multistep", "DEISMultistepScheduler", solver_order=points, lower_order_final=False)
    sigmas = grid.levels(NOISE, steps)
    ours = deis(DATA.denoise, Z, sigmas, None, points, math.log)
    same(ours, run(made, sigmas), 1e-5 if steps == 2 else 1e-8)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("prediction", "variant", "to_zero", "lower_final"),
    [
        (
            "data",
            "bh2",
            True,
            True,
        ),  # theirs is not a number with bh1, or with the full order, on a step to 0
        *((p, v, False, low) for p in ("data", "noise") for v in ("bh1", "bh2") for low in (True, False)),
    ],
)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc(
    scheduler, order: int, prediction: Any, variant: Any, to_zero: bool, lower_final: bool, grid: GridRecipe
):
    made = scheduler(
        "unipc_multistep",
        "UniPCMultistepScheduler",
        solver_order=order,
        solver_type=variant,
        predict_x0=prediction == "data",
        lower_order_final=lower_final,
    )
    for steps in (1, 7):
        sigmas = GridRecipe(grid.schedule, grid.spacing, grid.sigma_min, to_zero).levels(NOISE, steps)
        ours = unipc(
            DATA.denoise,
            Z,
            sigmas,
            None,
            order,
            prediction=prediction,
            variant=variant,
            lower_final=lower_final,
        )
        made.model_outputs, made.lower_order_nums, made.last_sample = [None] * order, 0, None
        same(ours, run(made, sigmas))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("steps", [1, 9])
def test_euler(scheduler, steps: int, to_zero: bool, grid: GridRecipe):
    made = scheduler("euler_discrete", "EulerDiscreteScheduler")
    sigmas = GridRecipe(grid.schedule, grid.spacing, grid.sigma_min, to_zero).levels(NOISE, steps)
    ours = solve(DATA.denoise, Z, sigmas, None, SCHEDULES["edm"], heun=False)
    same(ours, run(made, sigmas, preserving=False))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun(scheduler, steps: int, grid: GridRecipe):
    """Their table names each level but the first twice, once for each of its two evaluations; the last step is to 0."""
    made = scheduler("heun_discrete", "HeunDiscreteScheduler")
    sigmas = GridRecipe(grid.schedule, grid.spacing, grid.sigma_min, to_zero=True).levels(NOISE, steps)
    made.set_timesteps(steps)
    made.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    made.set_begin_index(0)
    x = sigmas[0] * Z
    levels = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])
    for sigma, t in zip(levels, made.timesteps, strict=True):
        x = made.step(DATA.denoise(x, sigma.repeat(BATCH)), t, x).prev_sample
    same(solve(DATA.denoise, Z, sigmas, None, SCHEDULES["edm"], heun=True), x)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_adams_bashforth_is_their_lms(scheduler, steps: int, grid: GridRecipe):
    """They integrate by adaptive quadrature with a relative tolerance of 1e-4."""
    made = scheduler("lms_discrete", "LMSDiscreteScheduler")
    sigmas = GridRecipe(grid.schedule, grid.spacing, grid.sigma_min, to_zero=True).levels(NOISE, steps)
    ours = deis(DATA.denoise, Z, sigmas, None, 4, lambda sigma: sigma)
    same(ours, run(made, sigmas, preserving=False), 1e-5)
