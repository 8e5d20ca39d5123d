"""Re-noising levels that a search has found, kept beside the checkpoint that they were found for."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmbench.checkpoints import Checkpoint
from cmbench.errors import UsageError, WorkError
from cmbench.paths import atomic
from cmbench.sharing import claim

FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """The levels of one number of evaluations.

    Attributes:
        taus: noise levels, falling.
        by: how they were searched: metric, protocol, samples, candidates; nothing of it depends on the seed.
        seed: of the held-out samples.
        search: every evaluation of this number: ``{"taus", "value", "std"}``.
        hill: lowest level of an evaluation that is worse than ones above and below it: the figure has several valleys;
            None where none is shown.
        confirmation: the figures of these levels and of the recipe's own on other samples, compared.
    """

    taus: tuple[float, ...]
    by: Mapping[str, Any]
    seed: int
    search: tuple[Mapping[str, Any], ...]
    hill: float | None
    confirmation: Mapping[str, Any]


def path(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's levels lie: ``<checkpoint>.taus.json``."""
    return checkpoint.path.with_suffix(".taus.json")


def read(checkpoint: Checkpoint) -> dict[int, Tuned]:
    """The levels of a checkpoint by NFE; empty where none were searched.

    Raises:
        UsageError: they were found for a network that this file no longer holds.
        WorkError: the file is damaged.
    """
    place = path(checkpoint)
    if not place.exists():
        return {}
    try:
        stored = json.loads(place.read_text())
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']}, this version reads {FORMAT}")
        found = {int(nfe): _parse(entry, int(nfe)) for nfe, entry in stored["tuned"].items()}
        owner = stored["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{place} is damaged: {error}; delete it and tune again") from error
    if owner != checkpoint.sha256:
        raise UsageError(
            f"{place} was found for another network than {checkpoint.path.name} now holds: tune again"
        )
    return found


def _parse(entry: Mapping[str, Any], nfe: int) -> Tuned:
    found = Tuned(**{**entry, "taus": tuple(map(float, entry["taus"])), "search": tuple(entry["search"])})
    if len(found.taus) != nfe - 1:
        raise ValueError(f"{len(found.taus)} levels for {nfe} evaluations")
    return found


def write(checkpoint: Checkpoint, nfe: int, found: Tuned) -> Path:
    """Store the levels of one NFE in the place of earlier ones; this network's of other NFE stay."""
    place = path(checkpoint)
    with claim(place.with_suffix(".lock"), wait=True):
        try:
            known = read(checkpoint)
        except UsageError:  # of the network that was here before
            known = {}
        known[nfe] = found
        data = {
            "format": FORMAT,
            "method": checkpoint.header.method,
            "key": checkpoint.header.key,
            "sha256": checkpoint.sha256,
            "tuned": {str(number): asdict(known[number]) for number in sorted(known)},
        }
        with atomic(place) as temporary:
            temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return place
