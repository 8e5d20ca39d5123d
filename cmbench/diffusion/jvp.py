"""Forward-mode derivatives of the networks: what continuous-time consistency and flow-map training differentiate."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def network_jvp(
    network: nn.Module, x: Tensor, c_noise: Tensor, labels: Tensor | None, dx: Tensor, dc: Tensor
) -> tuple[Tensor, Tensor]:
    """The raw network at (x, c_noise) and its derivative along (dx, dc), in one pass.

    Attention runs in its plain form, since the fused kernels have no forward-mode derivative. The first result
    carries the graph to the network's parameters as a usual call does, and both see the same dropout masks.

    Args:
        network: ``(x [B, C, H, W], c_noise [B], labels) -> [B, C, H, W]``.
        x, c_noise, labels: where.
        dx, dc: the direction, shaped as ``x`` and ``c_noise``.
    """

    def run(at: Tensor, level: Tensor) -> Tensor:
        out: Tensor = network(at, level, labels)
        return out

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own rules for forward mode use torch.jit
        both = torch.func.jvp(run, (x, c_noise), (dx, dc))
    return both[0], both[1]
