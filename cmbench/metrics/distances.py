"""Exact nearest neighbours and exact counts of vectors in balls, from low-precision matrix products.

Both ask of N x M distances only which of them are smallest, or smaller than a radius. So every pair is
screened (see :mod:`cmbench.metrics.screening`), and only the few that the bounds leave open are computed: as
Σ (x - y)² in float64, pair by pair, never as |x|² + |y|² - 2xy, which cancels. The answers are those of
float64 on every device, whatever the arithmetic of the screening and the size of the blocks.
"""

from itertools import combinations

import numpy as np
import torch

from cmbench.errors import UsageError
from cmbench.metrics.moments import Array, Float64
from cmbench.metrics.screening import (
    TINY,
    Indices,
    Points,
    below,
    bounds,
    cross_blocks,
    in_threads,
    limits,
    screens,
)

CROWDED = 64  # candidates of a row beyond which a finer screening is cheaper than computing them


def squared_distances(a: Array, i: Indices, b: Array, j: Indices) -> Float64:
    """``|a[i] - b[j]|²`` [P] for P pairs of rows, in float64; the same bits for a pair and its reverse."""
    result = np.empty(len(i))
    step = max(1, 2**16 // max(1, a.shape[1]))  # rows that stay in the cache

    def fill(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            difference = np.subtract(a[i[part]], b[j[part]], dtype=np.float64)
            result[part] = np.einsum("ij,ij->i", difference, difference)

    in_threads(fill, len(i))
    return result


def _rank(groups: Indices) -> Indices:
    """The position of each entry within its group, for ``groups`` sorted."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.intp)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def neighbours(x: Points, y: Points, k: int) -> tuple[Float64, Indices]:
    """Squared distances [N, k], ascending, and row numbers [N, k] of the ``k`` nearest ``y`` of every ``x``.

    Where ``x is y``, a row is not its own neighbour, and each pair of blocks is screened once for both sides.
    Memory: the candidates, at most ``2 * CROWDED`` pairs per row, and one block.

    Raises UsageError where there are fewer than ``k`` to choose from.
    """
    same = x is y
    if not 1 <= k <= len(y) - same:
        raise UsageError(f"{k} nearest neighbours cannot be found among {len(y) - same} vectors")
    search = _Search(x, y, k)
    if same:
        # The diagonal first: every row then has k candidates, and few more follow.
        blocks = x.blocks()
        for rows, _, s in screens(x, x, zip(blocks, blocks, strict=True)):
            search.look(s.fill_diagonal_(torch.inf), rows, rows)
        for rows, columns, s in screens(x, x, combinations(blocks, 2)):
            search.look(s, rows, columns)
            search.look(s, columns, rows, turned=True)
    else:
        for rows, columns, s in cross_blocks(x, y):
            search.look(s, rows, columns)
    return search.finish()


class _Search:
    """The candidates for the ``k`` nearest ``y`` of every ``x``, kept while their lower bound allows it."""

    def __init__(self, x: Points, y: Points, k: int) -> None:
        self.x, self.y, self.k = x, y, k
        self.best = np.full((len(x), k), np.inf)  # upper bounds of the k smallest distances; -inf: given up
        self.found: list[tuple[Indices, Indices, Float64]] = []  # row, column, lower bound
        self.size = 0

    def look(self, s: torch.Tensor, rows: slice, columns: slice, *, turned: bool = False) -> None:
        """Take the candidates from a screened block [rows, columns] (turned: [columns, rows])."""
        bound = self.best[rows, -1]
        if np.isinf(bound).any() and columns.stop - columns.start > self.k:
            kth = s.topk(self.k, dim=0 if turned else 1, largest=False).values.amax(dim=0 if turned else 1)
            slack = self.x.eta * (self.x.norms[rows] + self.y.norms[columns].max())
            error = self.x.errors[rows] + self.y.errors[columns].max()
            high = (np.sqrt(np.maximum(kth.cpu().numpy(), 0) + slack) + error) ** 2
            bound = np.minimum(bound, high)
        limit = limits(bound, self.x, rows, self.y, columns)
        if turned:
            j, i, values = below(s, limit[None, :])
        else:
            i, j, values = below(s, limit[:, None])
        i, j = i + rows.start, j + columns.start
        low, high = bounds(values, i, self.x, j, self.y)
        if len(i) == 0:
            return
        order = np.lexsort((high, i))
        i, j, low, high = i[order], j[order], low[order], high[order]
        touched, group = np.unique(i, return_inverse=True)
        rank = _rank(i)
        nearest = rank < self.k
        merged = np.full((len(touched), 2 * self.k), np.inf)
        merged[:, : self.k] = self.best[touched]
        merged[group[nearest], self.k + rank[nearest]] = high[nearest]
        merged.sort(axis=1)
        self.best[touched] = merged[:, : self.k]
        keep = low <= self.best[i, -1]
        self.found.append((i[keep], j[keep], low[keep]))
        self.size += int(keep.sum())
        if self.size > 2 * CROWDED * len(self.x):
            self._prune()

    def _prune(self) -> None:
        """Drop the candidates that later ones have beaten; give up rows with too many near ties."""
        i, j, low = (np.concatenate(part) for part in zip(*self.found, strict=True))
        keep = low <= self.best[i, -1]
        if keep.sum() > CROWDED * len(self.x):
            crowded = np.bincount(i[keep], minlength=len(self.x)) > CROWDED
            self.best[crowded] = -np.inf
            keep &= ~crowded[i]
        self.found = [(i[keep], j[keep], low[keep])]
        self.size = int(keep.sum())

    def finish(self) -> tuple[Float64, Indices]:
        """The exact answer."""
        self._prune()
        i, j, _ = self.found[0]
        distances, columns = np.empty(self.best.shape), np.empty(self.best.shape, dtype=np.intp)
        _smallest(self.x, i, self.y, j, distances, columns)
        rows = np.flatnonzero(self.best[:, -1] < 0)
        for dtype in (np.float32, np.float64):
            step = max(1, 2**23 // len(self.y))
            parts = [rows[start : start + step] for start in range(0, len(rows), step)]
            crowded = [self._settle(part, dtype, distances, columns) for part in parts]
            rows = np.concatenate(crowded) if crowded else rows
        return distances, columns

    def _settle(self, rows: Indices, dtype: type, distances: Float64, columns: Indices) -> Indices:
        """Fill in ``rows`` by screening in ``dtype``; return those that stay crowded in float32."""
        x, y, k = self.x, self.y, self.k
        a: Array = ((x.features[rows] - x.centre) / x.scale).astype(dtype)
        s: Array = np.empty((len(rows), len(y)), dtype)
        norms = np.einsum("ij,ij->i", a, a)
        largest = 0.0
        for block in y.blocks():
            b: Array = ((y.features[block] - y.centre) / y.scale).astype(dtype)
            norms_b = np.einsum("ij,ij->i", b, b)
            largest = max(largest, float(norms_b.max()))
            s[:, block] = a @ b.T
            s[:, block] *= -2
            s[:, block] += norms_b
        s += norms[:, None]
        if x is y:
            s[np.arange(len(rows)), rows] = np.inf
        slack = 4 * np.finfo(dtype).eps * (x.features.shape[1] + 8) * (norms + largest) + TINY**2
        first = np.argpartition(s, k - 1, axis=1)[:, :k]
        i = np.repeat(np.arange(len(rows)), k)
        exact = squared_distances(x.features, rows[i], y.features, first.ravel()).reshape(len(rows), k)
        distances[rows], columns[rows] = np.sort(exact, axis=1), first
        crowded = []
        for row in np.flatnonzero(exact.max(axis=1) > 0):  # zero: any k duplicates will do
            j = np.flatnonzero(s[row] <= s[row, first[row]].max() + 2 * slack[row])
            if dtype == np.float32 and len(j) > CROWDED:
                crowded.append(rows[row])
            else:
                _smallest(x, np.full(len(j), rows[row]), y, j, distances, columns)
        return np.array(crowded, dtype=np.intp)


def _smallest(x: Points, i: Indices, y: Points, j: Indices, distances: Float64, columns: Indices) -> None:
    """Compute the pairs (i, j) exactly and put the nearest of each row in ``distances`` and ``columns``."""
    if x is y:  # most pairs are found from both ends
        pairs, inverse = np.unique(np.minimum(i, j) * len(x) + np.maximum(i, j), return_inverse=True)
        a, b = np.divmod(pairs, len(x))
        exact = squared_distances(x.features, a, x.features, b)[inverse]
    else:
        exact = squared_distances(x.features, i, y.features, j)
    order = np.lexsort((j, exact, i))
    i, j, exact = i[order], j[order], exact[order]
    rank = _rank(i)
    keep = rank < distances.shape[1]
    distances[i[keep], rank[keep]] = exact[keep]
    columns[i[keep], rank[keep]] = j[keep]


class Balls:
    """Which vectors lie in which balls ``|vector - centre|² <= radius²``, counted from screened blocks.

    ``inside`` [N] counts, for every vector, the balls that hold it; ``occupied`` [M], for every ball, the
    vectors that it holds. With ``counts`` False only ``inside > 0`` is exact, which leaves fewer pairs to
    compute.
    """

    def __init__(self, centres: Points, radii: Float64, vectors: Points, *, counts: bool) -> None:
        self.centres, self.vectors, self.radii, self.counts = centres, vectors, radii, counts
        self.inside = np.zeros(len(vectors), dtype=np.int64)
        self.occupied = np.zeros(len(centres), dtype=np.int64)
        self._open: list[tuple[Indices, Indices]] = []  # ball, vector
        self._size = 0

    def look(self, s: torch.Tensor, balls: slice, vectors: slice, *, turned: bool = False) -> None:
        """Count a screened block [balls, vectors] (turned: [vectors, balls])."""
        bound = self.radii[balls] / self.centres.scale**2
        limit = limits(bound, self.centres, balls, self.vectors, vectors)
        if turned:
            j, i, values = below(s, limit[None, :])
        else:
            i, j, values = below(s, limit[:, None])
        i, j = i + balls.start, j + vectors.start
        low, high = bounds(values, i, self.centres, j, self.vectors)
        bound = self.radii[i] / self.centres.scale**2
        certain = high <= bound
        self._count(i[certain], j[certain])
        unsure = ~certain & (low <= bound)
        if not self.counts:
            unsure &= self.inside[j] == 0
        self._open.append((i[unsure], j[unsure]))
        self._size += int(unsure.sum())
        if self._size > 2**20:
            self.resolve()

    def _count(self, i: Indices, j: Indices) -> None:
        self.inside += np.bincount(j, minlength=len(self.inside))
        self.occupied += np.bincount(i, minlength=len(self.occupied))

    def resolve(self) -> None:
        """Compute the pairs that screening left open."""
        if not self._open:
            return
        i, j = (np.concatenate(part) for part in zip(*self._open, strict=True))
        self._open, self._size = [], 0
        while len(i):
            now = np.ones(len(i), dtype=bool)
            if not self.counts:  # a few pairs of each vector at a time: one that hits spares the others
                keep = self.inside[j] == 0
                i, j = i[keep], j[keep]
                order = np.argsort(j, kind="stable")
                i, j = i[order], j[order]
                now = _rank(j) < 4
            exact = squared_distances(self.centres.features, i[now], self.vectors.features, j[now])
            hit = exact <= self.radii[i[now]]
            self._count(i[now][hit], j[now][hit])
            i, j = i[~now], j[~now]
