"""Made-up experiments for the tests of the figures: manifests and their records, written to a folder."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from report_factory import record

from cmbench import records
from cmbench.experiments import manifest
from cmbench.experiments.manifest import Arm, Manifest, Point
from cmbench.records import Metric

TITLES = {"fid": "FD-digits"}
ARMS: dict[str, list[tuple[str, dict[str, Any], float, float]]] = {
    # experiment -> arms: label, settings, final value, rate
    "fig3a": [
        ("ℓ1", {"metric": "l1"}, 0.9, 1.6), ("ℓ2", {"metric": "l2"}, 0.7, 1.8),
        ("features (LPIPS formula)", {"metric": "classifier"}, 0.5, 2.2),
    ],
    "fig3b": [
        (f"{solver.title()}, N = {n}", {"solver": solver, "points": n}, 0.5 + worse / n, 2.0)
        for solver, worse in (("euler", 40), ("heun", 4)) for n in (12, 18, 36)
    ],
    "fig3c": [
        (f"N = {n}", {"points": n}, 0.45 + 3 / n, 3 - n / 60) for n in (9, 12, 18, 36, 50, 60, 80, 120)
    ],
    "fig3d": [("adaptive N and μ", {}, 1.2, 2.5)]
    + [(f"N = {n}, μ = 0.9", {"ct.points": n, "ct.mu": 0.9}, 1.6 + n / 100, 1.6) for n in (20, 150)],
    "fig4": [(name, {}, end, 0.0) for name, end in (("PD", 0.8), ("CD-ℓ2", 0.55), ("CD-LPIPS", 0.4))],
}  # fmt: skip
PAPER = {
    "fig3a": "Metric functions in CD", "fig3b": "Solvers and N in CD", "fig3c": "N with Heun in CD",
    "fig3d": "Adaptive N and μ in CT", "fig4": "PD and CD over evaluations",
}  # fmt: skip


def experiment(out: Path, name: str, seeds: int = 3, dataset: str = "digits") -> Manifest:
    """Write the experiment's records and its manifest under ``out``."""
    axis = "nfe" if name == "fig4" else "step"
    rng = random.Random(name)
    places = [(None, nfe) for nfe in (1, 2, 4, 8)] if axis == "nfe" else [(500 * n, 1) for n in range(1, 11)]
    arms = []
    for index, (label, settings, end, rate) in enumerate(ARMS[name]):
        points = []
        for step, nfe in places:
            for seed in range(seeds):
                drop = 6 * 2.718 ** (-rate * step / 1500) if step else 1.2 / nfe
                value = (end + drop) * (1 + 0.08 * rng.random())
                own = record(
                    "cd", nfe, seed, {"fid": Metric(value)}, dataset=dataset, samples=5_000, protocol="digits",
                    titles=TITLES, step=step, arm=f"{name} {index}",
                )  # fmt: skip
                where = records.write(out / "experiments", own)
                points.append(Point(step, nfe, seed, where.relative_to(out).as_posix()))
        arms.append(Arm(f"arm{index}", label, "cd", settings, tuple(points)))
    paper = f"Figure 3 ({name[-1]})" if name.startswith("fig3") else "Figure 4"
    made = Manifest(name, PAPER[name], paper, dataset, axis, "fid", tuple(arms))
    manifest.write(out, made)
    return made


def without_figures(made: Manifest, arm: int, reason: str) -> Manifest:
    """The experiment with one arm that failed."""
    arms = list(made.arms)
    arms[arm] = replace(arms[arm], points=(), failures=(reason,))
    return replace(made, arms=tuple(arms))
