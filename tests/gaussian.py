"""Gaussian data N(mean, std^2), where denoiser, ODE trajectories and consistency function are known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmbench.diffusion.noise import NoiseRange


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.2
    std: float = 0.4

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[clean | x]."""
        s = column(sigma, x)
        return self.mean + self.std**2 / (self.std**2 + s**2) * (x - self.mean)

    def flow(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The ODE's solution at ``end`` through ``x`` at ``start``."""
        a, b = column(start, x), column(end, x)
        return self.mean + (x - self.mean) * torch.sqrt((self.std**2 + b**2) / (self.std**2 + a**2))


class ExactDenoiser(nn.Module):
    """The raw network whose preconditioned form is the exact denoiser."""

    def __init__(self, data: Gaussian, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.data, self.sd = data, sigma_data

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = torch.exp(4 * c_noise.double())
        s = column(sigma, x.double())
        total = torch.sqrt(s**2 + self.sd**2)
        noisy = x.double() * total
        clean = self.data.denoise(noisy, sigma)
        return ((clean - self.sd**2 / total**2 * noisy) / (s * self.sd / total)).to(x.dtype)


class ExactConsistency(nn.Module):
    """The raw network whose consistency function is the exact one, with one unused parameter."""

    def __init__(self, data: Gaussian, noise: NoiseRange) -> None:
        super().__init__()
        self.data, self.noise = data, noise
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sd, low = self.noise.sigma_data, self.noise.sigma_min
        sigma = torch.exp(4 * c_noise.double())
        s = column(sigma, x.double())
        total = torch.sqrt(s**2 + sd**2)
        noisy = x.double() * total
        above = s - low
        wanted = self.data.flow(noisy, sigma, torch.full_like(sigma, low))
        raw = (wanted - sd**2 / (above**2 + sd**2) * noisy) / (sd * above / total)
        raw = torch.where(above.abs() < 1e-6, torch.zeros_like(raw), raw)  # there c_out is 0
        return raw.to(x.dtype) + self.unused


class Scale(nn.Module):
    """One parameter: the raw output is ``weight * x + bias``; enough for exact gradients by hand."""

    def __init__(self, weight: float = 0.3, bias: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.weight * x + self.bias
