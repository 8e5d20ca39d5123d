"""Exact comparisons of the distances between feature vectors, at the speed of low-precision matrix products.

Nearest neighbours and balls ask of N x M distances only which of them are smallest, or smaller than a radius.
So every pair is *screened* with vectors rounded to bfloat16, and only the few that the rounding leaves open
are computed exactly: as Σ (x - y)² in float64, pair by pair, never as |x|² + |y|² - 2xy, which cancels. A
screened distance p of rounded vectors bounds the true distance d by

    |d - p| <= e_x + e_y                         e: the length of what rounding took from a vector (triangle)
    |s - p²| <= eta (|x|² + |y|²)                s: p² as the matrix product computes it

where eta covers the accumulation of D products in float32 in any order, and the rounding of a bfloat16
result. As the rounded vectors are exact in bfloat16, TF32 and float32 alike, no precision setting of torch
can break the bounds, and the answers are those of float64 on every device and for every block size.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt
import torch

from cmbench.errors import UsageError
from cmbench.metrics.moments import Array, Float64, as_features, require_finite

Indices = npt.NDArray[np.intp]
Block = tuple[slice, slice, torch.Tensor]
TINY = 1e-30  # what a processor that flushes subnormal numbers may take from a vector


def squared_distances(a: Array, i: Indices, b: Array, j: Indices) -> Float64:
    """``|a[i] - b[j]|²`` [P] for P pairs of rows, in float64; the same bits for a pair and its reverse."""
    result = np.empty(len(i))
    step = max(1, 2**16 // max(1, a.shape[1]))  # rows that stay in the cache

    def fill(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            difference = np.subtract(a[i[part]], b[j[part]], dtype=np.float64)
            result[part] = np.einsum("ij,ij->i", difference, difference)

    _in_threads(fill, len(i))
    return result


def _in_threads(work: Callable[[int, int], None], n: int) -> None:
    """``work(start, stop)`` over 0..n, cut among as many threads as torch uses; NumPy leaves the lock."""
    threads = max(1, min(torch.get_num_threads(), n // 1024))
    if threads == 1:
        return work(0, n)
    bounds = np.linspace(0, n, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
    return None


@dataclass(frozen=True)
class Points:
    """Features [N, D] and what screening needs: rounded rows on the device, norms and error bounds.

    ``rounded``, ``norms`` (squared) and ``errors`` refer to ``(features - centre) / scale``.
    """

    features: Array
    rounded: torch.Tensor
    norms: Float64
    errors: Float64
    centre: Array
    scale: float

    def __len__(self) -> int:
        return len(self.features)

    @property
    def eta(self) -> float:
        """Relative error bound of a screened squared distance."""
        accumulation: float = self.features.shape[1] * 2.0**-22 + 2.0**-20
        return accumulation + (2.0**-8 if self.rounded.dtype == torch.bfloat16 else 0.0)

    def blocks(self) -> list[slice]:
        """Near-equal runs of rows, so that a block of distances fits the cache (or GPU memory)."""
        size = 1024 if self.rounded.device.type == "cpu" else 8192
        bounds = np.linspace(0, len(self), -(-len(self) // size) + 1).round().astype(int)
        return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def prepare(*sets: object, device: str | torch.device = "cpu") -> tuple[Points, ...]:
    """Feature sets [N_i, D] (arrays or tensors) on one centre and scale, ready to be screened on ``device``.

    Raises:
        UsageError: no vectors, or unlike dimensions.
        WorkError: values that are not finite.
    """
    arrays = [as_features(features) for features in sets]
    if any(len(a) == 0 for a in arrays) or len({a.shape[1] for a in arrays}) != 1:
        shapes = ", ".join(str(list(a.shape)) for a in arrays)
        raise UsageError(f"feature sets must be [N, D] of one D and not empty, not {shapes}")
    for array in arrays:
        require_finite(array)
    dtype = np.result_type(*arrays)
    centre = (
        arrays[-1].mean(axis=0, dtype=np.float64).astype(dtype)
    )  # nothing but speed depends on the centre
    largest = max(float(np.abs(bound - centre).max()) for a in arrays for bound in (a.min(0), a.max(0)))
    scale = float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0
    device = torch.device(device)
    screen = torch.bfloat16 if device.type == "cpu" and _bfloat16_is_fast() else torch.float32
    return tuple(_points(a, centre, scale, screen, device) for a in arrays)


def _points(a: Array, centre: Array, scale: float, screen: torch.dtype, device: torch.device) -> Points:
    rounded = torch.empty(a.shape, dtype=screen, device=device)
    norms, errors = np.empty(len(a)), np.empty(len(a))

    def fill(start: int, stop: int) -> None:
        for first in range(start, stop, 256):
            part = slice(first, min(first + 256, stop))
            centred = np.subtract(a[part], centre)
            centred *= 1 / scale
            centred = centred.astype(np.float32, copy=False)
            low = torch.from_numpy(centred).bfloat16()
            rounded[part] = low.to(screen)
            exact = low.float().numpy()
            norms[part] = np.einsum("ij,ij->i", exact, exact)
            centred -= exact
            # Centring and the conversion to float32 round each value by 2^-24 of itself at most.
            lost = np.sqrt(np.einsum("ij,ij->i", centred, centred))
            errors[part] = 1.001 * lost + 2.0**-22 * np.sqrt(norms[part])

    _in_threads(fill, len(a))
    return Points(a, rounded, norms, errors, centre, scale)


@cache
def _bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones; no answer depends on it."""
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(512, 1024, dtype=dtype)
        torch.mm(a, a.T)
        start = time.perf_counter()
        torch.mm(a, a.T)
        seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _screen(x: Points, rows: slice, y: Points, columns: slice) -> torch.Tensor:
    """Approximate squared distances (scaled) [rows, columns] in float32."""
    device = x.rounded.device
    s = torch.mm(x.rounded[rows], y.rounded[columns].T).float()
    norms_x = torch.from_numpy(x.norms[rows].astype(np.float32)).to(device)
    norms_y = torch.from_numpy(y.norms[columns].astype(np.float32)).to(device)
    return torch.add(norms_y, s, alpha=-2, out=s).add_(norms_x[:, None])


def _screens(x: Points, y: Points, pairs: Iterable[tuple[slice, slice]]) -> Iterator[Block]:
    """The screened block of each (rows, columns), the next being multiplied while one is looked at."""
    with ThreadPoolExecutor(1) as worker:
        waiting = None
        for rows, columns in pairs:
            following = rows, columns, worker.submit(_screen, x, rows, y, columns)
            if waiting:
                yield *waiting[:2], waiting[2].result()
            waiting = following
        if waiting:
            yield *waiting[:2], waiting[2].result()


def cross_blocks(x: Points, y: Points) -> Iterator[Block]:
    """Every block of screened squared distances, with its rows of ``x`` and columns of ``y``."""
    return _screens(x, y, product(x.blocks(), y.blocks()))


def _below(s: torch.Tensor, limit: npt.NDArray[np.float32]) -> tuple[Indices, Indices, Float64]:
    """Rows, columns and values of the entries of ``s`` that are at most ``limit`` [R, 1] or [1, C]."""
    if s.device.type == "cpu":  # NumPy compares and finds several times faster than torch does here
        flat = np.flatnonzero(s.numpy() <= limit)
        values = s.numpy().ravel()[flat]
    else:
        found = (s <= torch.from_numpy(limit).to(s.device)).flatten().nonzero()[:, 0]
        values, flat = s.flatten()[found].cpu().numpy(), found.cpu().numpy()
    rows, columns = np.divmod(flat, s.shape[1])
    return rows, columns, values.astype(np.float64)


def _bounds(s: Float64, i: Indices, x: Points, j: Indices, y: Points) -> tuple[Float64, Float64]:
    """Lower and upper bounds of the true squared distances (scaled) of pairs with screened values ``s``."""
    slack = x.eta * (x.norms[i] + y.norms[j])
    error = x.errors[i] + y.errors[j] + TINY
    low = np.maximum(np.sqrt(np.maximum(s - slack, 0)) - error, 0) ** 2
    return low, (np.sqrt(np.maximum(s, 0) + slack) + error) ** 2


def _limits(bound: Float64, x: Points, rows: slice, y: Points, columns: slice) -> npt.NDArray[np.float32]:
    """What a screened value must not exceed if the true one may still be <= ``bound`` [rows] (scaled)."""
    slack = x.eta * (x.norms[rows] + y.norms[columns].max())
    error = x.errors[rows] + y.errors[columns].max() + TINY
    limit = np.where(bound >= 0, (np.sqrt(np.maximum(bound, 0)) + error) ** 2 + slack, -1.0)
    return (limit * (1 + 1e-6)).astype(np.float32)


def _rank(groups: Indices) -> Indices:
    """The position of each entry within its group, for ``groups`` sorted."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.intp)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def neighbours(x: Points, y: Points, k: int) -> tuple[Float64, Indices]:
    """Squared distances [N, k], ascending, and row numbers [N, k] of the ``k`` nearest ``y`` of every ``x``.

    Where ``x is y``, a row is not its own neighbour, and each pair of blocks is screened once for both sides.
    Memory: the candidates, about 64 pairs per row at most, and one block.

    Raises UsageError where there are fewer than ``k`` to choose from.
    """
    same = x is y
    if not 1 <= k <= len(y) - same:
        raise UsageError(f"{k} nearest neighbours cannot be found among {len(y) - same} vectors")
    search = _Search(x, y, k)
    if same:
        # The diagonal first: every row then has k candidates, and few more follow.
        blocks = x.blocks()
        for rows, _, s in _screens(x, x, zip(blocks, blocks, strict=True)):
            search.look(s.fill_diagonal_(torch.inf), rows, rows)
        for rows, columns, s in _screens(x, x, combinations(blocks, 2)):
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
        limit = _limits(bound, self.x, rows, self.y, columns)
        if turned:
            j, i, values = _below(s, limit[None, :])
        else:
            i, j, values = _below(s, limit[:, None])
        i, j = i + rows.start, j + columns.start
        low, high = _bounds(values, i, self.x, j, self.y)
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
        if self.size > 64 * len(self.x):
            self._prune()

    def _prune(self) -> None:
        """Drop the candidates that later ones have beaten; give up rows with too many near ties."""
        i, j, low = (np.concatenate(part) for part in zip(*self.found, strict=True))
        keep = low <= self.best[i, -1]
        if keep.sum() > 32 * len(self.x):
            crowded = np.bincount(i[keep], minlength=len(self.x)) > 32
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
        crowded = np.flatnonzero(self.best[:, -1] < 0)
        step = max(1, 2**23 // len(self.y))
        for start in range(0, len(crowded), step):
            self._in_float64(crowded[start : start + step], distances, columns)
        return distances, columns

    def _in_float64(self, rows: Indices, distances: Float64, columns: Indices) -> None:
        """Fill in ``rows`` by a screening in float64, which leaves open little but exact ties."""
        x, y, k = self.x, self.y, self.k
        a = x.features[rows].astype(np.float64) - x.centre
        s = np.empty((len(rows), len(y)))
        norms = np.square(a).sum(axis=1)
        largest = 0.0
        for block in y.blocks():
            b = y.features[block].astype(np.float64) - y.centre
            norms_b = np.square(b).sum(axis=1)
            largest = max(largest, float(norms_b.max()))
            s[:, block] = norms[:, None] + norms_b - 2 * (a @ b.T)
        if x is y:
            s[np.arange(len(rows)), rows] = np.inf
        slack = 2.0**-50 * x.features.shape[1] * (norms + largest)
        kth = np.partition(s, k - 1, axis=1)[:, k - 1]
        # Of many duplicates any k will do: a distance of zero cannot be beaten.
        first = np.argpartition(s, k - 1, axis=1)[:, :k]
        i = np.repeat(np.arange(len(rows)), k)
        exact = squared_distances(x.features, rows[i], y.features, first.ravel()).reshape(len(rows), k)
        distances[rows], columns[rows] = exact, first
        open_rows = np.flatnonzero(exact.max(axis=1) > 0)
        for row in open_rows:
            j = np.flatnonzero(s[row] <= kth[row] + 2 * slack[row])
            _smallest(x, np.full(len(j), rows[row]), y, j, distances, columns)


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
        limit = _limits(bound, self.centres, balls, self.vectors, vectors)
        if turned:
            j, i, values = _below(s, limit[None, :])
        else:
            i, j, values = _below(s, limit[:, None])
        i, j = i + balls.start, j + vectors.start
        low, high = _bounds(values, i, self.centres, j, self.vectors)
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
