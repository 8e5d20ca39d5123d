"""The straight-line flow of rectified flows (Liu et al., 2022, arXiv 2209.03003): ``x_t = t x + (1 - t) z``.

Time runs from the noise z at t = 0 to the image x at t = 1; the network's raw output is the velocity dx_t/dt.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import expand

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(x [B, C, H, W], t [B] in [0, 1], labels [B] or None) -> dx/dt [B, C, H, W]``."""

FlowStep = Callable[[Velocity, Tensor, Tensor, float, Tensor | None], Tensor]
"""``(velocity, x [B, C, H, W], t [B], length, labels) -> x at t + length``."""


class VelocityField(nn.Module):
    """The network as a velocity: no scaling of inputs or outputs.

    Every network of cmbench receives a noise condition between ln(sigma_max) / 4 and ln(sigma_min) / 4; time is mapped
    linearly onto that range, so that the embeddings work where they were made to. Computes in the type of ``x``; the
    network itself runs in float32, or in the autocast type of the caller.
    """

    def __init__(self, network: nn.Module, noise: NoiseRange) -> None:
        super().__init__()
        self.network = network
        self.first, self.last = math.log(noise.sigma_max) / 4, math.log(noise.sigma_min) / 4

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at ``x`` [B, C, H, W] and times ``t`` [B]."""
        condition = self.first + (self.last - self.first) * t
        out: Tensor = self.network(x.float(), condition.float(), labels)
        return out.to(x.dtype)


def interpolate(image: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The point ``t image + (1 - t) z`` of the straight line, for ``t`` [B]."""
    return torch.lerp(z, image, expand(t, z))


def euler(velocity: Velocity, x: Tensor, t: Tensor, length: float, labels: Tensor | None) -> Tensor:
    """One Euler step: one evaluation."""
    return x + length * velocity(x, t, labels)


def heun(velocity: Velocity, x: Tensor, t: Tensor, length: float, labels: Tensor | None) -> Tensor:
    """One Heun step: two evaluations."""
    slope = velocity(x, t, labels)
    return x + length / 2 * (slope + velocity(x + length * slope, t + length, labels))


def flow(velocity: Velocity, noise: Tensor, steps: int, step: FlowStep, labels: Tensor | None) -> Tensor:
    """Follow the flow from unit-normal ``noise`` [B, C, H, W] to t = 1 in equal steps, in float64; returns float32."""
    x = noise.double()
    for number in range(steps):
        t = torch.full((len(x),), number / steps, dtype=torch.float64, device=x.device)
        x = step(velocity, x, t, 1 / steps, labels)
    return x.float()
