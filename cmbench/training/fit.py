"""The settings of a training run, as a recipe holds them."""

import math
from dataclasses import dataclass
from typing import Literal

from cmbench.errors import UsageError


@dataclass(frozen=True)
class Fit:
    """How a network is optimised. Defaults suit the small recipes; each preset states what differs.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: peak rate.
        optimizer: ``adam`` or ``radam`` (both without weight decay).
        beta1, beta2: decay of the first and the second moment.
        schedule: ``constant``, ``cosine`` (to zero) or ``linear`` (to zero), after the warm-up.
        warmup_steps: linear warm-up from zero.
        clip: largest gradient norm; 0 turns clipping off.
        ema: decay of the evaluated weights; 0 evaluates the current weights.
        ema_warmup: shorten the average's memory at the start to (1 + step) / (10 + step).
        flip: random horizontal flips.
        autocast: ``off``, ``bf16`` or ``fp16`` (fp16 on CUDA only, with gradient scaling).
        compile: run the networks of the training through ``torch.compile``; ``reduce-overhead`` also records CUDA
            graphs, for networks so small that starting their kernels is what takes the time.
        checkpoint_every: steps between saved states; also the unit of the divergence check.
    """

    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "radam"] = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    clip: float = 0.0
    ema: float = 0.999
    ema_warmup: bool = True
    flip: bool = False
    autocast: Literal["off", "bf16", "fp16"] = "off"
    compile: bool | Literal["reduce-overhead"] = False
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.checkpoint_every) < 1:
            raise UsageError("steps, batch_size and checkpoint_every must be at least 1")
        if not 0 <= self.ema < 1 or self.learning_rate <= 0 or self.clip < 0 or self.warmup_steps < 0:
            raise UsageError("need 0 <= ema < 1, learning_rate > 0, clip >= 0, warmup_steps >= 0")


def learning_rate(fit: Fit, step: int) -> float:
    """The rate at ``step`` (0-based): warm-up, then the schedule over the remaining steps."""
    if step < fit.warmup_steps:
        return fit.learning_rate * (step + 1) / fit.warmup_steps
    progress = (step - fit.warmup_steps) / max(1, fit.steps - fit.warmup_steps)
    factor = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}
    return fit.learning_rate * factor[fit.schedule]


def ema_decay(fit: Fit, step: int) -> float:
    """The decay of the evaluated weights applied after ``step`` (0-based)."""
    return min(fit.ema, (1 + step) / (10 + step)) if fit.ema_warmup else fit.ema
