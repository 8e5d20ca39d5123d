"""An adaptive ODE solver that gives every sample steps of its own.

The Dormand-Prince pair of orders 5 and 4 (RK45) with the step control of ``scipy.integrate.solve_ivp``, whose tableau
it takes. Handing a batch to ``solve_ivp`` would make one step size serve all of it, so that a sample's result depended
on its neighbours; here a sample takes the steps that it would take alone, and is evaluated until it is finished.
"""

from collections.abc import Callable
from typing import Any

import torch
from scipy.integrate import RK45
from torch import Tensor

from cmbench.diffusion.preconditioning import expand
from cmbench.errors import WorkError

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(t [b], y [b, ...], rows [b]) -> dy/dt [b, ...]``, float64; ``rows`` says which samples of the batch these are."""

SAFETY, SHRINK, GROW = (
    0.9,
    0.2,
    10.0,
)  # scipy's: of the predicted step, and the least and most that it may change
POWER = -1 / (RK45.error_estimator_order + 1)


def solve_rk45(slope: Slope, y: Tensor, start: float, end: float, *, rtol: float, atol: float) -> Tensor:
    """The solution at ``end`` of dy/dt = slope through ``y`` [B, ...] at ``start``; float64 [B, ...].

    A step is accepted where the root mean square of ``error / (atol + rtol max(|y|, |y next|))`` over the sample is
    below one. Costs two evaluations of a sample to begin and six an attempted step.

    Raises:
        WorkError: a step would fall below the spacing of the numbers, as it does where the slope is not finite.
    """
    y = y.double().clone()
    stages = [torch.from_numpy(row).to(y.device) for row in (*RK45.A[1:], RK45.B, RK45.E)]
    inner, final, error = stages[:-2], stages[-2], stages[-1]
    direction = 1.0 if end > start else -1.0
    t = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    rows = torch.arange(len(y), device=y.device)
    f = slope(t, y, rows)
    h = _first_step(slope, t, y, f, end, rtol, atol)
    rejected = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    while len(rows):
        now, at, again = t[rows], y[rows], rejected[rows]
        least = 10 * (torch.nextafter(now, torch.full_like(now, direction * torch.inf)) - now).abs()
        size = torch.where(again, h[rows], torch.maximum(h[rows], least))
        stuck = ~(size >= least)  # true of NaN, too
        if bool(stuck.any()):
            where = float(now[stuck][0])
            raise WorkError(f"the adaptive solver's step became too small at t = {where:.6g}")
        ahead = now + direction * size
        ahead = torch.where(direction * (ahead - end) > 0, end, ahead)
        step = ahead - now

        slopes = [f[rows]]
        for coefficients, c in zip(inner, RK45.C[1:], strict=True):
            slopes.append(slope(now + c * step, at + _combine(slopes, coefficients, step), rows))
        new = at + _combine(slopes, final, step)
        slopes.append(slope(ahead, new, rows))
        scale = atol + rtol * torch.maximum(at.abs(), new.abs())
        norm = _rms(_combine(slopes, error, step) / scale)

        accepted = norm < 1
        factor = torch.nan_to_num(SAFETY * norm**POWER, nan=SHRINK)
        grown = torch.where(again, factor.clamp(max=1.0), factor.clamp(max=GROW))
        h[rows] = step.abs() * torch.where(accepted, grown, factor.clamp(min=SHRINK))
        rejected[rows] = ~accepted
        done = rows[accepted]
        t[done], y[done], f[done] = ahead[accepted], new[accepted], slopes[-1][accepted]
        rows = rows[~accepted | (ahead != end)]
    return y


def unless_nominal(nominal: int) -> Callable[[int, Any], str | None]:
    """The ``refuses`` of a method whose solver decides its own cost: only its nominal NFE can be asked for."""
    reason = (
        f"its solver chooses the steps itself: ask for {nominal}; the evaluations that it takes are counted"
    )
    return lambda nfe, _recipe: None if nfe == nominal else reason


def _first_step(
    slope: Slope, t: Tensor, y: Tensor, f: Tensor, end: float, rtol: float, atol: float
) -> Tensor:
    """The size of the first step, [B] (Hairer, Norsett & Wanner, Solving ODEs I, section II.4)."""
    length = (end - t).abs()
    scale = atol + rtol * y.abs()
    level, rate = _rms(y / scale), _rms(f / scale)
    guess = torch.where((level < 1e-5) | (rate < 1e-5), 1e-6, 0.01 * level / rate)
    guess = torch.minimum(guess, length)
    step = torch.sign(end - t) * guess
    probed = slope(t + step, y + expand(step, y) * f, torch.arange(len(y), device=y.device))
    change = _rms((probed - f) / scale) / guess
    flat = (rate <= 1e-15) & (change <= 1e-15)
    steep = (0.01 / torch.maximum(rate, change)) ** -POWER
    wanted = torch.where(flat, torch.clamp(1e-3 * guess, min=1e-6), steep)
    return torch.minimum(torch.minimum(100 * guess, wanted), length)


def _combine(slopes: list[Tensor], coefficients: Tensor, step: Tensor) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for slope, coefficient in zip(slopes, coefficients, strict=False):  # rows of the tableau end in zeros
        total += coefficient * slope
    return expand(step, total) * total


def _rms(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(1).sqrt()
