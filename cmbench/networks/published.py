"""Configurations of published networks, for ``cmbench.networks.build``; dropout is left to the recipes."""

from collections.abc import Mapping
from typing import Any

DDPMPP_CIFAR10: Mapping[str, Any] = {
    "kind": "song",
    "channels": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (16,),
    "embedding": "positional",
    "encoder": "standard",
    "resample_filter": (1, 1),
}
"""DDPM++ as EDM trains it on CIFAR-10 (Karras et al. 2022, table 7, "VP")."""

NCSNPP_CIFAR10: Mapping[str, Any] = {
    **DDPMPP_CIFAR10,
    "embedding": "fourier",
    "encoder": "residual",
    "resample_filter": (1, 3, 3, 1),
}
"""NCSN++ as EDM ("VE") and the consistency models paper train it on CIFAR-10, unconditional in the latter."""

ADM_IMAGENET64: Mapping[str, Any] = {
    "kind": "adm",
    "channels": 192,
    "multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (32, 16, 8),
    "scale_shift": True,
    "class_conditional": True,
}
"""The released EDM and consistency models of ImageNet 64×64, 1000 classes (Song et al. 2023, appendix C)."""

ADM_LSUN256: Mapping[str, Any] = {
    "kind": "adm",
    "channels": 256,
    "multipliers": (1, 1, 2, 2, 4, 4),
    "blocks": 2,
    "attention": (32, 16, 8),
    "scale_shift": False,
}
"""The released EDM and consistency models of LSUN Bedroom and Cat 256×256, unconditional."""
