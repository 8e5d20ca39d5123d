"""A mixture of Gaussians in the plane, where denoiser, score and the solution of the probability-flow ODE are known.

Points are images of shape (1, 1, 2), so that networks, objectives and samplers take them as they are. The exact
teacher is a raw network (:class:`ExactNetwork`), and :func:`train_on_mixture` trains any method on the mixture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.diffusion.noise import NoiseRange
from cmbench.methods import Method, Model, TrainJob

SHAPE = (1, 1, 2)
CENTRES = ((-0.5, -0.4), (0.5, -0.3), (0.0, 0.55))
WEIGHTS = (0.3, 0.3, 0.4)


@dataclass(frozen=True)
class Mixture:
    """Isotropic components of one standard deviation; ``sigma`` is the noise level of x = clean + sigma z."""

    std: float = 0.12
    centres: tuple[tuple[float, float], ...] = CENTRES
    weights: tuple[float, ...] = WEIGHTS

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[clean | x] for ``x`` [B, 1, 1, 2] at ``sigma`` [B]; with ``labels`` [B], of that component (-1: all)."""
        flat, s = x.flatten(1).double(), sigma.double()[:, None]
        centres = torch.tensor(self.centres, dtype=torch.float64, device=x.device)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=x.device)
        variance = self.std**2 + s**2
        squared = (flat[:, None] - centres).square().sum(2)
        logits = weights.log() - squared / (2 * variance)
        if labels is not None:
            chosen = (labels[:, None] == torch.arange(len(centres))) | (labels[:, None] == -1)
            logits = logits.masked_fill(~chosen, -torch.inf)
        share = torch.softmax(logits, dim=1)
        clean = share @ centres + self.std**2 / variance * (flat - share @ centres)
        return clean.to(x.dtype).reshape(x.shape)

    def sample(self, count: int, seed: int) -> Tensor:
        """float64 [count, 1, 1, 2]."""
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.weights), count, p=self.weights)
        points = np.array(self.centres)[which] + self.std * rng.standard_normal((count, 2))
        return torch.from_numpy(points).reshape(-1, *SHAPE)

    def solve(self, x: Tensor, start: float, end: float) -> Tensor:
        """The ODE's solution at noise level ``end`` through ``x`` [B, 1, 1, 2] at ``start``, to about 1e-9.

        dx/dsigma = (x - D(x, sigma)) / sigma, integrated in log sigma.
        """

        def slope(u: float, flat: np.ndarray) -> np.ndarray:
            points = torch.from_numpy(flat).reshape(-1, *SHAPE)
            sigma = torch.full((len(points),), float(np.exp(u)), dtype=torch.float64)
            return (points - self.denoise(points, sigma)).numpy().ravel()

        found = solve_ivp(
            slope, (np.log(start), np.log(end)), x.double().numpy().ravel(), "DOP853", rtol=1e-10, atol=1e-10
        )
        assert found.success
        return torch.from_numpy(found.y[:, -1]).reshape(x.shape)


class ExactNetwork(nn.Module):
    """The raw network whose preconditioned form (EDM) is the mixture's exact denoiser."""

    def __init__(self, data: Mixture, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.data, self.sd = data, sigma_data

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The raw output F = (D - c_skip x) / c_out."""
        sigma = torch.exp(4 * c_noise.double())
        s = sigma.reshape(-1, 1, 1, 1)
        total = torch.sqrt(s**2 + self.sd**2)
        noisy = x.double() * total
        clean = self.data.denoise(noisy, sigma, labels)
        return ((clean - self.sd**2 / total**2 * noisy) * total / (s * self.sd)).to(x.dtype)


def train_on_mixture(
    method: Method,
    recipe: Any,
    folder: Path,
    *,
    data: Mixture | None = None,
    teacher: nn.Module | None = None,
    network: dict[str, Any] | None = None,
    variant: str = "",
    seed: int = 0,
    count: int = 20_000,
    **more: Any,
) -> Model:
    """Train ``method`` on points of the mixture (8-bit, as all data sets are); returns its model.

    ``more`` are further fields of the :class:`TrainJob`.
    """
    data = data or Mixture()
    points = ((data.sample(count, seed=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    options = network or {"kind": "mlp", "width": 64, "blocks": 3, "embedding": 64}
    assert method.train is not None
    trained = method.train(
        TrainJob(
            recipe=recipe,
            images=ImageData("mixture", "mixture", ArraySource(points)),
            network={**options, **method.network(recipe)},
            classes=0,
            noise=NoiseRange(),
            seed=seed,
            device=torch.device("cpu"),
            state=folder / f"{method.name}{variant}.state",
            report=lambda _: None,
            variant=variant,
            teacher=teacher,
            **more,
        )
    )
    return Model(trained, NoiseRange())


def two_sample_p(a: Tensor, b: Tensor, seed: int = 0, permutations: int = 500) -> float:
    """p-value of the energy-distance permutation test that ``a`` [N, ...] and ``b`` [M, ...] have one distribution."""
    x = torch.cat([a.flatten(1).double(), b.flatten(1).double()]).numpy()
    distances = np.sqrt(np.maximum(((x[:, None] - x[None]) ** 2).sum(2), 0))
    n, total = len(a), len(x)

    def statistic(member: np.ndarray) -> float:
        w = np.where(member, 1 / n, -1 / (total - n))
        return float(-w @ distances @ w)

    member = np.arange(total) < n
    rng = np.random.default_rng(seed)
    seen = statistic(member)
    larger = sum(statistic(rng.permutation(member)) >= seen for _ in range(permutations))
    return (1 + larger) / (1 + permutations)
