"""CD and CT: consistency models as methods (Song et al., 2023, arXiv 2303.01469)."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cmbench.consistency.levels import Renoising, consistency_sampler, refusal
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, DISTILLATION, Method, Model, Parent, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from torch import nn

    from cmbench.consistency.function import ConsistencyModel
    from cmbench.sampling.generate import Sampler

DistanceName = Literal["l1", "l2", "lpips", "pseudo-huber", "features"]
WeightingName = Literal["uniform", "karras", "karras-sqrt"]


@dataclass(frozen=True)
class CDRecipe:
    """Consistency distillation.

    Attributes:
        fit: optimisation.
        points: N, the grid points of the Karras grid.
        solver: the teacher's ODE step.
        metric: distance d of the loss (l2 is squared; ``features`` is the formula of LPIPS on our own classifier of
            the data set).
        weighting: lambda of the loss: the paper's ``uniform``, or ``karras``, which keeps low levels accurate, and its
            root ``karras-sqrt``, which does so for distances that are not squared.
        target_ema: mu of the target network; 0 is the stop-gradient of the current parameters.
        taus: re-noising levels by NFE ("2" -> one level); another NFE takes evenly spaced points of the
            training grid.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    points: int = 18
    solver: Literal["euler", "heun"] = "heun"
    metric: DistanceName = "l2"
    weighting: WeightingName = "uniform"
    target_ema: float = 0.0
    taus: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.points < 2 or not 0 <= self.target_ema < 1:
            raise UsageError(
                f"cd: need points >= 2, not {self.points}, and 0 <= target_ema < 1, not {self.target_ema}"
            )


@dataclass(frozen=True)
class CTRecipe:
    """Consistency training.

    Attributes:
        fit: optimisation.
        schedule: ``adaptive``: N(k) from s0 and s1, mu(k) from mu0 (appendix C); ``fixed``: N = s1 + 1, mu = mu0.
        s0, s1: ends of the discretisation schedule.
        mu0: target decay at the start.
        decay: ``paper``: exp(s0 ln(mu0) / N(k)); ``released``: the code divides by N(k) - 1 instead.
        metric: distance d of the loss, as for CD.
        weighting: lambda of the loss, as for CD.
        taus: re-noising levels by NFE ("2" -> one level); another NFE takes evenly spaced points of the grid.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    s0: int = 2
    s1: int = 150
    mu0: float = 0.9
    decay: Literal["paper", "released"] = "paper"
    metric: DistanceName = "l2"
    weighting: WeightingName = "uniform"
    taus: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.s0 <= self.s1 or not 0 <= self.mu0 < 1:
            raise UsageError(
                f"ct: need 2 <= s0 <= s1, not {self.s0} and {self.s1}, and 0 <= mu0 < 1, not {self.mu0}"
            )


def _points(recipe: CDRecipe | CTRecipe) -> int:
    return recipe.points if isinstance(recipe, CDRecipe) else recipe.s1 + 1


def _refuses(nfe: int, recipe: CDRecipe | CTRecipe) -> str | None:
    return refusal(recipe.taus, nfe, _points(recipe))


def consistency(model: Model, recipe: CDRecipe | CTRecipe) -> "ConsistencyModel":
    """The consistency function, at home on the training grid."""
    from cmbench.consistency.function import ConsistencyFunction, ConsistencyModel

    return ConsistencyModel(ConsistencyFunction(model.network, model.noise), model.noise, _points(recipe))


def sampler(model: Model, recipe: CDRecipe | CTRecipe, nfe: int) -> "Sampler":
    """Multistep consistency sampling (Algorithm 1) with ``nfe`` evaluations."""
    return consistency_sampler(consistency(model, recipe), recipe.taus, nfe)


def train_cd(job: TrainJob) -> "nn.Module":
    """Distil the teacher (Algorithm 2); the student starts from the teacher's weights."""
    from cmbench.consistency.distance import distance
    from cmbench.consistency.training import WEIGHTINGS, ConsistencyObjective
    from cmbench.diffusion.preconditioning import Denoiser
    from cmbench.diffusion.solvers import STEPS

    recipe: CDRecipe = job.recipe
    student = job.student()
    assert job.teacher is not None  # student() has checked it
    target = copy.deepcopy(student).requires_grad_(False).to(job.device) if recipe.target_ema else None
    objective = ConsistencyObjective(
        job.noise,
        distance(recipe.metric, job.device, job.images.name, job.download),
        points=lambda _: recipe.points,
        target_ema=lambda _: recipe.target_ema,
        target=target,
        teacher=Denoiser(job.teacher, job.noise.sigma_data),
        step=STEPS[recipe.solver],
        weighting=WEIGHTINGS[recipe.weighting],
    )
    return job.fit(student, objective, recipe.fit)


def train_ct(job: TrainJob) -> "nn.Module":
    """Train in isolation from random weights (Algorithm 3)."""
    from cmbench.consistency.distance import distance
    from cmbench.consistency.training import (
        WEIGHTINGS,
        ConsistencyObjective,
        adaptive_decay,
        adaptive_points,
    )

    recipe: CTRecipe = job.recipe
    network = job.new_network()
    target = copy.deepcopy(network).requires_grad_(False).to(job.device) if recipe.mu0 else None
    points: Callable[[int], int] = lambda _: recipe.s1 + 1  # noqa: E731
    decay: Callable[[int], float] = lambda _: recipe.mu0  # noqa: E731
    if recipe.schedule == "adaptive":
        points = adaptive = adaptive_points(recipe.s0, recipe.s1, recipe.fit.steps)
        counted = points if recipe.decay == "paper" else lambda k: adaptive(k) - 1
        decay = adaptive_decay(recipe.mu0, recipe.s0, counted) if recipe.mu0 else decay
    objective = ConsistencyObjective(
        job.noise,
        distance(recipe.metric, job.device, job.images.name, job.download),
        points,
        decay,
        target,
        weighting=WEIGHTINGS[recipe.weighting],
    )
    return job.fit(network, objective, recipe.fit)


def _notes(recipe: CDRecipe | CTRecipe) -> tuple[str, ...]:
    if recipe.metric == "lpips":
        return ("trained with LPIPS, whose ImageNet features favour it in Inception FID",)
    if recipe.metric == "features":
        return (
            "trained with the formula of LPIPS on our classifier of the data set, whose features favour it where the "
            "same classifier judges",
        )
    return ()


CD = Method(
    name="cd",
    label="CD",
    group=DISTILLATION,
    reference="Song et al., 2023",
    summary="consistency distillation: a student that maps any point of the teacher's ODE trajectory to its start",
    recipe=CDRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train_cd,
    parent=lambda _variant, _recipe: Parent("edm"),
    refuses=_refuses,
    notes=_notes,
    paper="arXiv:2303.01469",
    differs="nothing in the paper presets; the digits recipe weights noise levels as EDM does",
    deterministic=False,
    renoising=Renoising(points=_points),
)

CT = Method(
    name="ct",
    label="CT",
    group=DIRECT,
    reference="Song et al., 2023",
    summary="consistency training: a consistency model learnt from data alone",
    recipe=CTRecipe,
    sampler=sampler,
    consistency=consistency,
    train=train_ct,
    refuses=_refuses,
    notes=_notes,
    paper="arXiv:2303.01469",
    differs="nothing in the paper presets; the small recipes end on a coarser grid",
    deterministic=False,
    renoising=Renoising(points=_points),
)
