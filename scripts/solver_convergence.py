"""Error of every deterministic solver against the number of evaluations, on a mixture whose score is exact.

    python scripts/solver_convergence.py [--to docs/figures]

Writes solver-convergence.png and, with the errors and the slopes between neighbouring points, solver-convergence.csv.
The mixture and the reference solution are those of the tests (tests/mixture.py).
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmbench.diffusion.ddim import ddim
from cmbench.diffusion.deis import deis
from cmbench.diffusion.dpm_solver import dpm_solver, fast_orders
from cmbench.diffusion.dpm_solver_pp import dpm_solver_pp
from cmbench.diffusion.grid import GridRecipe
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.ode import solve
from cmbench.diffusion.schedule import SCHEDULES
from cmbench.diffusion.unipc import unipc
from cmbench.report import style

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from mixture import SHAPE, Mixture

NOISE = NoiseRange()
DATA = Mixture(std=0.3)
START = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NFES = (8, 16, 32, 64, 128, 256)

LOG_SNR = GridRecipe("vp-linear", "log-snr")
QUADRATIC = GridRecipe("vp-linear", "time-quadratic")
KARRAS = GridRecipe("edm", "karras")


@dataclass(frozen=True)
class Solver:
    """``run(nfe)`` ends at sigma_min; ``order`` is the nominal one."""

    label: str
    order: int
    run: Callable[[int], Tensor]


def _steps(grid: GridRecipe, solver: Callable[[Tensor], Tensor], cost: int = 1) -> Callable[[int], Tensor]:
    return lambda nfe: solver(grid.levels(NOISE, nfe // cost))


def _fast(nfe: int) -> Tensor:
    orders = fast_orders(nfe)
    return dpm_solver(DATA.denoise, START, LOG_SNR.levels(NOISE, len(orders)), None, orders)


def _heun(sigmas: Tensor) -> Tensor:
    return solve(DATA.denoise, START, sigmas, None, SCHEDULES["edm"], heun=True)


def _second(sigmas: Tensor) -> Tensor:
    return dpm_solver(DATA.denoise, START, sigmas, None, (2,) * (len(sigmas) - 1))


def _pp(order: int) -> Callable[[Tensor], Tensor]:
    return lambda sigmas: dpm_solver_pp(DATA.denoise, START, sigmas, None, order)


def _polynomial(schedule: str) -> Callable[[Tensor], Tensor]:
    clock = {name: each.time for name, each in SCHEDULES.items()}[schedule]
    return lambda sigmas: deis(DATA.denoise, START, sigmas, None, 4, clock)


SINGLE = (
    Solver("Euler, Karras grid", 1, _steps(KARRAS, lambda s: ddim(DATA.denoise, START, s, None))),
    Solver("DDIM, quadratic in t", 1, _steps(QUADRATIC, lambda s: ddim(DATA.denoise, START, s, None))),
    Solver("Heun, Karras grid", 2, _steps(KARRAS, _heun, 2)),
    Solver("DPM-solver-2, log-SNR", 2, _steps(LOG_SNR, _second, 2)),
    Solver("DPM-solver-fast, log-SNR", 3, _fast),
)
MULTI = (
    Solver("DPM-solver++ (2M), log-SNR", 2, _steps(LOG_SNR, _pp(2))),
    Solver("DPM-solver++ (3M), log-SNR", 3, _steps(LOG_SNR, _pp(3))),
    Solver("UniPC-3, log-SNR", 4, _steps(LOG_SNR, lambda s: unipc(DATA.denoise, START, s, None, 3))),
    Solver("3-DEIS, quadratic in t", 4, _steps(QUADRATIC, _polynomial("vp-linear"))),
    Solver("Adams-Bashforth, Karras grid", 4, _steps(KARRAS, _polynomial("edm"))),
)


def measure() -> dict[str, list[float]]:
    """Root mean square error of every solver at every number of evaluations."""
    exact = DATA.solve(START * NOISE.sigma_max, NOISE.sigma_max, NOISE.sigma_min)
    return {
        solver.label: [float((solver.run(nfe) - exact).square().mean().sqrt()) for nfe in NFES]
        for solver in (*SINGLE, *MULTI)
    }


def draw(errors: dict[str, list[float]], path: Path) -> None:
    """Single-step solvers on the left, multistep ones on the right; grey lines fall with orders 1 to 4."""
    from matplotlib.figure import Figure

    with style.look():
        figure = Figure(figsize=(6.8, 3.5), layout="constrained")
        panes = figure.subplots(1, 2, sharex=True, sharey=True)
        values = [error for each in errors.values() for error in each]
        for ax, solvers, title in zip(panes, (SINGLE, MULTI), ("Single-step", "Multistep"), strict=True):
            style.log_axis(ax, "x", NFES, every=True)
            ax.set_yscale("log")
            ax.set_ylim(min(values) / 100, max(values) * 2)  # room for the legend
            ax.grid(axis="y")
            for order in (1, 2, 3, 4):
                line = [0.3 * (NFES[0] / nfe) ** order for nfe in NFES]
                ax.plot(NFES, line, color="#BBBBBB", linewidth=0.7, zorder=1)
                if line[-1] > min(values) / 2:
                    ax.annotate(
                        f"{order}", (NFES[-1], line[-1]), (3, -2), textcoords="offset points", color="#888888"
                    )
            for place, solver in enumerate(solvers):
                ax.plot(
                    NFES, errors[solver.label], label=f"{solver.label} ({solver.order})", **style.kind(place)
                )
            ax.set_title(title, loc="left")
            ax.set_xlabel("Network evaluations")
            ax.legend(loc="lower left")
        panes[0].set_ylabel("Error to the exact solution (RMS)")
        figure.savefig(path, dpi=200, metadata={"Software": None})


def write(errors: dict[str, list[float]], path: Path) -> None:
    """One row for each solver and number of evaluations."""
    orders = {solver.label: solver.order for solver in (*SINGLE, *MULTI)}
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["solver", "nominal order", "nfe", "rms error", "slope from the last"])
        for label, each in errors.items():
            for i, (nfe, error) in enumerate(zip(NFES, each, strict=True)):
                slope = f"{math.log(each[i - 1] / error) / math.log(nfe / NFES[i - 1]):.2f}" if i else ""
                table.writerow([label, orders[label], nfe, f"{error:.3e}", slope])


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("docs/figures"), help="folder to write into")
    folder: Path = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    errors = measure()
    write(errors, folder / "solver-convergence.csv")
    draw(errors, folder / "solver-convergence.png")
    print(folder / "solver-convergence.png")


if __name__ == "__main__":
    main()
