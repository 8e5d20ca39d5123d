"""Training throughput of recipes on this machine: images/s, the share of its limit, where the time goes.

    python benchmarks/training.py --preset gpu                      # every method, on the GPU where there is one
    python benchmarks/training.py --preset quick --methods edm --precision off bf16 --threads 1

Runs the loop that trains, on random images and with a teacher of random weights: neither is what takes the time. FLOP
are those of convolutions and products as they are written, forward and backward, a multiplication and an addition
counting two; the limit is the rate of a matrix product in the same precision on the same device. On one thread of a CPU
the clock is that of the process: what one core does, whatever else the machine is at. Prints Markdown.
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import describe, markdown, matmul_rate, timed
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cmbench import methods, recipes
from cmbench.data.base import ArraySource, ImageData
from cmbench.errors import UsageError
from cmbench.methods import Method, Model, TrainJob
from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine
from cmbench.networks import build
from cmbench.recipes import Common
from cmbench.session import choose_device
from cmbench.training.loop import Progress

SHAPE = (3, 32, 32)
WARM = 20  # steps before the clock starts; the loop reports every 20
PARTS = {  # in this order: what an operator or a kernel is, by its name
    "optimiser and EMA": r"adam|foreach|multi_tensor|lerp",
    "convolutions and products": (
        r"conv|cudnn|gemm|xmma|cutlass|nvjet|\bmm\b|addmm|bmm|dgrad|wgrad|fprop|attention|flash"
    ),
    "norms": r"norm",
    "fused by the compiler": r"triton|cpp_fused",
    "copies and casts": r"copy|_to_|memcpy|contiguous|clone|nchw|nhwc|transpose|\bcat\b",
    "elementwise and the rest": r"",
}


@dataclass(frozen=True)
class Setup:
    """What is measured: the recipes and the device."""

    common: Common
    preset: str
    device: torch.device
    folder: Path

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, of the process where it is all that computes."""
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time if alone else time.perf_counter

    def recipe(self, method: Method, **fit: Any) -> Any:
        """The preset of a method, its optimisation changed."""
        made = recipes.load(method.recipe, method.package, "cifar10", method.name, self.preset, {})
        if getattr(made, "metric", "") == "lpips":
            made = replace(made, metric="l2")  # the weights of LPIPS may not be here
        return replace(made, fit=replace(made.fit, **fit))

    def train(
        self, method: Method, recipe: Any, report: Callable[[Progress], None] = lambda _: None
    ) -> torch.nn.Module:
        """Train as `cmbench train` does, from nothing."""
        variant = str(recipe.start) if hasattr(recipe, "start") else ""
        parent = method.parent(variant, recipe)
        teacher = build(self.common.network, SHAPE, 10).to(self.device).to(memory_format=torch.channels_last)
        state = self.folder / "state"
        state.unlink(missing_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (10_000, *SHAPE), np.uint8)
        job = TrainJob(
            recipe=recipe, images=ImageData("cifar10", "random pixels", ArraySource(pixels)),
            network=self.common.network, classes=0, noise=self.common.noise, seed=0, device=self.device,
            state=state, report=report, variant=variant,
            teacher=teacher.eval().requires_grad_(False) if parent else None,
        )  # fmt: skip
        assert method.train is not None
        return method.train(job)


def flop_per_image(setup: Setup, method: Method) -> float:
    """Of one training step, on two images."""
    with FlopCounterMode(display=False) as counter:
        setup.train(method, setup.recipe(method, steps=1, batch_size=2, compile=False, autocast="off"))
    return counter.get_total_flops() / 2


@dataclass(frozen=True)
class Speed:
    """Of one training: images/s, and on a GPU the most bytes held."""

    rate: float
    peak: int | None


def throughput(setup: Setup, method: Method, recipe: Any) -> Speed:
    """Of the steps after the first 20: the loop waits for the device when it reports."""
    marks: list[tuple[int, float]] = []

    def report(now: Progress) -> None:
        marks.append((now.step, setup.clock()))

    if on_gpu := setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    setup.train(method, recipe, report)
    peak = torch.cuda.max_memory_allocated(setup.device) if on_gpu else None
    (first, began), (last, ended) = marks[0], marks[-1]
    return Speed((last - first) * recipe.fit.batch_size / (ended - began), peak)


@contextmanager
def layout(channels_last: bool) -> Iterator[None]:
    """The loop lays images out as channels_last; without it, as torch does by default."""
    with (
        nullcontext() if channels_last else mock.patch.object(torch, "channels_last", torch.contiguous_format)
    ):
        yield


def where(setup: Setup, method: Method, recipe: Any, rows: int) -> None:
    """Profile the last 20 steps of a training and print operators (on a GPU, kernels) and parts by their own time."""
    on_gpu = setup.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    made = profile(activities=activities)
    began = 0.0

    def report(now: Progress) -> None:
        nonlocal began
        if now.step == recipe.fit.steps - 20:
            made.start()
            began = time.perf_counter()
        elif now.step == recipe.fit.steps:
            began = time.perf_counter() - began
            made.stop()

    setup.train(method, recipe, report)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [one for one in made.key_averages() if one.device_type == kind and getattr(one, own) > 0]
    events.sort(key=lambda one: -getattr(one, own))
    total = sum(getattr(one, own) for one in events)
    print(f"\n{total / 1e6 / began:.0%} of the time of these 20 steps is in operators of the device.\n")
    parts = dict.fromkeys(PARTS, 0.0)
    for one in events:
        parts[part(one.key)] += getattr(one, own)
    print(markdown(["part", "share"], [[name, f"{value / total:.0%}"] for name, value in parts.items()]))
    print()
    table = [
        [f"`{one.key[:80]}`", f"{getattr(one, own) / total:.1%}", str(one.count)] for one in events[:rows]
    ]
    print(markdown(["operator", "share", "calls"], table))


def part(name: str) -> str:
    """Which of the parts an operator belongs to."""
    return next(key for key, pattern in PARTS.items() if re.search(pattern, name.lower()))


def sampling(setup: Setup, method: Method, nfe: int) -> float:
    """Images/s of a sampler with an untrained network, in float32 as records are sampled."""
    network = build(setup.common.network, SHAPE, 10).to(setup.device).to(memory_format=torch.channels_last)
    model = Model(network.eval().requires_grad_(False), setup.common.noise)
    sample = method.sampler(model, setup.recipe(method), nfe)
    noise = torch.randn(setup.common.batch_size, *SHAPE, device=setup.device)

    def run() -> None:
        with torch.no_grad():
            sample(noise, None, None).sum().item()  # type: ignore[arg-type]

    return len(noise) / timed(run, repeat=2 if nfe == 1 else 1, clock=setup.clock)[0]


def evaluation(setup: Setup) -> float:
    """Images/s through the extractors of the preset's protocol and its accumulators."""
    engine = Engine.open(protocols.get(setup.common.protocol), device=setup.device, download=False)
    images = torch.randint(256, (setup.common.batch_size, *SHAPE), dtype=torch.uint8, device=setup.device)

    def run() -> None:
        shard = engine.shard()
        engine.update(shard, images, 0)
        engine.flush(shard)

    run()
    return len(images) / timed(run, repeat=2, clock=setup.clock)[0]


def main() -> None:
    """Measure what the options name and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--methods", nargs="+", default=["edm", "cd", "ct", "pd", "ect"])
    parser.add_argument("--precision", nargs="+", choices=["off", "bf16"], help="by default the recipe's")
    parser.add_argument("--compile", nargs="+", choices=["off", "on", "reduce-overhead"], help="likewise")
    parser.add_argument("--layout", nargs="+", default=["channels_last"], choices=["channels_last", "nchw"])
    parser.add_argument("--batch-size", type=int, help="likewise")
    parser.add_argument("--steps", type=int, default=60, help="of each training, the first 20 untimed")
    parser.add_argument(
        "--rows", type=int, default=15, help="operators shown of the profile; 0 leaves it out"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.steps < 2 * WARM or given.steps % WARM:
        raise UsageError("--steps: a multiple of 20, at least 40")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    on_gpu = device.type == "cuda"
    common = recipes.load(Common, "cmbench", "cifar10", "common", given.preset, {})
    compiled = {"off": False, "on": True, "reduce-overhead": "reduce-overhead"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(common, given.preset, device, Path(folder))
        size = 8192 if on_gpu else 2048
        limits = {
            "off": matmul_rate(torch.float32, size, setup.clock, device),
            "bf16": matmul_rate(torch.bfloat16, size, setup.clock, device),
        }
        print(f"{torch.cuda.get_device_name(device) + ', ' if on_gpu else ''}{describe()}\n")
        print(f"preset {given.preset}: {dict(common.network)}")
        print(
            f"matrix product: float32 {limits['off'] / 1e12:.3g}, bf16 {limits['bf16'] / 1e12:.3g} TFLOP/s\n"
        )
        for name in given.methods:
            method = methods.get(name)
            fit = setup.recipe(method).fit
            flop = flop_per_image(setup, method)
            for precision, compile_, order in itertools.product(
                given.precision or [fit.autocast], given.compile or [None], given.layout
            ):
                changed = {"steps": given.steps, "checkpoint_every": given.steps, "autocast": precision}
                changed["batch_size"] = given.batch_size or fit.batch_size
                changed["compile"] = fit.compile if compile_ is None else compiled[compile_]
                recipe = setup.recipe(method, **changed)
                if hasattr(recipe, "last_factor"):
                    recipe = replace(recipe, last_factor=1)
                torch.compiler.reset()  # what other settings have compiled counts towards torch's limit
                with layout(order == "channels_last"):
                    speed = throughput(setup, method, recipe)
                settings = [recipe.fit.batch_size, precision, recipe.fit.compile, order]
                rows.append(
                    [
                        f"{name}, batch {settings[0]}, autocast {settings[1]}, compile {settings[2]}, {settings[3]}",
                        f"{speed.rate:,.0f}",
                        f"{flop / 1e9:.3g}",
                        f"{speed.rate * flop / 1e12:.3g}",
                        f"{speed.rate * flop / limits[precision]:.0%}",
                        "-" if speed.peak is None else f"{speed.peak / 2**30:.2f}",
                    ]
                )
        heads = ["training", "images/s", "GFLOP/image", "TFLOP/s", "of the matrix product", "GiB at most"]
        print(markdown(heads, rows))
        print()
        for name, nfe in (("cd", 1), ("edm", 35)):  # the first also warms up
            rate = sampling(setup, methods.get(name), nfe)
            print(
                f"sampling, {name}, NFE {nfe}, float32, batches of {common.batch_size}: {rate:,.1f} images/s"
            )
        print(f"features of protocol {common.protocol}: {evaluation(setup):,.0f} images/s")
        if given.rows:
            method = methods.get(given.methods[0])
            print(f"\nProfile: {rows[0][0]}")
            fit = setup.recipe(method).fit
            recipe = setup.recipe(
                method,
                steps=2 * WARM,
                checkpoint_every=2 * WARM,
                batch_size=given.batch_size or fit.batch_size,
            )
            where(setup, method, recipe, given.rows)


if __name__ == "__main__":
    main()
