"""A results folder for the tests of the HTML report: two data sets, previews, a figure, experiments, hostile names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from report_factory import record

from cmbench import records
from cmbench.editing.records import Cell, Editing, Task
from cmbench.experiments.manifest import Arm, Manifest, Point, write
from cmbench.records import Metric, Record, record_path
from cmbench.report.grid import preview_path, write_preview

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src="http://example.org/x.png" onerror="window.hacked = 2">'
    "\"'&amp;{{ 7 * 7 }}\u2028<!--"
)
"""Would run as a script, load a picture, end an attribute or a comment, or be taken for a template."""

TITLES = {"fid": "FD-digits", "is": "IS-digits", "recall": "Rec-digits"}


def measured() -> list[Record]:
    """CD, PD and DDIM on digits with three seeds; EDM on CIFAR-10 with the Inception FID, beside published rows."""
    made = []
    for method, nfe, base in [
        ("cd", 1, 0.6), ("cd", 2, 0.4), ("pd", 1, 0.9), ("pd", 2, 0.8), ("ddim", 10, 0.5), ("ddim", 20, 0.2)
    ]:  # fmt: skip
        for seed in range(3):
            figures = {
                "fid": Metric(base + 0.01 * seed, 0.05),
                "is": 9 - base - 0.1 * seed,
                "recall": 0.1 * nfe**0.5,
            }
            made.append(
                replace(
                    record(
                        method, nfe, seed, figures, dataset="digits", samples=5000, protocol="digits", titles=TITLES,
                        recipe={"points": 18, "fit": {"steps": 400}}, preset="quick",
                    ),
                    cost={"training_seconds": 100.0 * nfe, "sampling_seconds": 2.0, "images_per_second": 2500 / nfe},
                    environment={
                        "commit": "0123456789ab", "device": "Test CPU, 1 threads", "python": "3.11.7",
                        "versions": {"torch": "2.9"}, "time": "2026-01-02T03:04:05+00:00",
                    },
                    checkpoint="ab" * 32,
                    notes=("a note",),
                )
            )  # fmt: skip
    return [*made, record("edm", 35, 0, {"fid": 2.1, "is": 9.8})]


def hostile() -> list[Record]:
    """A system made elsewhere whose every name is hostile, and which nothing is known of."""
    made = record(
        "score", 4, 0, {"fid": 1.5}, dataset="digits", samples=5000, protocol="digits", titles=TITLES
    )
    return [replace(made, label=HOSTILE, group=HOSTILE, reference=HOSTILE, notes=(HOSTILE,))]


def folder(out: Path, made: Sequence[Record]) -> Path:
    """Write the records, a preview of each on digits, and a figure."""
    for one in made:
        records.write(out, one)
        if one.dataset == "digits":
            noise = np.random.default_rng([one.seed, one.nfe, len(one.method)])
            write_preview(preview_path(out / "previews", one), noise.integers(0, 256, (64, 8, 8), np.uint8))
    (out / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40), "white").save(out / "figures" / "nfe-digits.png")
    return out


def experiments(out: Path, made: Sequence[Record], name: str = "CD") -> None:
    """Two manifests: curves over a training, and over evaluations of finished checkpoints."""
    arms = []
    for place, metric in enumerate(("l1", "l2")):
        points = []
        for step in (100, 200, 300):
            for seed in range(2):
                value = {"fid": 5 / (place + 1) + 100 / step + 0.1 * seed}
                one = record(
                    "cd",
                    1,
                    seed,
                    value,
                    dataset="digits",
                    protocol="digits",
                    titles=TITLES,
                    step=step,
                    metric=metric,
                )
                path = record_path(out / "experiments", one)
                records.write(out / "experiments", one)
                points.append(Point(step, 1, seed, path.relative_to(out).as_posix()))
        arms.append(Arm(metric, f"{name}, {metric}", "cd", {"cd.metric": metric}, tuple(points)))
    write(
        out,
        Manifest(
            "fig3a",
            "Metric functions",
            "Figure 3 (a)",
            "digits",
            "step",
            "fid",
            tuple(arms),
            {"preset": "quick"},
        ),
    )
    final = [
        Point(None, one.nfe, one.seed, record_path(out, one).relative_to(out).as_posix())
        for one in made
        if one.method == "cd" and one.dataset == "digits"
    ]
    arm = Arm("cd", "CD", "cd", points=tuple(final), failures=("NFE 8: it could not be made",))
    write(out, Manifest("fig4", "Against evaluations", "Figure 4", "digits", "nfe", "fid", (arm,)))


def edited(name: str = "CD") -> Editing:
    """Inpainting and denoising on digits: CD and DDIM with two seeds, the mean image, the originals."""
    cells = []
    for task in ("inpaint", "denoise"):
        for kind, method, label, base in (
            ("consistency", "cd", name, 10.0), ("diffusion", "ddim", "DDIM", 12.0)
        ):  # fmt: skip
            for nfe in (1, 5):
                for seed in (0, 1):
                    figures = {"psnr": base + nfe + seed, "frechet": base / nfe, "given_max": 0.25 * seed}
                    cells.append(_cell(task, kind, method, label, nfe, seed, figures))
        cells.append(
            _cell(task, "baseline", "mean", "mean of the data", 0, 0, {"psnr": 9.0, "frechet": 40.0})
        )
        cells.append(_cell(task, "truth", "truth", "the originals", 0, 0, {"frechet": 0.1}))
    tasks = tuple(
        Task(task, task.title(), f"as {task} is set", "a.png", "b.png") for task in ("inpaint", "denoise")
    )
    environment = {"commit": "abcdef012345", "device": "Test CPU, 1 threads", "versions": {"torch": "2.9"}}
    titles = {"frechet": "FD-digits", "features": "digits-cnn"}
    return Editing(
        "digits", name if name != "CD" else "Digits", 10, "10 of 50 images", "identity", titles,
        {"lpips": f"no weights {name}"}, tasks, tuple(cells), environment,
    )  # fmt: skip


def _cell(
    task: str, kind: str, method: str, label: str, nfe: int, seed: int, figures: Mapping[str, float]
) -> Cell:
    return Cell(
        f"{task}{method}{nfe}{seed}", task, kind, method, label, nfe, float(nfe), seed, 1.0, figures, "c.png"
    )
