"""``cmbench doctor``: what this machine has, what it lacks, and how to get each."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmbench import environment, registry
from cmbench.errors import CmbenchError
from cmbench.paths import cache_dir

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = (
    "torch",
    "torchvision",
    "torch-fidelity",
    "clean-fid",
    "lpips",
    "pandas",
    "matplotlib",
    "scikit-learn",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    ``state`` is ``ok``, ``missing``, or ``note`` for a plain fact; ``detail`` says where it is or how to get it.
    """

    topic: str
    item: str
    state: str
    detail: str


def examine(data: Path | None, weights: Path | None) -> list[Finding]:
    """Look for everything; downloads nothing and reads no large file."""
    return [*_packages(), *_devices(), *_datasets(data), *_weights(weights), *_references()]


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        installed = environment.package_version(name)
        found.append(
            Finding("package", name, "ok" if installed else "missing", installed or f"pip install {name}")
        )
    return found


def _devices() -> list[Finding]:
    import torch

    processor = environment.device_name(torch.device("cpu"))
    found = [Finding("device", "cpu", "ok", processor)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            found.append(Finding("device", f"cuda:{index}", "ok", f"{name}, {memory:.0f} GiB"))
    else:
        found.append(
            Finding("device", "cuda", "missing", "no GPU that torch can use; everything runs on the CPU")
        )
    found.append(Finding("folder", "cache", "note", f"{cache_dir()} (CMBENCH_CACHE moves it)"))
    return found


def _datasets(data: Path | None) -> list[Finding]:
    found = []
    for name in registry.names("data set"):
        spec = registry.load("data set", name)
        try:
            where = spec.locate(data)
        except CmbenchError as error:
            found.append(Finding("data set", name, "missing", str(error)))
            continue
        found.append(
            Finding("data set", name, "ok" if where else "missing", str(where) if where else spec.how_to_get)
        )
    return found


def _weights(given: Path | None) -> list[Finding]:
    from cmbench.metrics import extractors

    found = []
    for name in extractors.names():
        try:
            path = extractors.locate(extractors.definition(name), given, download=False)
            found.append(Finding("weights", name, "ok", str(path)))
        except CmbenchError as error:
            found.append(Finding("weights", name, "missing", str(error)))
    lpips = _lpips_backbone()
    found.append(
        Finding(
            "weights",
            "lpips (VGG16)",
            "ok" if lpips.exists() else "missing",
            str(lpips)
            if lpips.exists()
            else f"downloaded on first use from torchvision, or put vgg16-397923af.pth into {lpips.parent}",
        )
    )
    return found


def _lpips_backbone() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"


def _references() -> list[Finding]:
    from cmbench.metrics import protocols, references

    found = []
    for name in protocols.names():
        for dataset, spec in protocols.get(name).references.items():
            if spec.file is None:
                continue
            path = references.kept_at(spec.file)
            how = f"put {spec.url} into {path.parent}"
            if spec.rebuild:
                how += "; else computed from the training images, which the record says"
            found.append(
                Finding(
                    "reference",
                    f"{name} on {dataset}",
                    "ok" if path.exists() else "missing",
                    str(path) if path.exists() else how,
                )
            )
    return found


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def as_table(findings: list[Finding]) -> "Table":
    """The findings for a terminal."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "missing": "yellow", "note": "dim"}
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "", "state", "where, or how to get it"):
        made.add_column(name, overflow="fold")
    previous = ""
    for f in findings:
        made.add_row(
            f.topic if f.topic != previous else "", f.item, Text(f.state, colours[f.state]), Text(f.detail)
        )
        previous = f.topic
    return made
