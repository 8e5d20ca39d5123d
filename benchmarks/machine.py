"""What the benchmarks share: matrix-product rate, timing, memory, and features of a real spectrum."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

T = TypeVar("T")


def describe() -> str:
    """Processor, threads and the versions that matter for speed."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        name = next(
            (x.split(": ")[1] for x in info.read_text().splitlines() if x.startswith("model name")), name
        )
    threads = (
        f"{torch.get_num_threads()} torch threads, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '-')}"
    )
    return f"{name}, {os.cpu_count()} cores, {threads}, torch {torch.__version__}, numpy {np.__version__}"


def matmul_rate(
    dtype: torch.dtype,
    size: int = 2048,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | str = "cpu",
) -> float:
    """Measured rate of square matrix products in floating-point operations per second; the best of five.

    With ``time.process_time`` it is the rate of one core, whatever else the machine does. On a GPU a size of 8192 is
    more like its limit, and the values are random: multiplying ones it draws less power, and is faster.
    """
    on_gpu = torch.device(device).type == "cuda"
    make, products = (torch.randn, 10) if on_gpu else (torch.ones, 1)
    a = make(size, size, device=device).to(dtype)

    def run() -> None:
        for _ in range(products):
            a @ a
        if on_gpu:
            torch.cuda.synchronize(device)

    if on_gpu:
        run()
    return products * 2 * size**3 / timed(run, repeat=5, clock=clock)[0]


def copy_rate() -> float:
    """Measured rate of the memory in bytes per second, read and written, of copies that no cache holds."""
    a = torch.ones(2**26)
    b = torch.empty_like(a)
    return 2 * a.nbytes / timed(lambda: b.copy_(a), repeat=5)[0]


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


def timed(
    run: Callable[[], T], repeat: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, T]:
    """The shortest time in seconds of ``repeat`` runs, and the last result."""
    best = float("inf")
    for _ in range(repeat):
        start = clock()
        result = run()
        best = min(best, clock() - start)
    return best, result


def in_turn(
    contenders: Mapping[str, Callable[[], T]], blocks: int
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Seconds of each contender in each of ``blocks`` rounds, and its last result.

    In every round each runs once, so that other load on the machine hits all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, T] = {}
    for _ in range(blocks):
        for name, run in contenders.items():
            once, results[name] = timed(run)
            seconds[name].append(once)
    return seconds, results


def ratios(theirs: list[float], ours: list[float]) -> str:
    """How many times as long they took, round by round: median (least, most)."""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f}, {max(each):.2f})"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table to paste into a page."""
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
