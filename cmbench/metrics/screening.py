"""Screened distances: approximate squared distances with rigorous bounds, from low-precision matrix products.

Vectors are rounded to int8 (each by a step of its own, after a rotation that spreads outliers) or to
bfloat16, and the product of two rounded vectors gives a value s. It bounds the true distance d by

    |d - p| <= e_x + e_y                         e: the length of what rounding took from a vector (triangle)
    |s - p²| <= eta (|x|² + |y|²)                p: the distance of the rounded vectors

where e is measured for each vector, and eta covers sums of D products in float32 in any order and the
rounding of a bfloat16 result. As the rounded vectors are exact in bfloat16, TF32 and float32 alike, no
precision setting of torch can break the bounds.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import hadamard

from cmbench.errors import UsageError
from cmbench.metrics.moments import Array, Float64, as_features, require_finite

Indices = npt.NDArray[np.intp]
Block = tuple[slice, slice, torch.Tensor]
TINY = 1e-16  # what underflow in float32 may take from a length, where the largest value is about 1


def in_threads(work: Callable[[int, int], None], n: int) -> None:
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

    ``rounded * steps[:, None]``, its ``norms`` (squared) and ``errors`` refer to ``(features - centre) /
    scale``.
    """

    features: Array
    rounded: torch.Tensor
    steps: npt.NDArray[np.float32]
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
    centre = arrays[-1].mean(axis=0, dtype=np.float64).astype(dtype)  # any centre is right, this one tight
    largest = max(float(np.abs(bound - centre).max()) for a in arrays for bound in (a.min(0), a.max(0)))
    scale = float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0
    device = torch.device(device)
    screen = _choose(arrays[-1], centre, scale) if device.type == "cpu" else torch.float32
    return tuple(_points(a, centre, scale, screen, device) for a in arrays)


def _points(a: Array, centre: Array, scale: float, screen: torch.dtype, device: torch.device) -> Points:
    rounded = torch.empty(a.shape, dtype=screen, device=device)
    norms, errors, steps = np.empty(len(a)), np.empty(len(a)), np.ones(len(a), dtype=np.float32)

    side = next(side for side in (64, 16, 4, 1) if a.shape[1] % side == 0)  # those of a whole root
    rotation = (hadamard(side) / np.sqrt(side)).astype(np.float32)

    def fill(start: int, stop: int) -> None:
        for first in range(start, stop, 256):
            part = slice(first, min(first + 256, stop))
            centred = np.subtract(a[part], centre)
            centred *= 1 / scale
            centred = centred.astype(np.float32, copy=False)
            if screen == torch.int8:
                centred = (centred.reshape(-1, side) @ rotation).reshape(centred.shape)
                largest = np.abs(centred).max(axis=1)
                steps[part] = np.where(largest > 0, largest / np.float32(127), 1)
                near = np.rint(centred / steps[part, None]).clip(-127, 127)
                rounded[part] = torch.from_numpy(near).to(screen)
            else:  # float32 too gets values of bfloat16, which no mode of multiplication rounds
                low = torch.from_numpy(centred).bfloat16()
                rounded[part] = low.to(screen)
                near = low.float().numpy()
            norms[part] = np.einsum("ij,ij->i", near, near) * steps[part].astype(np.float64) ** 2
            near *= steps[part, None]
            near -= centred
            # Centring, scaling and conversion round a value by 2^-24 of itself, rotation by 2^-15 of all.
            lost = np.sqrt(np.einsum("ij,ij->i", near, near))
            errors[part] = 1.001 * lost + 2.0**-14 * np.sqrt(norms[part])

    in_threads(fill, len(a))
    return Points(a, rounded, steps, norms, errors, centre, scale)


@cache
def cpu_screens() -> tuple[torch.dtype, ...]:
    """The types to screen with on this CPU, fastest first. No answer depends on them, only the time.

    int8 is left out where matrix units for bfloat16 make products cheap beside all else, and where its sums
    are wrong (on some CPUs without VNNI they saturate).
    """
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    finer = min(seconds, key=lambda dtype: seconds[dtype])
    if seconds[torch.bfloat16] * 4 < seconds[torch.float32] or not hasattr(torch, "_int_mm"):
        return (finer,)
    extreme = torch.full((32, 256), 127, dtype=torch.int8)
    extreme[::2] = -127
    exact = (extreme.long() @ extreme.T.long()).int()
    if (
        torch.equal(torch._int_mm(extreme, extreme.T), exact)
        and _product_seconds(torch.int8) < seconds[finer]
    ):
        return torch.int8, finer
    return (finer,)


def _choose(a: Array, centre: Array, scale: float) -> torch.dtype:
    """int8, unless the first rows show that its coarser rounding would leave too many pairs to compute."""
    fastest, *finer = cpu_screens()
    if not finer:
        return fastest
    some = _points(a[:1024], centre, scale, fastest, torch.device("cpu"))
    rows = slice(0, len(some))
    s = _screen(some, rows, some, rows).fill_diagonal_(torch.inf).numpy()
    third = np.partition(s, min(2, len(s) - 1), axis=1)[:, min(2, len(s) - 1)].astype(np.float64)
    every = np.arange(len(s))
    reach = bounds(third, every, some, every, some)[1]
    candidates = (s <= limits(reach, some, rows, some, rows)[:, None]).sum() / len(s)
    # A candidate costs about what 400 pairs save.
    return fastest if candidates < min(len(a) / 400, 32) else finer[0]


def _product_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(512, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        _product(a, a)
        best = min(best, time.perf_counter() - start)
    return best


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a bᵀ`` in float32; for int8 from exact sums."""
    return (torch._int_mm(a, b.T) if a.dtype == torch.int8 else torch.mm(a, b.T)).float()


def _screen(x: Points, rows: slice, y: Points, columns: slice) -> torch.Tensor:
    """Approximate squared distances (scaled) [rows, columns] in float32."""
    device = x.rounded.device
    s = _product(x.rounded[rows], y.rounded[columns])
    if x.rounded.dtype == torch.int8:
        s *= torch.from_numpy(x.steps[rows, None])
        s *= torch.from_numpy(y.steps[columns])
    norms_x = torch.from_numpy(x.norms[rows].astype(np.float32)).to(device)
    norms_y = torch.from_numpy(y.norms[columns].astype(np.float32)).to(device)
    return torch.add(norms_y, s, alpha=-2, out=s).add_(norms_x[:, None])


def screens(x: Points, y: Points, pairs: Iterable[tuple[slice, slice]]) -> Iterator[Block]:
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
    return screens(x, y, product(x.blocks(), y.blocks()))


def below(s: torch.Tensor, limit: npt.NDArray[np.float32]) -> tuple[Indices, Indices, Float64]:
    """Rows, columns and values of the entries of ``s`` that are at most ``limit`` [R, 1] or [1, C]."""
    if s.device.type == "cpu":  # NumPy compares and finds several times faster than torch does here
        flat = np.flatnonzero(s.numpy() <= limit)
        values = s.numpy().ravel()[flat]
    else:
        found = (s <= torch.from_numpy(limit).to(s.device)).flatten().nonzero()[:, 0]
        values, flat = s.flatten()[found].cpu().numpy(), found.cpu().numpy()
    rows, columns = np.divmod(flat, s.shape[1])
    return rows, columns, values.astype(np.float64)


def bounds(s: Float64, i: Indices, x: Points, j: Indices, y: Points) -> tuple[Float64, Float64]:
    """Lower and upper bounds of the true squared distances (scaled) of pairs with screened values ``s``."""
    slack = x.eta * (x.norms[i] + y.norms[j])
    error = x.errors[i] + y.errors[j] + TINY
    low = np.maximum(np.sqrt(np.maximum(s - slack, 0)) - error, 0) ** 2
    return low, (np.sqrt(np.maximum(s, 0) + slack) + error) ** 2


def limits(bound: Float64, x: Points, rows: slice, y: Points, columns: slice) -> npt.NDArray[np.float32]:
    """What a screened value must not exceed if the true one may still be <= ``bound`` [rows] (scaled)."""
    slack = x.eta * (x.norms[rows] + y.norms[columns].max())
    error = x.errors[rows] + y.errors[columns].max() + TINY
    limit = np.where(bound >= 0, (np.sqrt(np.maximum(bound, 0)) + error) ** 2 + slack, -np.inf)
    return (limit * (1 + 1e-6)).astype(np.float32)
