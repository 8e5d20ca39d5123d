"""What a method is: the public interface that every baseline and every plug-in is written on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench import registry
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import WorkError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cmbench.data import ImageData
    from cmbench.sampling.generate import Sampler
    from cmbench.training.fit import Fit
    from cmbench.training.loop import Objective, Report

SAMPLERS = "Diffusion + Samplers"
DISTILLATION = "Diffusion + Distillation"
DIRECT = "Direct Generation"


@dataclass(frozen=True)
class Model:
    """A network ready to sample, with what its checkpoint says of it."""

    network: "nn.Module"
    noise: NoiseRange


@dataclass(frozen=True)
class TrainJob:
    """All that a training needs. ``teacher`` is the parent's network, frozen, where the method names a parent."""

    recipe: Any
    images: "ImageData"
    network: Mapping[str, Any]
    classes: int
    noise: NoiseRange
    seed: int
    device: "torch.device"
    state: Path
    report: "Report"
    variant: str = ""
    teacher: "nn.Module | None" = None

    def new_network(self) -> "nn.Module":
        """A freshly initialised network of the recipe, the same for the same seed."""
        import torch

        from cmbench.networks import build

        torch.manual_seed(self.seed)
        return build(self.network, self.images.shape, self.classes)

    def student(self) -> "nn.Module":
        """A trainable network with the teacher's weights (its dropout is this recipe's, not the teacher's)."""
        if self.teacher is None:
            raise WorkError("this training needs a teacher")
        network = self.new_network()
        network.load_state_dict(self.teacher.state_dict())
        return network

    def fit(self, network: "nn.Module", objective: "Objective", settings: "Fit") -> "nn.Module":
        """Run the training loop; returns the evaluated network."""
        from cmbench.training.loop import train

        return train(
            network,
            objective,
            self.images,
            settings,
            seed=self.seed,
            device=self.device,
            state_path=self.state,
            report=self.report,
        )


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a training starts from, or that a sampler runs on."""

    method: str
    variant: str = ""


def any_nfe(_nfe: int, _recipe: Any) -> str | None:
    """Every count of evaluations from 1 up is possible."""
    return None


def one_variant(_nfe: int, _recipe: Any) -> str:
    """One checkpoint serves every NFE."""
    return ""


@dataclass(frozen=True)
class Method:
    """A few-step generator, as data and plain functions.

    Attributes:
        name: what the command line calls it.
        label: what the paper's tables print.
        group: one of the paper's groups: SAMPLERS, DISTILLATION, DIRECT.
        reference: authors and year, as the paper prints them.
        summary: one line for ``cmbench list``.
        recipe: frozen dataclass of its settings. A field ``dropout`` is the network's while it trains; a field
            ``seed`` that is not None fixes the training seed for all runs (networks that many methods share).
        sampler: ``(model, recipe, nfe) -> Sampler``.
        train: trains and returns the evaluated network; None for a method that samples with its parent's network.
        parent: ``(variant, recipe) -> Parent`` whose checkpoint it needs, or None.
        variant: ``(nfe, recipe)`` -> which of its checkpoints serves this NFE.
        refuses: ``(nfe, recipe)`` -> why it cannot do this NFE, or None.
        notes: ``recipe`` -> remarks that every record carries.
        deterministic: whether the image is a function of the noise alone.
        denoiser: whether its network, preconditioned as EDM's (cmbench.diffusion.preconditioning), is a denoiser,
            so that the probability-flow ODE can be followed to its end.
        differs: where this implementation differs from the paper.
        revision: raised when a change of the code changes results; part of every identity.
    """

    name: str
    label: str
    group: str
    reference: str
    summary: str
    recipe: type
    sampler: "Callable[[Model, Any, int], Sampler]"
    train: "Callable[[TrainJob], nn.Module] | None" = None
    parent: Callable[[str, Any], Parent | None] = field(default=lambda _variant, _recipe: None)
    variant: Callable[[int, Any], str] = one_variant
    refuses: Callable[[int, Any], str | None] = any_nfe
    notes: Callable[[Any], tuple[str, ...]] = field(default=lambda _recipe: ())
    deterministic: bool = True
    denoiser: bool = False
    differs: str = ""
    revision: int = 1

    @property
    def package(self) -> str:
        """The top-level package that the method, and therefore its recipes, live in."""
        return self.recipe.__module__.partition(".")[0]


def get(name: str) -> Method:
    """The registered method of this name. Raises UsageError, with a suggestion, where there is none."""
    method = registry.load("method", name)
    if not isinstance(method, Method):
        raise WorkError(f"method '{name}' is registered as {type(method).__name__}, not as a cmbench Method")
    return method
