"""How near edited images come to the originals, to what was given of them, and to the data set."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cmbench.editing.originals import Originals
from cmbench.editing.records import METRICS, Cell, Editing
from cmbench.editing.tasks import Pixels, Problem, to_floats
from cmbench.errors import WorkError
from cmbench.metrics import perceptual

if TYPE_CHECKING:
    from cmbench.workshop import Workshop


@dataclass(frozen=True)
class Judge:
    """The figures of edited images.

    Attributes:
        workshop: of the data set.
        of: the originals.
        download: whether the backbone of LPIPS may be fetched.
        progress: of the reference features, (done, in all).
    """

    workshop: "Workshop"
    of: Originals
    download: bool
    progress: Callable[[int, int], None]

    @cached_property
    def distances(self) -> list[perceptual.Perceptual]:
        """Perceptual distances, those that cannot be had with the reason."""
        return perceptual.open_distances(self.workshop.images.name, self.workshop.device, self.download)

    @cached_property
    def frechet(self) -> "Callable[[Pixels], float] | str":
        """The Fréchet distance to the data set, on our classifier's features, or why there is none."""
        return frechet_distance(self.workshop, self.progress)

    @cached_property
    def missing(self) -> dict[str, str]:
        """Metric -> why it cannot be had."""
        missing = {one.key: one.reason or "missing" for one in self.distances if one.distance is None}
        if isinstance(self.frechet, str):
            missing["frechet"] = self.frechet
        return missing

    @cached_property
    def titles(self) -> dict[str, str]:
        """Metric -> its title for this data set."""
        own = {one.key: one.title for one in self.distances}
        return {**{name: title for name, (title, _) in METRICS.items()}, **own}

    def gained(self, cell: Cell, made: Editing) -> bool:
        """Whether a metric that the cell lacks for want of something can be had now."""
        lacking = [name for name in made.missing if name not in cell.metrics]
        return bool(lacking) and any(name not in self.missing for name in lacking)

    def metrics(self, problem: Problem, pixels: Pixels, *, truth: bool = False) -> dict[str, float]:
        """See :class:`cmbench.editing.records.Cell`; of the originals themselves only the Fréchet distance."""
        found = {} if truth else self._against_originals(problem, pixels)
        if not isinstance(self.frechet, str):
            found["frechet"] = self.frechet(pixels)
        return {name: round(value, 6) for name, value in found.items()}

    def _against_originals(self, problem: Problem, pixels: Pixels) -> dict[str, float]:
        found: dict[str, float] = {}
        mse = np.square(pixels.astype(np.float64) - self.of.pixels).mean()
        if mse > 0:
            found["psnr"] = float(10 * np.log10(255**2 / mse))
        for one in self.distances:
            if one.distance is not None:
                found[one.key] = float(one.between(pixels, self.of.pixels, self.workshop.device).mean())
        if problem.high is None:
            error = problem.given.error(problem.given.forward(problem.y), to_floats(pixels)) * 127.5
            found |= {"given_max": float(error.max()), "given_mean": float(error.mean())}
        return found


def frechet_distance(
    workshop: "Workshop", progress: Callable[[int, int], None]
) -> "Callable[[Pixels], float] | str":
    """The distance of uint8 images [N, C, H, W] to the data set on our classifier's features, or why there is none."""
    from cmbench.metrics import protocols
    from cmbench.metrics.engine import Engine
    from cmbench.metrics.protocols import metric

    name = perceptual.OWN.get(workshop.images.name)
    if name is None:
        return f"no classifier of cmbench knows {workshop.images.title}"
    base = next(one for one in map(protocols.get, protocols.names()) if one.extractors[0].name == name)
    spec = metric("frechet", name, "features", "FD")
    engine = Engine.open(replace(base, metrics=(spec,)), device=workshop.device)
    try:
        reference = engine.reference(workshop.images, progress)
    except WorkError as error:
        return str(error)

    def distance(pixels: Pixels) -> float:
        shard = engine.shard()
        engine.update(shard, pixels, 0)
        engine.flush(shard)
        value = engine.measure(engine.merge([shard]), reference).metrics["fid"].value
        assert value is not None  # both sides are there
        return value

    return distance
