"""What the benchmarks share: matrix-product rate, timing, memory, and features of a real spectrum."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

T = TypeVar("T")


def describe() -> str:
    """Processor, threads and the versions that matter for speed."""
    name = platform.processor() or platform.machine()
    threads = (
        f"{torch.get_num_threads()} torch threads, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '-')}"
    )
    return f"{name}, {os.cpu_count()} cores, {threads}, torch {torch.__version__}, numpy {np.__version__}"


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measured rate of square matrix products in floating-point operations per second; the best of five."""
    a = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / timed(lambda: a @ a, repeat=5)[0]


def peak_memory(run: Callable[[], T]) -> tuple[int | None, T]:
    """The most bytes that ``run`` held beyond what the process held before (on Linux), and its result."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None, run()

    def field(name: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = field("VmRSS")
    result = run()
    return field("VmHWM") - before, result


def timed(run: Callable[[], T], repeat: int = 1) -> tuple[float, T]:
    """The shortest wall-clock time in seconds of ``repeat`` runs, and the last result."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def features(n: int, dimensions: int, seed: int, spread: float = 1.0) -> npt.NDArray[np.float32]:
    """Rectified vectors [n, dimensions] whose variances fall by a power law, as those of Inception."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((dimensions, dimensions)))[0]
    mixing = (3 * spread * (1 + np.arange(dimensions))[:, None] ** -0.7 * mixing).astype(np.float32)
    x = np.empty((n, dimensions), dtype=np.float32)
    for start in range(0, n, 1000):
        rows = x[start : start + 1000]
        np.maximum(rng.standard_normal(rows.shape, dtype=np.float32) @ mixing + 0.2, 0, out=rows)
    return x
