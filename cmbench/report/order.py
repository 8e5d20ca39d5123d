"""The order of rows within a group: the paper's, extended to methods and NFEs that it does not have."""

from collections.abc import Callable, Sequence
from math import inf

from cmbench.report.published import PublishedRow

Key = tuple[float, str, float, str, float, float]


def ranking(paper: Sequence[PublishedRow]) -> Callable[[str, str, float], Key]:
    """A sort key ``(group, method, nfe) -> key`` that reproduces the paper's order and extends it.

    Methods keep the paper's order, each sorted by NFE in the direction in which the paper lists it (DDIM 50,
    20, 10; CT 1, 2). Methods that the paper interleaves (PD 1, CD 1, PD 2, CD 2) are sorted together, by NFE
    first. Methods that the paper lacks follow, by name and NFE; so do groups that it lacks, by name.
    """
    groups: dict[str, list[PublishedRow]] = {}
    for row in paper:
        groups.setdefault(row.group, []).append(row)
    order = {group: float(place) for place, group in enumerate(groups)}
    methods = {group: _placing(rows) for group, rows in groups.items()}

    def key(group: str, method: str, nfe: float) -> Key:
        place = methods.get(group, {}).get(method)
        if place is None:
            return order.get(group, inf), group, inf, method, nfe, 0.0
        start, direction, first = place
        return order[group], group, start, "", direction * nfe, first

    return key


def _placing(rows: Sequence[PublishedRow]) -> dict[str, tuple[float, int, float]]:
    """Method -> (start of its run of rows, +1 or -1 for ascending or descending NFE, its own first row)."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.method, []).append(place)
    placing: dict[str, tuple[float, int, float]] = {}
    start, end = -1, -1
    for method, own in places.items():  # in order of the first row
        if own[0] > end:
            start = own[0]
        end = max(end, own[-1])
        direction = -1 if rows[own[0]].nfe > rows[own[-1]].nfe else 1
        placing[method] = (start, direction, own[0])
    return placing
