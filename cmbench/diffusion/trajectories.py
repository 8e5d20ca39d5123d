"""Trajectories of a diffusion model, as synthetic pairs: the noise, and points of the ODE's solution through it."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.solvers import STEPS
from cmbench.errors import UsageError
from cmbench.pairs import Map, Pairs

if TYPE_CHECKING:
    from cmbench.methods import Model, Parent


@dataclass(frozen=True)
class Trajectories:
    """How a diffusion model makes pairs.

    Attributes:
        count: number of pairs.
        solver: ``euler`` is DDIM, ``points`` evaluations; ``heun`` takes 2 points - 1.
        points: noise levels of the solver's Karras grid.
        keep: points of each trajectory that are stored, the last being the image.
        seed: of noise and labels.
    """

    count: int = 20_000
    solver: Literal["euler", "heun"] = "heun"
    points: int = 18
    keep: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.points:
            raise UsageError(
                f"pairs.keep {self.keep}: a solver of {self.points} points has 1 to {self.points}"
            )

    def nodes(self) -> list[int]:
        """Which points of the solver's grid are kept: evenly spaced in index, the last one sigma = 0."""
        return [round(i * self.points / self.keep) for i in range(1, self.keep + 1)]

    def levels(self, noise: NoiseRange) -> Tensor:
        """Noise levels of the kept points: float64 [keep], the last one zero."""
        grid = torch.cat([karras_sigmas(noise, self.points), torch.zeros(1, dtype=torch.float64)])
        return grid[self.nodes()]

    def pairs(self, of: "Parent") -> Pairs:
        """The pairs that this network makes."""
        settings = asdict(self)
        count, seed = settings.pop("count"), settings.pop("seed")
        return Pairs(of, self.follow, {"kind": "trajectories", **settings}, count, seed)

    def follow(self, model: "Model") -> Map:
        """The map from noise to the kept points [B, keep, C, H, W], float64 inside, float32 out."""
        denoise, step = model.denoiser(), STEPS[self.solver]
        sigmas, nodes = karras_sigmas(model.noise, self.points), self.nodes()

        def follow(noise: Tensor, labels: Tensor | None) -> Tensor:
            levels = sigmas.to(noise.device)
            x = noise.double() * levels[0]
            ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
            kept = []
            for number in range(1, self.points):
                x = step(denoise, x, levels[number - 1] * ones, levels[number] * ones, labels)
                if number in nodes:
                    kept.append(x)
            kept.append(denoise(x, levels[-1] * ones, labels))  # the step to zero is Euler's
            return torch.stack(kept, dim=1).float()

        return follow
