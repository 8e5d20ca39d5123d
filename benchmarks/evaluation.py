"""How long FID, IS, precision and recall of N images take: cmbench and torch-fidelity, side by side.

    python benchmarks/evaluation.py --images 2000 --threads 2
    python benchmarks/evaluation.py --images 50000 --device cuda --weights FILE

Both take the same images, the same Inception weights (random ones unless given: time does not depend on
them) and the same features for all metrics. cmbench's exact float32 and its faster arithmetic are rows of one
table, whose figures show what the arithmetic changes.
"""

import argparse
import dataclasses
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import file_hash
from cmbench.metrics.protocols import ExtractorSpec, Protocol, metric

Pixels = NDArray[np.uint8]


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


def run_ours(
    fake: Pixels, real: Pixels, weights: Path, args: argparse.Namespace, precision: str, compile: bool
) -> dict[str, float]:
    """Figures of the engine, and the seconds of its parts."""
    engine = Engine.open(
        protocol(weights, "benchmark", precision, compile),
        device=args.device,
        weights=weights,
        batch_size=args.batch_size,
    )
    if compile:  # compiling is paid once and not by image
        warm = engine.shard()
        engine.update(warm, fake[: args.batch_size], 0)
        engine.flush(warm)
    started = time.perf_counter()
    reference = engine.reference(ImageData("benchmark", "benchmark", ArraySource(real)))
    shard = engine.shard()
    engine.update(shard, fake, 0)
    engine.flush(shard)
    extracted = time.perf_counter()
    figures = engine.compute(shard, reference)
    done = time.perf_counter()
    missing = [f"{key}: {figure.reason}" for key, figure in figures.items() if figure.value is None]
    if missing:
        raise SystemExit("; ".join(missing))
    return {
        "seconds": done - started,
        "features": extracted - started,
        "metrics": done - extracted,
        **{key: figure.value for key, figure in figures.items() if figure.value is not None},
    }


def run_theirs(fake: Pixels, real: Pixels, weights: Path, args: argparse.Namespace) -> dict[str, float]:
    """Figures of torch-fidelity and the seconds that they took."""
    import torch_fidelity

    started = time.perf_counter()
    found = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        cuda=args.device.startswith("cuda"),
        batch_size=args.batch_size,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        feature_layer_prc="2048",
        isc=True,
        fid=True,
        prc=True,
        cache=False,
        verbose=False,
        save_cpu_ram=True,  # its data loader then starts no processes, and no N x N matrix is held
    )
    seconds = time.perf_counter() - started
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    return {"seconds": seconds, **{key: found[name] for key, name in names.items()}}


def main() -> None:
    """Run every contender in turn and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="generated images, and as many real ones")
    parser.add_argument("--size", type=int, default=32, help="their height and width")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", type=Path, help="the published weight file; random weights without it")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (long on CPUs)")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--json", type=Path, help="write the table there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    real, fake = images(args.images, args.size, 0), images(args.images, args.size, 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CMBENCH_CACHE"] = folder  # a cached reference would spare us half of the work
        weights = args.weights or random_weights(Path(folder) / "inception.pth")
        contenders: dict[str, Callable[[], dict[str, float]]] = {
            "torch-fidelity": lambda: run_theirs(fake, real, weights, args),
            "cmbench float32": lambda: run_ours(fake, real, weights, args, "float32", False),
            "cmbench bf16": lambda: run_ours(fake, real, weights, args, "bf16", False),
        }
        if args.device.startswith("cuda"):
            contenders["cmbench tf32"] = lambda: run_ours(fake, real, weights, args, "tf32", False)
        if args.compile:
            contenders["float32, compiled"] = lambda: run_ours(fake, real, weights, args, "float32", True)
            contenders["bf16, compiled"] = lambda: run_ours(fake, real, weights, args, "bf16", True)
        rows = {}
        print(
            f"{args.images} + {args.images} images, {args.size} pixels, {args.device}, {args.threads} threads"
        )
        heads = ("seconds", "features", "metrics", "images/s", "FID", "IS", "P", "R")
        print(" " * 26 + "".join(f"{head:>10}" for head in heads))
        for name, run in contenders.items():
            if name in args.skip:
                continue
            gc.collect()
            row = rows[name] = run()
            row["rate"] = 2 * args.images / row["seconds"]
            keys = ("seconds", "features", "metrics", "rate", "fid", "is", "precision", "recall")
            cells = [
                f"{row[key]:10.{1 if n < 4 else 5}f}" if key in row else " " * 10
                for n, key in enumerate(keys)
            ]
            print(f"{name:26}{''.join(cells)}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"settings": vars(args) | {"json": str(args.json)}, "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
