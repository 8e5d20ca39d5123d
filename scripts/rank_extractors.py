"""Do two classifiers rank generators of CIFAR-10 alike? Ours, and a published ResNet-56.

    cmbench sample --dataset cifar10 --method cd --nfe 1 -n 2000 --to cd-1.npz    # and so on
    python scripts/rank_extractors.py --data DIR --resnet56 resnet56-4bfd9763.th cd-1.npz cd-2.npz ...

DIR holds ``cifar-10-batches-bin/``. Each file of samples is compared with the training images by the Fréchet distance
on the features of both networks; the floor is the distance of one half of the training images to the other. Prints
Markdown.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from study_cifar10 import distance, extract, halves, resnet56
from torch import nn

from cmbench.data import open_dataset, open_images
from cmbench.metrics.extractors import open_network


def agreement(one: list[float], other: list[float]) -> tuple[int, int]:
    """Pairs that both put in the same order, and pairs."""
    pairs = list(combinations(range(len(one)), 2))
    same = sum((one[i] < one[j]) == (other[i] < other[j]) for i, j in pairs)
    return same, len(pairs)


def main() -> None:
    """Measure all files under both networks and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--resnet56", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000, help="training images to compare with")
    given = parser.parse_args()
    data = open_dataset("cifar10", given.data, download=False)
    one, other = halves(data.read(np.arange(len(data))), given.images // 2)
    networks: dict[str, nn.Module] = {
        "cifar10-resnet": open_network("cifar10-resnet"),
        "ResNet-56": resnet56(given.resnet56),
    }
    rows: dict[str, list[float]] = {"one half of the training images against the other": []}
    for network in networks.values():
        first, second = extract(network, one), extract(network, other)
        rows["one half of the training images against the other"].append(distance(first, second))
        known = np.concatenate([first, second])
        for path in given.samples:
            samples = open_images(path)
            made = extract(network, samples.read(np.arange(len(samples))))
            rows.setdefault(path.stem, []).append(distance(known, made))
    print(f"| Fréchet distance to {len(known):,} training images | {' | '.join(networks)} |")
    print("| :-- |" + " --: |" * len(networks))
    for title, values in rows.items():
        print(f"| {title} | {' | '.join(f'{value:.4g}' for value in values)} |")
    measured = [rows[path.stem] for path in given.samples]
    same, pairs = agreement([row[0] for row in measured], [row[1] for row in measured])
    print(f"\nBoth put {same} of {pairs} pairs of generators in the same order.")


if __name__ == "__main__":
    main()
