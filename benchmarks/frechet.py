"""Time of the Fréchet distance against scipy's sqrtm and torch-fidelity, in one process.

    python benchmarks/frechet.py [--dimensions 2048] [--samples 10000 1000] [--skip-scipy]

Fewer samples than dimensions make the covariance singular, the hard case for the others.
"""

import argparse

import numpy as np
import scipy.linalg
import torch
from machine import describe, features, matmul_rate, timed
from rich.console import Console
from rich.table import Table
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
    parser.add_argument("--skip-scipy", action="store_true", help="leave out sqrtm, the slowest")
    args = parser.parse_args()
    console = Console(width=120)
    console.print(describe())
    rate = matmul_rate(torch.float64, args.dimensions)
    product = 2 * args.dimensions**3 / rate
    console.print(f"float64 matrix product: {rate / 1e9:.0f} GFLOP/s, {product:.3f} s at {args.dimensions}")
    table = Table("samples", "method", "seconds", "matrix products", "times ours", "distance", "difference")
    reference = statistics(max(args.samples), args.dimensions, 0, 1.0)
    for n in args.samples:
        sample = statistics(n, args.dimensions, 1, 1.05)
        ours, distance = timed(lambda s=sample: frechet_distance(*s, *reference), repeat=3)
        rows = [("cmbench", ours, distance)]
        rows += [("torch-fidelity", *timed(lambda s=sample: by_torch_fidelity(s, reference)))]
        if not args.skip_scipy:
            rows += [("scipy sqrtm", *timed(lambda s=sample: by_scipy(s, reference)))]
        for name, seconds, value in rows:
            figures = f"{seconds:.2f}", f"{seconds / product:.1f}", f"{seconds / ours:.1f}"
            table.add_row(str(n), name, *figures, f"{value:.8f}", f"{abs(value / distance - 1):.1e}")
    console.print(table)


if __name__ == "__main__":
    main()
