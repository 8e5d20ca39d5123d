"""Time of the Fréchet distance against scipy's sqrtm and torch-fidelity, in one process.

    python benchmarks/frechet.py [--dimensions 2048] [--samples 10000 1000] [--blocks 3] [--skip-scipy]

The contenders take turns. Fewer samples than dimensions make the covariance singular, the hard case for the others.
"""

import argparse
from statistics import median

import numpy as np
import scipy.linalg
import torch
from machine import describe, features, in_turn, markdown, matmul_rate, ratios
from torch_fidelity.metric_fid import fid_statistics_to_metric

from cmbench.metrics.frechet import frechet_distance

Statistics = tuple[np.ndarray, np.ndarray]


def statistics(n: int, dimensions: int, seed: int, spread: float) -> Statistics:
    """Mean and covariance of synthetic features."""
    x = features(n, dimensions, seed, spread).astype(np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def by_scipy(a: Statistics, b: Statistics) -> float:
    """The textbook way: the principal root of the product."""
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    return float(np.sum((a[0] - b[0]) ** 2) + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real)


def by_torch_fidelity(a: Statistics, b: Statistics) -> float:
    """torch-fidelity: eigenvalues of the product, which is not symmetric."""
    one, two = ({"mu": s[0], "sigma": s[1]} for s in (a, b))
    return float(fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"])


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 1_000])
    parser.add_argument("--blocks", type=int, default=1, help="rounds in which the contenders take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-scipy", action="store_true", help="leave out sqrtm, the slowest")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())
    rate = matmul_rate(torch.float64, args.dimensions)
    product = 2 * args.dimensions**3 / rate
    print(f"float64 matrix product: {rate / 1e9:.0f} GFLOP/s, {product:.3f} s at {args.dimensions}")
    rows = []
    reference = statistics(max(args.samples), args.dimensions, 0, 1.0)
    for n in args.samples:
        sample = statistics(n, args.dimensions, 1, 1.05)
        contenders = {
            "cmbench": lambda s=sample: frechet_distance(*s, *reference),
            "torch-fidelity": lambda s=sample: by_torch_fidelity(s, reference),
        }
        if not args.skip_scipy:
            contenders["scipy sqrtm"] = lambda s=sample: by_scipy(s, reference)
        times, distances = in_turn(contenders, args.blocks)
        for name, seconds in times.items():
            against = abs(distances[name] / distances["cmbench"] - 1)
            cells = [str(n), name, f"{median(seconds):.2f}", f"{median(seconds) / product:.0f}"]
            cells += [ratios(seconds, times["cmbench"]), f"{distances[name]:.6f}", f"{against:.0e}"]
            rows.append(cells)
    heads = ["samples", "method", "seconds", "in matrix products", "times ours", "distance", "difference"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
