"""What is given of an image: A and Omega of Song et al. (2023), Algorithm 4.

A is an invertible linear map, orthogonal in all of them; Omega says which values of ``A x`` are missing. All is
computed in the type of the images; use float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


class Operator(Protocol):
    """A and Omega."""

    def forward(self, x: Tensor) -> Tensor:
        """``A x`` for images [B, C, H, W], in a shape of its own."""

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images whose ``A x`` this is."""

    def impose(self, known: Tensor, x: Tensor) -> Tensor:
        """``A^-1 [known (1 - Omega) + (A x) Omega]``: the images ``x`` with the given part of ``known = A y``."""

    def finish(self, known: Tensor, x: Tensor) -> Tensor:
        """The images nearest to ``x`` that lie in [-1, 1] and have the given part of ``known``.

        The given part must be that of some image in [-1, 1].
        """

    def error(self, known: Tensor, x: Tensor) -> Tensor:
        """How far the given part of ``x`` is from that of ``known``, as pixel values, in a shape of its own."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Inpainting: A = I, and the pixels where ``missing`` (bool, broadcasts to [B, C, H, W]) is true are missing."""

    missing: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The images themselves."""
        return x

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images themselves."""
        return coefficients

    def impose(self, known: Tensor, x: Tensor) -> Tensor:
        """Copies the given pixels."""
        return torch.where(self.missing.to(x.device), x, known)

    def finish(self, known: Tensor, x: Tensor) -> Tensor:
        """Clips the others."""
        return self.impose(known, x.clamp(-1, 1))

    def error(self, known: Tensor, x: Tensor) -> Tensor:
        """Absolute differences of the given pixels."""
        return (x - known).abs()[(~self.missing.to(x.device)).expand_as(x)]


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of k values in an orthogonal basis, of whose k coefficients the first is given: ``<basis[0], group>``.

    Attributes:
        basis: float64 [k, k], the rows orthonormal.
        split: images [B, C, H, W] -> groups [..., k].
        join: its inverse.
    """

    basis: Tensor
    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients [..., k] of each group."""
        return self.split(x) @ self.basis.T.to(x)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images with these coefficients."""
        return self.join(coefficients @ self.basis.to(coefficients))

    def impose(self, known: Tensor, x: Tensor) -> Tensor:
        """Replaces the first coefficient of each group."""
        return self.inverse(torch.cat([known[..., :1], self.forward(x)[..., 1:]], dim=-1))

    def finish(self, known: Tensor, x: Tensor) -> Tensor:
        """The Euclidean projection: ``clip(group + shift basis[0])`` with the one shift that gives the coefficient.

        The coefficient rises with the shift, so the shift is found by bisection, to the last bits.
        """
        first, groups = self.basis[0].to(x), self.split(x)
        reach = ((1 + groups.abs().amax(-1)) / first.min()).unsqueeze(
            -1
        )  # moves every value across the range
        low, high = -reach, reach
        for _ in range(60):
            middle = (low + high) / 2
            made = ((groups + middle * first).clamp(-1, 1) @ first).unsqueeze(-1)
            low, high = (
                torch.where(made < known[..., :1], middle, low),
                torch.where(made < known[..., :1], high, middle),
            )
        return self.join((groups + (low + high) / 2 * first).clamp(-1, 1))

    def error(self, known: Tensor, x: Tensor) -> Tensor:
        """Absolute differences of the means that the first coefficients stand for."""
        error: Tensor = (self.forward(x) - known)[..., 0].abs() / self.basis[0].sum().to(x)
        return error


def orthogonal_basis(first: Sequence[float]) -> Tensor:
    """An orthogonal matrix, float64 [k, k], whose first row is ``first`` (positive) scaled to unit length."""
    start = torch.eye(len(first), dtype=torch.float64)
    start[:, 0] = torch.tensor(first, dtype=torch.float64)
    columns, _ = torch.linalg.qr(start)
    rows: Tensor = (columns * torch.sign(columns[0, 0])).T.contiguous()
    return rows


def inpainting(missing: Tensor) -> Pixels:
    """The pixels where ``missing`` is false are given."""
    return Pixels(missing)


def everything_missing() -> Pixels:
    """Nothing is given: A = I, Omega = 1 (stroke-guided editing)."""
    return Pixels(torch.ones((), dtype=torch.bool))


def colorization() -> Groups:
    """The luma of each RGB pixel is given."""
    return Groups(orthogonal_basis(LUMA), lambda x: x.movedim(1, -1), lambda groups: groups.movedim(-1, 1))


def superresolution(factor: int) -> Groups:
    """The mean of each block of factor x factor pixels is given, in each channel. H and W are multiples of it."""

    def split(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        blocks = x.reshape(B, C, H // factor, factor, W // factor, factor)
        return blocks.movedim(3, 4).flatten(4)

    def join(groups: Tensor) -> Tensor:
        B, C, h, w, _ = groups.shape
        blocks = groups.reshape(B, C, h, w, factor, factor).movedim(4, 3)
        return blocks.reshape(B, C, h * factor, w * factor)

    return Groups(orthogonal_basis([1.0] * factor**2), split, join)
