"""Time and memory of precision and recall against torch-fidelity, in one process.

python benchmarks/precision_recall.py [--samples 10000] [--reference 10000] [--dimensions 2048]
"""

import argparse

import torch
from machine import describe, features, matmul_rate, peak_memory, timed
from rich.console import Console
from rich.table import Table
from torch_fidelity.metric_prc import calculate_precision_recall_full

from cmbench.metrics.precision_recall import precision_recall


def main() -> None:
    """Measure and print one table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    args = parser.parse_args()
    n, m, d = args.samples, args.reference, args.dimensions
    console = Console(width=120)
    console.print(describe())
    rates = {dtype: matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        console.print(f"{dtype} matrix product: {rate / 1e9:.0f} GFLOP/s")
    x, y = features(n, d, 1, 0.97), features(m, d, 2)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    memory, (ours, result) = peak_memory(lambda: timed(lambda: precision_recall(x, y)))
    memory_theirs, (theirs, shares) = peak_memory(
        lambda: timed(lambda: calculate_precision_recall_full(a, b))
    )
    counts_theirs = round(shares[0] * n), round(shares[1] * m)
    work = 2 * d * (n * n + m * m + n * m)  # all distances within and between the sets, each computed once
    columns = (
        "method",
        "seconds",
        "times ours",
        "of float32 rate",
        "GiB beyond features",
        "precise",
        "recalled",
    )
    table = Table(*columns)
    for name, seconds, used, counts in (
        ("cmbench", ours, memory, (int(result.precise.sum()), int(result.recalled.sum()))),
        ("torch-fidelity", theirs, memory_theirs, counts_theirs),
    ):
        share = f"{work / seconds / rates[torch.float32]:.0%}"
        held = "-" if used is None else f"{used / 2**30:.2f}"
        table.add_row(name, f"{seconds:.2f}", f"{seconds / ours:.2f}", share, held, *map(str, counts))
    console.print(table)


if __name__ == "__main__":
    main()
