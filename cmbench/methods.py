"""What a method is: the public interface that every baseline and every plug-in is written on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench import registry
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.guidance import NONE, Guidance

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cmbench.consistency.function import ConsistencyModel
    from cmbench.consistency.levels import Renoising
    from cmbench.data import ImageData
    from cmbench.diffusion.preconditioning import Denoise
    from cmbench.pairs import Pairs, PairSet
    from cmbench.sampling.generate import Sampler
    from cmbench.training.batches import TrainingImages
    from cmbench.training.fit import Fit
    from cmbench.training.loop import Milestones, Objective, Report

SAMPLERS = "Diffusion + Samplers"
DISTILLATION = "Diffusion + Distillation"
DIRECT = "Direct Generation"


@dataclass(frozen=True)
class Model:
    """A network ready to sample, with what its checkpoint says of it."""

    network: "nn.Module"
    noise: NoiseRange
    guidance: Guidance = NONE
    _guided: list[Guidance] = field(default_factory=list, repr=False, compare=False)  # where it was applied

    def denoiser(self) -> "Denoise":
        """The denoiser D(x, sigma) of an EDM network, guided where the user asks for it.

        Every sampler of such a network calls it, while the sampler is made.
        """
        from cmbench.diffusion.guidance import guided
        from cmbench.diffusion.preconditioning import Denoiser

        self._guided.append(self.guidance)
        return guided(Denoiser(self.network, self.noise.sigma_data), self.guidance)


@dataclass(frozen=True)
class TrainJob:
    """All that a training needs.

    ``teacher`` is the parent's network, frozen, where the method names a parent; ``pairs`` are the synthetic pairs
    that the method asks for; ``milestones``, steps after which the evaluated network is wanted too;
    ``download``, whether weights that the training needs may be fetched.
    """

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
    pairs: "PairSet | None" = None
    milestones: "Milestones | None" = None
    download: bool = True

    def new_network(self) -> "nn.Module":
        """A freshly initialised network of the recipe, the same for the same seed."""
        import torch

        from cmbench.networks import build

        torch.manual_seed(self.seed)
        return build(self.network, self.images.shape, self.classes)

    def student(self) -> "nn.Module":
        """A trainable network with the teacher's weights (its dropout is this recipe's, not the teacher's).

        Conditions that the teacher lacks start without effect. Raises WorkError where anything else differs.
        """
        if self.teacher is None:
            raise WorkError("this training needs a teacher")
        from cmbench.networks.layers import MORE_CONDITIONS

        network = self.new_network()
        try:
            missing, unexpected = network.load_state_dict(self.teacher.state_dict(), strict=False)
        except RuntimeError as error:
            raise WorkError(f"the teacher's weights do not fit the student: {error}") from error
        wrong = [*unexpected, *(name for name in missing if not name.startswith(f"{MORE_CONDITIONS}."))]
        if wrong:
            raise WorkError(f"the teacher's weights do not fit the student: {', '.join(wrong)}")
        return network

    def fit(self, network: "nn.Module", objective: "Objective", settings: "Fit") -> "nn.Module":
        """Run the training loop on the data set; returns the evaluated network."""
        return self._fit(network, objective, self.images, settings)

    def fit_pairs(self, network: "nn.Module", objective: "Objective", settings: "Fit") -> "nn.Module":
        """Run the training loop on the pairs: the objective receives x [B, 1 + M, C, H, W], the noise first."""
        if self.pairs is None:
            raise WorkError("this training needs pairs")
        if settings.flip:
            raise UsageError("flip=true: the mirror image of a pair is no pair of the teacher")
        return self._fit(network, objective, self.pairs, settings)

    def _fit(
        self, network: "nn.Module", objective: "Objective", data: "TrainingImages", settings: "Fit"
    ) -> "nn.Module":
        from cmbench.training.loop import compile_with, train

        compile_with(self.teacher, settings)
        return train(
            network,
            objective,
            data,
            settings,
            seed=self.seed,
            device=self.device,
            state_path=self.state,
            report=self.report,
            milestones=self.milestones,
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
        paper: where to read it: ``arXiv:2303.01469``.
        summary: one line for ``cmbench list``.
        recipe: frozen dataclass of its settings. A field ``dropout`` is the network's while it trains; a field
            ``seed`` that is not None fixes the training seed for all runs (networks that many methods share); a field
            ``label_dropout`` above 0 says that the network learns the null class, so that it can be guided.
        sampler: ``(model, recipe, nfe) -> Sampler``; see :meth:`Method.sample_with`.
        train: trains and returns the evaluated network; None for a method that samples with its parent's network.
        parent: ``(variant, recipe) -> Parent`` whose checkpoint it needs, or None.
        pairs: ``(variant, recipe) -> Pairs``, the synthetic data that it trains on, or None. Methods whose pairs are
            the same share one set.
        variant: ``(nfe, recipe)`` -> which of its checkpoints serves this NFE.
        refuses: ``(nfe, recipe)`` -> why it cannot do this NFE, or None.
        nfes: the numbers of evaluations it is usually shown at; what ``cmbench run`` measures where none are named.
        network: ``recipe`` -> options that its own network has beyond the data set's, as ``{"conditions": 2}``.
        notes: ``recipe`` -> remarks that every record carries.
        deterministic: whether the image is a function of the noise alone.
        consistency: ``(model, recipe) ->`` its consistency function, or None where it has none. Zero-shot editing takes
            any method that has one.
        denoiser: whether its network, preconditioned as EDM's (cmbench.diffusion.preconditioning), is a denoiser,
            so that the probability-flow ODE can be followed to its end.
        renoising: where its recipe keeps the levels that multistep consistency sampling re-noises to; None for methods
            that sample in another way.
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
    pairs: "Callable[[str, Any], Pairs | None]" = field(default=lambda _variant, _recipe: None)
    variant: Callable[[int, Any], str] = one_variant
    refuses: Callable[[int, Any], str | None] = any_nfe
    nfes: tuple[int, ...] = (1, 2)
    network: Callable[[Any], Mapping[str, Any]] = field(default=lambda _recipe: {})
    notes: Callable[[Any], tuple[str, ...]] = field(default=lambda _recipe: ())
    deterministic: bool = True
    consistency: "Callable[[Model, Any], ConsistencyModel] | None" = None
    denoiser: bool = False
    renoising: "Renoising | None" = None
    differs: str = ""
    paper: str = ""
    revision: int = 1

    @property
    def year(self) -> int | None:
        """The year that the reference ends with, None where it names none."""
        last = self.reference[-4:]
        return int(last) if last.isdigit() else None

    def sample_with(self, model: Model, recipe: Any, nfe: int) -> "Sampler":
        """The sampler. Raises UsageError where guidance is asked for and it does not use ``model.denoiser()``."""
        made = self.sampler(model, recipe, nfe)
        if model.guidance.active and not model._guided:
            raise UsageError(
                f"guidance: {self.name} does not sample through the denoiser, which it applies to"
            )
        return made

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
