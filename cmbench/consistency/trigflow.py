"""Continuous-time consistency (Lu & Song, 2024, arXiv 2410.11081) on a network of the EDM formulation.

TrigFlow's noisy image is ``x_t = cos(t) x_0 + sin(t) z`` with z of standard deviation sd and t in [0, pi/2]; that is
EDM's noisy image times cos(t), at sigma = sd tan(t). EDM's preconditioning turns into TrigFlow's,
``f = cos(t) x_t + sin(t) sd N(x_t / sd)``, where the raw network N is minus the paper's F: its consistency function is
:class:`cmbench.diffusion.preconditioning.Denoiser`, and an EDM network is a TrigFlow network as it stands.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cmbench.diffusion.jvp import network_jvp
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import expand, noise_condition


def sigma_of(t: float, noise: NoiseRange) -> float:
    """The noise level of TrigFlow's time ``t`` in (0, pi/2): ``sd tan(t)``."""
    return noise.sigma_data * math.tan(t)


def time_of(sigma: float, noise: NoiseRange) -> float:
    """TrigFlow's time of a noise level, the inverse of :func:`sigma_of`."""
    return math.atan(sigma / noise.sigma_data)


class AdaptiveWeight(nn.Module):
    """w(c_noise), the logarithm of the loss's weight: a linear layer on sines and cosines; starts as zero.

    Trained with the network on ``exp(w) l - w``, it tends to the log of 1 / E[l] at every level (section 4.2).
    """

    frequencies: Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        # From a quarter of the whole noise range (2.7 units of c_noise) a cycle to about a tenth of it.
        self.register_buffer("frequencies", torch.linspace(0.1, 4.0, features // 2), persistent=False)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c_noise: Tensor) -> Tensor:
        """[B] -> [B]."""
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies
        out: Tensor = self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out.flatten()


class ContinuousObjective:
    """``exp(w) / D |N - stopgrad(N) + g|^2 - w`` with the normalised tangent g (Algorithm 1), D values an image.

    The tangent is ``cos(t) df/dt``, with the part that passes through the network scaled by r, which rises from 0 to 1
    over ``warmup`` steps, then divided by its norm plus ``c``.

    Args:
        noise: sigma_data.
        teacher: raw EDM network whose ODE is followed (distillation), or None (training: the pair's own direction).
        log_mean, log_std: ln sigma is normal.
        warmup: steps of the tangent warm-up.
        c: constant of the tangent normalisation.
        weight: the adaptive weight, or None for a weight of one.
    """

    def __init__(
        self,
        noise: NoiseRange,
        teacher: nn.Module | None,
        log_mean: float,
        log_std: float,
        warmup: int,
        c: float,
        weight: AdaptiveWeight | None,
    ) -> None:
        self.sd, self.teacher = noise.sigma_data, teacher
        self.log_mean, self.log_std, self.warmup, self.c = log_mean, log_std, warmup, c
        self.weight = weight
        self.modules: Mapping[str, nn.Module] = {} if weight is None else {"weight": weight}

    @property
    def trained(self) -> nn.Module:
        """What the optimiser updates along with the network."""
        return nn.ModuleDict(self.modules)

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, step: int, rng: torch.Generator
    ) -> Tensor:
        """Per-sample losses [B]; may be negative. All draws (time, noise) come from ``rng``."""
        normal = torch.randn(len(x), device=x.device, generator=rng)
        sigma = torch.exp(self.log_mean + self.log_std * normal)
        z = self.sd * torch.randn(x.shape, device=x.device, generator=rng)
        share = min(1.0, step / self.warmup) if self.warmup else 1.0
        out, g = self.tangent(network, x, z, sigma, labels, share)
        g = g / expand(torch.linalg.vector_norm(g.flatten(1), dim=1) + self.c, g)
        error = (out - out.detach() + g).square().flatten(1).mean(1)
        if self.weight is None:
            return error
        w: Tensor = self.weight(noise_condition(sigma))
        return w.exp() * error - w

    def tangent(
        self, network: nn.Module, x: Tensor, z: Tensor, sigma: Tensor, labels: Tensor | None, share: float
    ) -> tuple[Tensor, Tensor]:
        """The raw network's output, with its graph, and ``cos(t) df/dt`` before normalisation, without one.

        Times cos(t) sin(t), the chain rule's dc_noise/dt is 1/4 at every level: nothing diverges at either end.
        ``share`` (r) scales what passes through the network.
        """
        t = torch.atan(sigma / self.sd)
        cos, sin = expand(t.cos(), x), expand(t.sin(), x)
        x_t = cos * x + sin * z
        c_noise = noise_condition(sigma)
        with torch.no_grad():
            if self.teacher is None:
                slope = cos * z - sin * x
            else:
                slope = -self.sd * self.teacher(x_t / self.sd, c_noise, labels)
        quarter = torch.full_like(c_noise, 0.25)
        out, along = network_jvp(
            network, x_t / self.sd, c_noise, labels, cos * sin * slope / self.sd, quarter
        )
        still = cos**2 * (self.sd * out + slope)
        through = self.sd * along - cos * sin * x_t
        return out, (still + share * through).detach()

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""
