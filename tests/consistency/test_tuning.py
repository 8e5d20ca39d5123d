"""The search of levels on functions whose minimum is known."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmbench.consistency.function import ConsistencyModel, multistep
from cmbench.consistency.tuning import greedy, hill, scan, ternary_search
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError

NOISE = NoiseRange()


class Counted:
    def __init__(self, f: Callable[[int], float]) -> None:
        self.f = f
        self.places: list[int] = []

    def __call__(self, place: int) -> float:
        self.places.append(place)
        return self.f(place)


@given(st.integers(-50, 50), st.integers(0, 300), st.data())
def test_the_minimum_of_a_unimodal_function_is_found_wherever_it_lies(
    low: int, width: int, data: st.DataObject
):
    bottom = data.draw(st.integers(low, low + width))
    left, right = data.draw(st.floats(0.1, 10)), data.draw(st.floats(0.1, 10))
    f = Counted(lambda x: left * (bottom - x) if x < bottom else right * (x - bottom))
    found = ternary_search(f, low, low + width)
    assert found.best == bottom
    assert len(set(f.places)) == len(f.places), "a place was evaluated twice"
    assert all(low <= place <= low + width for place in f.places)
    assert list(found.values) == f.places
    assert len(f.places) <= 2 * math.log(width + 1, 1.5) + 2


@pytest.mark.parametrize("width", range(12))
def test_either_end_of_the_bracket_can_be_the_answer_and_has_then_been_evaluated(width: int):
    rising, falling = Counted(float), Counted(lambda x: -float(x))
    assert ternary_search(rising, 0, width).best == 0 in rising.places
    assert ternary_search(falling, 0, width).best == width and width in falling.places


def test_a_search_of_many_places_evaluates_few():
    f = Counted(lambda x: (x - 700) ** 2)
    assert ternary_search(f, 0, 999).best == 700
    assert 20 <= len(f.places) <= 34


def test_where_there_are_two_valleys_nothing_better_than_the_answer_was_seen():
    values = [5.0, 1.0, 6.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 3.0]
    found = ternary_search(values.__getitem__, 0, 9)
    assert found.values[found.best] == min(found.values.values())
    assert scan(10)(values.__getitem__, 0, 9).best == 1


@pytest.mark.parametrize(
    ("count", "places"), [(2, [0, 9]), (4, [0, 3, 6, 9]), (10, [*range(10)]), (40, [*range(10)])]
)
def test_a_scan_is_even_and_includes_both_ends(count: int, places: list[int]):
    f = Counted(lambda x: abs(x - 3))
    found = scan(count)(f, 0, 9)
    assert f.places == places
    assert found.best == min(places, key=lambda x: abs(x - 3))


def test_an_empty_bracket_and_a_scan_of_one_are_refused():
    for search in (ternary_search, scan(3)):
        with pytest.raises(UsageError, match="no level is left"):
            search(float, 1, 0)
    with pytest.raises(UsageError, match="at least two"):
        scan(1)


# --- several levels --------------------------------------------------------------------------------


def test_levels_are_found_one_after_another_each_below_the_last_and_the_first_ones_stay():
    best = (6.0, 5.0, 1.0)
    asked: list[tuple[float, ...]] = []

    def f(taus: tuple[float, ...]) -> float:
        asked.append(taus)
        return abs(taus[-1] - best[len(taus) - 1])

    levels = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert list(greedy(f, levels, 3)) == [(6.0,), (6.0, 5.0), (6.0, 5.0, 1.0)]
    assert all(taus[:-1] == best[: len(taus) - 1] for taus in asked)
    assert all(a > b for taus in asked for a, b in pairwise(taus))
    assert len(asked) == len(set(asked))


def test_what_few_evaluations_take_does_not_depend_on_how_many_are_asked_for():
    f = lambda taus: sum((tau - 3 / (k + 1)) ** 2 for k, tau in enumerate(taus))  # noqa: E731
    levels = [4 - k / 10 for k in range(40)]
    assert list(greedy(f, levels, 2)) == list(greedy(f, levels, 3))[:2]


def test_no_level_is_left_below_the_lowest():
    found = greedy(lambda taus: taus[-1], [3.0, 2.0, 1.0], 2)
    assert next(found) == (1.0,)
    with pytest.raises(UsageError, match="no level is left to search below 1: a finer grid has more"):
        next(found)
    with pytest.raises(UsageError, match="fall strictly"):
        next(greedy(lambda taus: 0.0, [1.0, 1.0], 1))


def test_a_hill_between_two_valleys_is_seen_where_it_is_more_than_noise():
    error = lambda _a, _b: 0.15  # noqa: E731
    assert hill([1.0, 3.0, 0.5], error) == 1
    assert hill([1.0, 1.2, 0.5], error) is None
    assert hill([3.0, 2.0, 1.0, 2.0], error) is None
    assert hill([1.0, 1.0, 1.0], lambda _a, _b: 0.0) is None
    assert hill([1.0], error) is hill([], error) is None


def test_the_best_level_of_a_gaussian_toy_is_the_one_that_calculus_gives():
    """The first evaluation has a spread of a·s, later ones overshoot the exact map by k.

    Re-noised to tau the output's variance is k² s² (a² s² + tau²) / (s² + tau²), which is s², and the Fréchet distance
    zero, at tau² = s² (1 - k² a²) / (k² - 1).
    """
    s, a, k = 0.2, 0.5, 1.1
    best = s * math.sqrt((1 - k**2 * a**2) / (k**2 - 1))

    def f(x: torch.Tensor, sigma: torch.Tensor, _labels: torch.Tensor | None) -> torch.Tensor:
        first = sigma[0] == NOISE.sigma_max
        scale = a * s / sigma[0] if first else k * s / torch.sqrt(s**2 + sigma[0] ** 2)
        return scale * x

    class Rng:  # the same noise for all levels
        def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(40_000, *shape, generator=torch.Generator().manual_seed(2))

    noise = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(1))

    def distance(taus: tuple[float, ...]) -> float:
        made = multistep(ConsistencyModel(f, NOISE), noise, None, Rng(), taus)
        return float(made.mean() ** 2 + (made.std() - s) ** 2)

    levels = karras_sigmas(NOISE, 161)[1:-1].tolist()
    ((found,),) = greedy(distance, levels, 1)
    step = 80 ** (1 / 7) / 160
    assert found ** (1 / 7) == pytest.approx(best ** (1 / 7), abs=1.5 * step)
    assert distance((found,)) < 1e-5 < distance((5 * best,))
