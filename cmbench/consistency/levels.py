"""The re-noising levels of multistep sampling, as recipes name them by NFE. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmbench.consistency.function import ConsistencyModel
    from cmbench.sampling.generate import Sampler

Taus = Mapping[str, tuple[float, ...]]
"""Levels by NFE: ``{"2": (0.821,)}``."""


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


def consistency_sampler(model: "ConsistencyModel", taus: Taus, nfe: int) -> "Sampler":
    """Multistep sampling with ``nfe`` evaluations at the levels that ``taus`` names, or else at evenly spaced ones.

    Raises UsageError where the named levels do not fall within the range.
    """
    from cmbench.consistency.function import check_taus, default_taus, multistep

    chosen = taus.get(str(nfe))
    if chosen is None:
        chosen = default_taus(nfe, model.points or nfe + 1, model.levels)
    check_taus(chosen, model.levels)
    return lambda noise, labels, rng: multistep(model, noise, labels, rng, chosen)
