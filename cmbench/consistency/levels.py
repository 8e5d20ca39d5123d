"""The re-noising levels of multistep sampling, as recipes name them by NFE. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cmbench.diffusion.noise import NoiseRange

if TYPE_CHECKING:
    from cmbench.consistency.function import ConsistencyModel
    from cmbench.sampling.generate import Sampler

Taus = Mapping[str, tuple[float, ...]]
"""Levels by NFE: ``{"2": (0.821,)}``."""


@dataclass(frozen=True)
class Renoising:
    """Where a recipe keeps its re-noising levels, so that they can be searched (``cmbench tune``).

    They move what is sampled and nothing of a training: no checkpoint's identity has them from the user's settings.

    Attributes:
        setting: the recipe's field, :data:`Taus` in form.
        points: ``recipe`` -> size of the Karras grid that the network was trained on, None where it knows every level.
        level: ``(value of the setting, noise range)`` -> the noise level sigma.
        value: its inverse.
    """

    setting: str = "taus"
    points: Callable[[Any], int | None] = field(default=lambda _recipe: None)
    level: Callable[[float, NoiseRange], float] = field(default=lambda value, _noise: value)
    value: Callable[[float, NoiseRange], float] = field(default=lambda sigma, _noise: sigma)

    def taus(self, recipe: Any, noise: NoiseRange) -> Taus:
        """The noise levels that a recipe names."""
        named: Taus = getattr(recipe, self.setting)
        return {nfe: tuple(self.level(value, noise) for value in own) for nfe, own in named.items()}

    def used(self, recipe: Any, nfe: int, noise: NoiseRange) -> tuple[float, ...]:
        """The noise levels that a recipe samples at with ``nfe`` evaluations, named or not."""
        return taus_for(self.taus(recipe, noise), nfe, noise, self.points(recipe))

    def settings(self, taus: tuple[float, ...], noise: NoiseRange) -> dict[str, Any]:
        """Recipe settings that name these noise levels: ``{"taus": {"2": [0.6]}}``."""
        return {self.setting: {str(len(taus) + 1): [self.value(tau, noise) for tau in taus]}}


def refusal(taus: Taus, nfe: int, points: int | None = None) -> str | None:
    """Why ``nfe`` evaluations cannot be done, or None.

    ``points`` is the size of the training grid that unnamed levels are taken from; None where every level is trained.
    """
    named = taus.get(str(nfe))
    if named is not None and len(named) != nfe - 1:
        return f"{nfe} evaluations take {nfe - 1} taus, the recipe has {len(named)}"
    if named is None and points is not None and nfe > points - 1:
        return f"the training grid of {points} points has levels for {points - 1} evaluations; name taus for more"
    return None


def taus_for(taus: Taus, nfe: int, levels: NoiseRange, points: int | None = None) -> tuple[float, ...]:
    """The levels that ``taus`` names for ``nfe`` evaluations, or else evenly spaced ones; ``points`` as in refusal."""
    from cmbench.consistency.function import default_taus

    chosen = taus.get(str(nfe))
    return default_taus(nfe, points or nfe + 1, levels) if chosen is None else chosen


def consistency_sampler(model: "ConsistencyModel", taus: Taus, nfe: int) -> "Sampler":
    """Multistep sampling with ``nfe`` evaluations at the levels that ``taus`` names, or else at evenly spaced ones.

    Raises UsageError where the named levels do not fall within the range.
    """
    from cmbench.consistency.function import check_taus, multistep

    chosen = taus_for(taus, nfe, model.levels, model.points)
    check_taus(chosen, model.levels)
    return lambda noise, labels, rng: multistep(model, noise, labels, rng, chosen)
