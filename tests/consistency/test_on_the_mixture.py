"""Every consistency method, trained on a mixture whose solution map is known.

The distilled methods follow the exact score; those that learn from data see 8-bit points of it.
"""

from pathlib import Path
from typing import Any

import torch
from mixture import SHAPE, ExactNetwork, Mixture, train_on_mixture, two_sample_p

from cmbench import methods
from cmbench.networks.mlp import ResidualMLP
from cmbench.recipes import merge, parse
from cmbench.sampling.generate import EvaluationCounter
from cmbench.sampling.seeds import SampleRng, initial_noise

DATA = Mixture()
NETWORK = {"width": 64, "blocks": 3, "embedding": 64}
FIT = {
    "steps": 1500, "batch_size": 256, "learning_rate": 2e-3, "optimizer": "radam", "schedule": "cosine", "ema": 0.99,
    "checkpoint_every": 1500,
}  # fmt: skip


class ExactTeacher(ResidualMLP):
    """Gives a student fresh weights to start from, and the exact score to follow."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(SHAPE, 0, **NETWORK)
        self.exact = ExactNetwork(DATA)

    def forward(self, x, c_noise, labels=None):
        return self.exact(x, c_noise, labels)


def outcome(name: str, folder: Path, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Root mean square error of one-step samples against the solution map; p-values at one and two evaluations."""
    method = methods.get(name)
    recipe = parse(method.recipe, merge({"fit": FIT}, settings), name)
    teacher = ExactTeacher() if method.parent("", recipe) else None
    model = train_on_mixture(method, recipe, folder, teacher=teacher, network={"kind": "mlp", **NETWORK})
    noise = initial_noise(5, range(400), SHAPE)
    wanted = DATA.solve(80 * noise.double(), 80.0, 0.002)
    made = {}
    for nfe in (1, 2):
        counter = EvaluationCounter(model.network)
        with torch.no_grad():
            rng = SampleRng(5, range(400), noise.device)
            made[nfe] = method.sampler(model, recipe, nfe)(noise, None, rng)
        assert counter.rows == 400 * nfe
        counter.close()
    error = float((made[1] - wanted).square().flatten(1).sum(1).mean().sqrt())
    fresh = DATA.sample(300, seed=3)
    return error, *(two_sample_p(made[nfe][:300], fresh) for nfe in (1, 2))
