"""From a raw network to a denoiser: the preconditioning of EDM (Karras et al., 2022, Table 1)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(x [B, C, H, W], sigma [B], labels [B] or None) -> estimate of the clean image [B, C, H, W]``."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Reshape per-sample values [B] so that they multiply ``like`` [B, ...]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(like.dtype)


def noise_condition(sigma: Tensor) -> Tensor:
    """Noise levels as every network of cmbench receives them: ``ln(sigma) / 4``, in the shape of ``sigma``."""
    return torch.log(sigma) / 4


def scaled_input(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in: the factor that gives the noisy image unit variance, [B]."""
    return 1 / torch.sqrt(sigma**2 + sigma_data**2)


def run_network(network: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor | None, c_in: Tensor) -> Tensor:
    """Evaluate the network on the scaled input; the result comes back in the type of ``x``.

    ``sigma`` is [B], or [B, n] for a network of n conditions; ``c_in`` is [B].
    """
    out: Tensor = network((expand(c_in, x) * x).float(), noise_condition(sigma).float(), labels)
    return out.to(x.dtype)


class Denoiser(nn.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` around a raw network F (EDM, equation 7).

    Computes in the type of ``x``, so that a float64 sampler keeps its precision; the network itself runs in
    float32, or in the autocast type of the caller.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise ``x`` [B, C, H, W] at noise levels ``sigma`` [B]."""
        sigma = sigma.to(x.dtype)
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / torch.sqrt(total)
        raw = run_network(self.network, x, sigma, labels, scaled_input(sigma, self.sigma_data))
        return expand(c_skip, x) * x + expand(c_out, x) * raw
