"""The search for re-noising levels: greedy, each by ternary search (Song et al., 2023, section 3). Numbers only.

Levels are searched by their place in a finite list, so that the bracket has exact ends, each of which can be the
answer, no level is evaluated twice, and the search ends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cmbench.errors import UsageError

Figure = Callable[[int], float]
"""A place in the list -> the figure there, lower being better."""

Search = Callable[[Figure, int, int], "Found"]
"""``(figure, first place, last place)``, both included -> what was found."""


@dataclass(frozen=True)
class Found:
    """The best of the places that were evaluated, and all of them in the order of their evaluation."""

    best: int
    values: Mapping[int, float]


class _Once:
    """A figure that is computed once a place; the best so far, the lowest place of equals."""

    def __init__(self, f: Figure) -> None:
        self._f = f
        self.values: dict[int, float] = {}

    def __call__(self, place: int) -> float:
        if place not in self.values:
            self.values[place] = self._f(place)
        return self.values[place]

    def found(self) -> Found:
        return Found(min(self.values, key=lambda place: (self.values[place], place)), self.values)


def ternary_search(f: Figure, low: int, high: int) -> Found:
    """The minimum of a unimodal ``f`` over ``low``..``high``, both included, in about ``2 log_1.5`` of their number.

    Of two inner places the worse one cannot be the minimum, nor what lies beyond it: both go, so that the bracket
    shrinks to a single place, which may be either end. The answer is the best place that was evaluated: where ``f`` is
    noisy or has several valleys it need not be the minimum, but nothing better was seen.

    Raises UsageError for an empty bracket.
    """
    _check(low, high)
    once = _Once(f)
    while low < high:
        third = (high - low) // 3
        left, right = low + third, high - third
        if once(left) <= once(right):
            high = right - 1
        else:
            low = left + 1
    once(low)
    return once.found()


def scan(count: int) -> Search:
    """The best of ``count`` evenly spaced places, both ends among them; of all places where there are no more.

    Raises UsageError for fewer than two.
    """
    if count < 2:
        raise UsageError(f"a scan has at least two places, not {count}")

    def search(f: Figure, low: int, high: int) -> Found:
        _check(low, high)
        once = _Once(f)
        for step in range(count):
            once(low + round(step * (high - low) / (count - 1)))
        return once.found()

    return search


def _check(low: int, high: int) -> None:
    if low > high:
        raise UsageError("no level is left to search")


def greedy(
    f: Callable[[tuple[float, ...]], float],
    levels: Sequence[float],
    count: int,
    search: Search = ternary_search,
) -> Iterator[tuple[float, ...]]:
    """Find ``count`` falling levels one after another; yields all levels so far each time one is found.

    The next level is searched below the last one, on the figure of as many evaluations as there are levels by then plus
    one; what is found stays. So the answer for few evaluations is the beginning of that for more.

    Args:
        f: levels -> the figure of sampling with them, lower being better.
        levels: the candidates, strictly falling.
        count: how many to find.
        search: of one level.

    Raises:
        UsageError: levels that do not fall; the last one found has no candidate below it.
    """
    if any(a <= b for a, b in pairwise(levels)):
        raise UsageError("the levels to search must fall strictly")
    chosen: tuple[float, ...] = ()
    first = 0
    for _ in range(count):
        if first >= len(levels):
            below = f" below {chosen[-1]:g}" if chosen else ""
            raise UsageError(f"no level is left to search{below}: a finer grid has more")
        before = chosen
        place = search(lambda at, before=before: f((*before, levels[at])), first, len(levels) - 1).best  # type: ignore[misc]
        chosen, first = (*before, levels[place]), place + 1
        yield chosen


def hill(values: Sequence[float], error: Callable[[int, int], float], z: float = 2.0) -> int | None:
    """The place of a hill that two valleys lie beside, which no unimodal function has; None where none is shown.

    ``values`` stand in the order of their levels. A hill counts where it is higher than the lowest value on either side
    by more than ``z`` times ``error(place, place)``, the standard error of the difference.
    """
    for top in range(1, len(values) - 1):
        sides = (range(top), range(top + 1, len(values)))
        feet = [min(side, key=lambda place: values[place]) for side in sides]
        if all(
            values[top] > values[foot] and values[top] - values[foot] > z * error(top, foot) for foot in feet
        ):
            return top
    return None
