"""The null class: put in place of labels in training, and guided away from in sampling (arXiv 2207.12598)."""

import math

import torch
from torch import Tensor

from cmbench.diffusion.preconditioning import Denoise
from cmbench.guidance import Guidance
from cmbench.networks.layers import NULL, need_labels


def drop_labels(labels: Tensor | None, rate: float, rng: torch.Generator) -> Tensor | None:
    """The labels [B], each replaced by the null class with probability ``rate`` (Ho & Salimans, Algorithm 1)."""
    if labels is None or rate == 0:
        return labels
    dropped = torch.rand(len(labels), device=labels.device, generator=rng) < rate
    return torch.where(dropped, NULL, labels)


def guided(denoise: Denoise, guidance: Guidance) -> Denoise:
    """The denoiser ``D(null) + w (D(c) - D(null))``; labels are required.

    A guided sample goes through the network twice, in one call with the labels and the null class side by side;
    outside the interval, and with w = 0, once. The sum is taken in the type of ``x``.
    """
    if not guidance.active:
        return denoise
    weight = guidance.weight
    low, high = guidance.interval or (0.0, math.inf)

    def evaluate(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        labels = need_labels(labels)
        inside = (sigma > low) & (sigma <= high)
        if weight == 0:
            return denoise(x, sigma, torch.where(inside, NULL, labels))
        rows = inside.nonzero().flatten() if guidance.interval else torch.arange(len(x), device=x.device)
        null = torch.full_like(labels[rows], NULL)
        both = denoise(torch.cat([x, x[rows]]), torch.cat([sigma, sigma[rows]]), torch.cat([labels, null]))
        conditional, unconditional = both[: len(x)], both[len(x) :]
        return conditional.index_add(0, rows, (weight - 1) * (conditional[rows] - unconditional))

    return evaluate
