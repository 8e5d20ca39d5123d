"""Time and memory of precision and recall against torch-fidelity, in one process.

    python benchmarks/precision_recall.py [--samples 10000] [--reference 10000] [--dimensions 2048] [--blocks 2]

The contenders take turns. The share of the float32 rate counts every distance once, as if nothing could be left out.
"""

import argparse
from statistics import median

import torch
from machine import copy_rate, describe, features, in_turn, markdown, matmul_rate, peak_memory, ratios
from torch_fidelity.metric_prc import calculate_precision_recall_full

from cmbench.metrics.precision_recall import precision_recall


def main() -> None:
    """Measure and print one table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=2, help="rounds in which the contenders take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n, m, d = args.samples, args.reference, args.dimensions
    print(describe())
    rate = matmul_rate(torch.float32)
    print(f"float32 matrix product: {rate / 1e9:.0f} GFLOP/s; memory: {copy_rate() / 1e9:.0f} GB/s")
    x, y = features(n, d, 1, 0.97), features(m, d, 2)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    memory: dict[str, list[int]] = {"cmbench": [], "torch-fidelity": []}

    def ours() -> tuple[int, int]:
        used, found = peak_memory(lambda: precision_recall(x, y))
        memory["cmbench"] += [used or 0]
        return int(found.precise.sum()), int(found.recalled.sum())

    def theirs() -> tuple[int, int]:
        used, (precision, recall) = peak_memory(lambda: calculate_precision_recall_full(a, b))
        memory["torch-fidelity"] += [used or 0]
        return round(precision * n), round(recall * m)

    times, counts = in_turn({"cmbench": ours, "torch-fidelity": theirs}, args.blocks)
    work = 2 * d * (n * n + m * m + n * m)  # all distances within and between the sets, each computed once
    rows = []
    for name, seconds in times.items():
        cells = [name, f"{median(seconds):.1f}", ratios(seconds, times["cmbench"])]
        cells += [f"{work / median(seconds) / rate:.0%}", f"{max(memory[name]) / 2**30:.2f}"]
        rows.append([*cells, *map(str, counts[name])])
    heads = ["method", "seconds", "times ours", "of the float32 rate", "GiB beyond the features"]
    print(markdown([*heads, "inside the real set", "inside the samples"], rows))


if __name__ == "__main__":
    main()
