"""How long FID, IS, precision and recall of N images take: cmbench and torch-fidelity, side by side.

    python benchmarks/evaluation.py --images 1600 --blocks 25 --threads 2
    python benchmarks/evaluation.py --images 50000 --blocks 50 --device cuda --weights FILE
    python benchmarks/evaluation.py --images 512 --blocks 4 --cifar10 DIR

All take the same images, the same Inception weights (random ones unless given: time does not depend on them) and
one set of features for all metrics, and all compute the reference: nothing is cached. Images go through the
contenders in turn, block by block, so that other load on the machine hits all alike; the metrics follow once for
each. torch-fidelity runs its own functions in the order of its ``calculate_metrics``, with float32 as it is
delivered.
"""

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
from machine import describe, markdown, matmul_rate, ratios
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cmbench.data.base import open_dataset
from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import file_hash
from cmbench.metrics.protocols import ExtractorSpec, Protocol, metric
from cmbench.metrics.references import Reference, Statistics

Pixels = NDArray[np.uint8]
INCEPTION = (
    11.41e9  # floating-point operations of one image, each multiplication and addition of the convolutions
)
FIGURES = ("fid", "is", "precision", "recall")


class Images(Dataset[Tensor]):
    """uint8 [3, H, W], as torch-fidelity takes them."""

    def __init__(self, images: Pixels) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index])


def images(count: int, size: int, seed: int) -> Pixels:
    """Patches of colour under noise, uint8 [count, 3, size, size]; even and odd seeds differ in contrast."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256 - 20 * (seed % 2), (count, 3, 4, 4))
    grid = np.arange(size) * 4 // size
    noise = rng.integers(-20, 20, (count, 3, size, size))
    return (cells[:, :, grid][..., grid] + noise).clip(0, 255).astype(np.uint8)


def cifar10(folder: Path, count: int) -> tuple[Pixels, Pixels]:
    """The first training images, and the next as many under slight noise in the place of generated ones."""
    data = open_dataset("cifar10", folder).read(np.arange(2 * count))
    noise = np.random.default_rng(0).normal(0, 6, data[count:].shape)
    return data[:count], (data[count:] + noise).round().clip(0, 255).astype(np.uint8)


def random_weights(path: Path) -> Path:
    """A file in torch-fidelity's layout with random weights that keep activations in scale."""
    from cmbench.metrics.inception import Inception2015

    torch.manual_seed(0)
    network = Inception2015()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.nn.init.normal_(network.fc.weight)  # so that the class probabilities differ
    torch.save(network.state_dict(), path)
    return path


def protocol(weights: Path, name: str, precision: str, compile: bool) -> Protocol:
    """FID, IS, precision and recall from one pass of Inception."""
    return dataclasses.replace(
        protocols.get("torch-fidelity"),
        name=name,
        extractors=(ExtractorSpec("inception-v3", file_hash(weights), "tf1-bilinear"),),
        metrics=(
            metric("frechet", "inception-v3", "pool3", "FID"),
            metric("inception-score", "inception-v3", "logits_unbiased", "IS", splits=10, shuffle_seed=2020),
            metric("precision-recall", "inception-v3", "pool3", "Precision", "Recall"),
        ),
    ).with_arithmetic(precision, compile)


@dataclasses.dataclass
class Row:
    """What was measured of one contender: seconds, and the figures."""

    first: float
    blocks: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    metrics: float = 0.0
    found: dict[str, float] = dataclasses.field(default_factory=dict)


class Contender(Interface):
    """Takes blocks of generated and real images, then computes the figures."""

    def warm(self, images: Pixels) -> None:
        """A first batch, which is not measured with the others."""

    def block(self, fake: Pixels, real: Pixels) -> None:
        """Features of a block of both."""

    def figures(self) -> dict[str, float]:
        """FID, IS, precision and recall of all blocks."""


class Ours:
    """The engine."""

    def __init__(
        self, weights: Path, args: argparse.Namespace, precision: str, compile: bool = False
    ) -> None:
        self.engine = Engine.open(
            protocol(weights, "benchmark", precision, compile),
            device=args.device,
            weights=weights,
            batch_size=args.batch_size,
        )
        self.fake = self.engine.shard()
        self.real = self.engine.empty(self.engine.reference_layers())

    def warm(self, images: Pixels) -> None:
        """A first batch, which is not measured with the others."""
        shard = self.engine.shard()
        self.engine.update(shard, images, 0)
        self.engine.flush(shard)

    def block(self, fake: Pixels, real: Pixels) -> None:
        """Features of a block of both."""
        for shard, images in ((self.fake, fake), (self.real, real)):
            self.engine.update(shard, images, shard.stop if shard.count else 0)
            self.engine.flush(shard)

    def figures(self) -> dict[str, float]:
        """FID, IS, precision and recall of all blocks."""
        layers = {}
        for name, state in self.real.layers.items():
            moments = state.moments()
            rows = state.rows() if state.keep else None
            layers[name] = Statistics(moments.mean, moments.covariance(), moments.n, rows)
        found = self.engine.compute(self.fake, Reference("benchmark", layers))
        missing = [f"{key}: {figure.reason}" for key, figure in found.items() if figure.value is None]
        if missing:
            raise SystemExit("; ".join(missing))
        return {key: figure.value for key, figure in found.items() if figure.value is not None}


class Theirs:
    """torch-fidelity."""

    LAYERS = ("2048", "logits_unbiased")

    def __init__(self, weights: Path, args: argparse.Namespace) -> None:
        from torch_fidelity.utils import create_feature_extractor

        self.cuda, self.batch_size = args.device.startswith("cuda"), args.batch_size
        self.network = create_feature_extractor(
            "inception-v3-compat",
            list(self.LAYERS),
            cuda=self.cuda,
            feature_extractor_weights_path=str(weights),
            verbose=False,
        )
        self.found: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])

    @torch.no_grad()
    def warm(self, images: Pixels) -> None:
        """A first batch, which is not measured with the others."""
        self.network(torch.from_numpy(images).to("cuda" if self.cuda else "cpu"))

    def block(self, fake: Pixels, real: Pixels) -> None:
        """Features of a block of both."""
        from torch_fidelity.utils import get_featuresdict_from_dataset

        for found, images in zip(self.found, (fake, real), strict=True):
            # save_cpu_ram: images in memory need no processes that load them, which would cost it time
            found.append(
                get_featuresdict_from_dataset(
                    Images(images), self.network, self.batch_size, self.cuda, save_cpu_ram=True, verbose=False
                )
            )

    def figures(self) -> dict[str, float]:
        """FID, IS, precision and recall of all blocks."""
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric
        from torch_fidelity.metric_prc import calculate_precision_recall_full

        (fake, logits), (real, _) = (
            [torch.cat([block[layer] for block in blocks]) for layer in self.LAYERS] for blocks in self.found
        )
        score = isc_features_to_metric(logits)
        statistics = [fid_features_to_statistics(x) for x in (fake, real)]
        distance = fid_statistics_to_metric(*statistics, verbose=False)
        precision, recall = calculate_precision_recall_full(fake, real)
        return {
            "fid": distance["frechet_inception_distance"],
            "is": score["inception_score_mean"],
            "precision": precision,
            "recall": recall,
        }


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Run every contender in turn and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512, help="generated images, and as many real ones")
    parser.add_argument("--blocks", type=int, default=8, help="parts in which contenders take turns")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--cifar10", type=Path, help="take real images from this folder")
    parser.add_argument("--batch-size", type=int, default=64, help="torch-fidelity's default, and ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", type=Path, help="the published weight file; random weights without it")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--skip-metrics", action="store_true", help="time the features only")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cifar10:
        real, fake = cifar10(args.cifar10, args.images)
    else:
        real, fake = images(args.images, args.size, 0), images(args.images, args.size, 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CMBENCH_CACHE"] = folder
        weights = args.weights or random_weights(Path(folder) / "inception.pth")
        makers: dict[str, Callable[[], Contender]] = {
            "torch-fidelity": lambda: Theirs(weights, args),
            "cmbench float32": lambda: Ours(weights, args, "float32"),
            "cmbench bf16": lambda: Ours(weights, args, "bf16"),
        }
        if args.device.startswith("cuda"):
            makers["cmbench tf32"] = lambda: Ours(weights, args, "tf32")
        if args.compile:
            makers["float32, compiled"] = lambda: Ours(weights, args, "float32", True)
            makers["bf16, compiled"] = lambda: Ours(weights, args, "bf16", True)
        contenders = {name: make() for name, make in makers.items() if name not in args.skip}
        rows = measure(contenders, fake, real, args)
    types = {"float32": torch.float32, "bf16": torch.bfloat16} if args.device == "cpu" else {}
    limits = {name: matmul_rate(dtype, clock=time.process_time) for name, dtype in types.items()}
    shape = "x".join(map(str, real.shape[1:]))
    print(f"{args.images} + {args.images} images {shape}, {args.device}; {describe()}")
    for name, rate in limits.items():
        print(
            f"{name} matrix product: {rate / 1e9:.0f} GFLOP for each second of a processor: {INCEPTION / rate:.4f} s"
            " for an image if the convolutions are computed as they are written"
        )
    report(rows, args.images, limits)
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(
            json.dumps(
                {
                    "settings": settings,
                    "machine": describe(),
                    "rows": {name: dataclasses.asdict(row) for name, row in rows.items()},
                }
            )
        )


def measure(
    contenders: dict[str, Contender], fake: Pixels, real: Pixels, args: argparse.Namespace
) -> dict[str, Row]:
    """Seconds of every block and of the metrics, and the figures."""
    warm = fake[: args.batch_size]
    rows: dict[str, Row] = {}
    for name, contender in contenders.items():  # first calls choose kernels, or compile
        first, _ = timed(lambda c=contender: c.warm(warm))
        rows[name] = Row(first)
    # Whole batches, since the engine fills up a short one; the last block may end in one.
    borders = (
        np.linspace(0, len(fake) / args.batch_size, args.blocks + 1).round().astype(int) * args.batch_size
    )
    borders = np.unique(borders.clip(max=len(fake)))
    borders[-1] = len(fake)
    for start, stop in itertools.pairwise(borders):
        for name, contender in contenders.items():
            wall, cpu = timed(lambda c=contender, a=start, b=stop: c.block(fake[a:b], real[a:b]))
            rows[name].blocks.append(wall)
            rows[name].cpu.append(cpu)
        print(
            f"block of {stop - start}: {', '.join(f'{r.blocks[-1]:.1f} s' for r in rows.values())}",
            flush=True,
        )
    for name, contender in contenders.items():
        if not args.skip_metrics:
            found = rows[name].found
            rows[name].metrics, _ = timed(lambda c=contender, f=found: f.update(c.figures()))
    return rows


def report(rows: dict[str, Row], count: int, limits: dict[str, float]) -> None:
    """The table, as Markdown."""
    heads = ["", "images/s", "times torch-fidelity: median (least, most)", "whole", "CPU s / image"]
    heads += ["first batch s", "metrics s", "of the limit", "FID", "IS", "precision", "recall"]
    lines = []
    base = rows.get("torch-fidelity")
    for name, row in rows.items():
        cells = [name, f"{2 * count / sum(row.blocks):.2f}"]
        whole = sum(row.blocks) + row.metrics
        if base is None or base is row:
            cells += ["1", "1"]
        else:
            cells += [ratios(base.blocks, row.blocks)]
            cells += [f"{(sum(base.blocks) + base.metrics) / whole:.2f}"]
        limit = limits.get("bf16" if "bf16" in name else "float32")
        share = INCEPTION * 2 * count / sum(row.cpu) / limit if limit else None
        cells += [f"{sum(row.cpu) / count / 2:.4f}", f"{row.first:.1f}", f"{row.metrics:.1f}"]
        cells += ["" if share is None else f"{share:.0%}"]
        cells += [f"{row.found[key]:.5f}" if key in row.found else "" for key in FIGURES]
        lines.append(cells)
    print(markdown(heads, lines))


if __name__ == "__main__":
    main()
