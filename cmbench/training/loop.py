"""The training loop: any objective, any network; exact resume, EMA, autocast, divergence."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from cmbench.errors import WorkError
from cmbench.training import state as states
from cmbench.training.batches import Batches, TrainingImages
from cmbench.training.fit import Fit, ema_decay, learning_rate

EXPLOSION = 1e4  # a mean loss this many times its best value counts as diverged


class Stateful(Protocol):
    """Anything whose state can be saved and put back: a network, an optimiser."""

    def state_dict(self) -> Mapping[str, Any]:
        """Nested dictionaries of tensors and JSON values."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Inverse of :meth:`state_dict`."""
        ...


class Objective(Protocol):
    """What is minimised."""

    @property
    def modules(self) -> Mapping[str, Stateful]:
        """All that it keeps between steps (a target network, a second network and its optimiser), by name."""
        ...

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, step: int, rng: torch.Generator, /
    ) -> Tensor:
        """Per-sample losses [B] for images ``x`` [B, C, H, W] in [-1, 1], or for pairs [B, 1 + M, C, H, W]."""
        ...

    def after_step(self, network: nn.Module, step: int, /) -> None:
        """Called after each optimiser step."""
        ...


@runtime_checkable
class TrainsAlong(Protocol):
    """An objective with parameters of its own, such as a learnt weight, that the optimiser updates with the network's.

    What stands in ``trained`` must also stand in ``modules``.
    """

    @property
    def trained(self) -> nn.Module:
        """Updated by the network's loss, at the network's rate; neither averaged nor clipped."""
        ...


@dataclass(frozen=True)
class Progress:
    """What the loop tells its caller now and then. ``loss`` is None where pairs are made, not a network trained."""

    step: int
    steps: int
    loss: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Milestones:
    """Where along a training its evaluated network is kept.

    Attributes:
        steps: optimiser steps after which it is kept.
        keep: called with the network (which the loop goes on to change), the step, and the seconds of training so far.
    """

    steps: frozenset[int] = frozenset()
    keep: Callable[[nn.Module, int, float], None] = lambda _network, _step, _seconds: None


def step_seed(seed: int, step: int) -> int:
    """The seed of all random draws of a step: a resumed run draws what an uninterrupted one would have."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.no_grad()
def move_towards(average: nn.Module, current: nn.Module, decay: float) -> None:
    """``average <- decay * average + (1 - decay) * current``, in place; buffers are copied."""
    parameters = [p.data for p in average.parameters()]
    torch._foreach_lerp_(parameters, [p.data for p in current.parameters()], 1 - decay)
    for kept, buffer in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(buffer)


def make_optimizer(network: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """Adam or RAdam over the network's parameters, fused or multi-tensor where the device has it."""
    betas = (fit.beta1, fit.beta2)
    if fit.optimizer == "radam":
        return torch.optim.RAdam(network.parameters(), lr=fit.learning_rate, betas=betas, foreach=True)
    return torch.optim.Adam(network.parameters(), lr=fit.learning_rate, betas=betas, fused=True)


def compile_with(module: object, fit: Fit) -> None:
    """Put ``torch.compile`` under a module's call, where ``fit`` asks for it; its weights keep their names.

    Networks of one architecture share what was compiled, each batch size having kernels of its own.
    """
    if fit.compile and isinstance(module, nn.Module):
        module.compile(dynamic=False, mode=None if fit.compile is True else fit.compile)


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms once for each shape, as fits shapes that stay the same for a whole training."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@_fastest_convolutions()
def train(
    network: nn.Module,
    objective: Objective,
    images: TrainingImages,
    fit: Fit,
    *,
    seed: int,
    device: torch.device,
    state_path: Path,
    report: Report = lambda _: None,
    milestones: Milestones | None = None,
) -> nn.Module:
    """Minimise ``objective`` and return the evaluated (EMA) network.

    All randomness of step k is a function of (seed, k), so a run that was killed goes on from ``state_path`` exactly
    as if it had not been. The state is written every ``fit.checkpoint_every`` steps, after the losses since the
    last one were found finite and sane; the file is left to the caller to delete. A resumed run meets only the
    milestones behind its state, and keeps again those between the state and the kill.

    Raises:
        WorkError: the loss became NaN, infinite, or exploded; names the step and the last good state.
    """
    network.to(device).to(memory_format=torch.channels_last).train()  # convolutions run half as fast again
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = make_optimizer(network, fit)
    if isinstance(objective, TrainsAlong) and (own := list(objective.trained.parameters())):
        optimizer.add_param_group({"params": own})
    batches = Batches(images, device, fit.batch_size, seed, fit.flip)
    autocast = torch.autocast(
        device.type, {"bf16": torch.bfloat16}.get(fit.autocast, torch.float16), fit.autocast != "off"
    )
    scaler = torch.amp.GradScaler(device.type, enabled=fit.autocast == "fp16")
    for module in (network, *objective.modules.values()):
        compile_with(module, fit)

    began = time.perf_counter() - states.seconds(state_path)
    start, best = 0, math.inf
    if state_path.exists():
        # To the CPU: each part puts its own where it belongs, and RAdam's counts of steps belong there.
        saved = states.load(state_path, torch.device("cpu"))
        start, best = _restore(saved, network, average, optimizer, scaler, objective)
    kept = milestones or Milestones()
    losses: list[Tensor] = []
    for step in range(start, fit.steps):
        if fit.compile:
            # What graphs hold from the last step may now be overwritten.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        torch.manual_seed(step_seed(seed, step))  # dropout draws from the global generator
        rng = torch.Generator(device).manual_seed(step_seed(seed, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(fit, step)
        x, labels = batches.at(step, rng)
        with autocast:
            loss = objective.loss(network, x, labels, step, rng).mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if fit.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), fit.clip)
        scaler.step(optimizer)
        scaler.update()
        objective.after_step(network, step)
        move_towards(average, network, ema_decay(fit, step))
        losses.append(loss.detach())
        done = step + 1
        if done % 20 == 0 or done == fit.steps:
            report(Progress(done, fit.steps, float(losses[-1])))
        if done in kept.steps:
            _check(_mean(losses), best, step, state_path)
            kept.keep(average, done, time.perf_counter() - began)
        if done % fit.checkpoint_every == 0 or done == fit.steps:
            mean = _mean(losses)
            _check(mean, best, step, state_path)
            best, losses = min(best, mean), []
            saved = _snapshot(done, best, network, average, optimizer, scaler, objective)
            states.save(state_path, {**saved, "seconds": time.perf_counter() - began})
    return average.eval()


def _mean(losses: Sequence[Tensor]) -> float:
    return float(torch.stack(list(losses)).double().mean())


def _check(mean: float, best: float, step: int, state_path: Path) -> None:
    exploded = best > 0 and mean > EXPLOSION * best  # of a loss that may be negative there is no telling
    if math.isfinite(mean) and not exploded:
        return
    kept = f"the last good state is {state_path}" if state_path.exists() else "no state had been saved yet"
    raise WorkError(
        f"training diverged before step {step + 1}: mean loss {mean:.4g} (best {best:.4g}); {kept}; "
        "try a lower learning_rate or clip=1"
    )


def _snapshot(
    step: int,
    best: float,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    objective: Objective,
) -> dict[str, Any]:
    return {
        "step": step,
        "best": best,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "scaler": scaler.state_dict(),
        "objective": {name: module.state_dict() for name, module in objective.modules.items()},
    }


def _restore(
    saved: Mapping[str, Any],
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    objective: Objective,
) -> tuple[int, float]:
    network.load_state_dict(saved["network"])
    average.load_state_dict(saved["average"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["optimizer"]})
    if saved.get("scaler"):
        scaler.load_state_dict(saved["scaler"])
    for name, module in objective.modules.items():
        module.load_state_dict(saved["objective"][name])
    for part in (optimizer, *objective.modules.values()):
        if isinstance(part, torch.optim.Optimizer):
            _lay_out_as_parameters(part)
    return saved["step"], saved["best"]


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Moments in the memory order of their parameters, as fused Adam reads them; a state file has its own order."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
