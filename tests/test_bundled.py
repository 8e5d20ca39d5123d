"""The networks that come with the package serve at once: no data set, no download, no training."""

import json
from pathlib import Path

import pytest
from commands import Commands
from safetensors import safe_open

from cmbench import checkpoints
from cmbench.metrics import protocols, references
from cmbench.workshop import SHIPPED

CIFAR10 = sorted(SHIPPED.glob("cifar10-*.safetensors"))


def test_cifar10_networks_are_few_bytes_and_say_that_they_are_rounded() -> None:
    heads = {(one.header.method, one.header.variant): one.header for one in map(checkpoints.load, CIFAR10)}
    assert sorted("-".join(head).strip("-") for head in heads) == [
        "cd",
        "ct",
        "ect",
        "edm",
        "pd-1",
        "pd-2",
        "pd-4",
    ]
    assert sum(path.stat().st_size for path in CIFAR10) <= 12e6
    for path, head in zip(CIFAR10, map(checkpoints.load, CIFAR10), strict=True):
        assert "weights rounded to bf16" in head.header.notes
        with safe_open(path, framework="pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_the_statistics_of_cifar10_come_with_the_package() -> None:
    spec = protocols.get("cifar10-resnet").references["cifar10"]
    assert spec.file is not None
    known, _ = references.read(references.kept_at(spec.file))
    layer = known.layers["cifar10-resnet/features"]
    assert layer.count == 50_000 and layer.features is not None and layer.features.shape == (10_000, 96)


@pytest.mark.slow
def test_cifar10_is_measured_without_its_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No images, no training, no download, and the students far ahead of their teacher at few evaluations."""
    monkeypatch.chdir(tmp_path)
    chosen = ("--method", "cd", "pd", "ct", "ect", "ddim", "--nfe", 1, 2, "--samples", 250)
    ran = Commands(capsys)("run", "--dataset", "cifar10", *chosen, "--offline", "--json")
    assert ran.status == 0, ran.error
    found = {(one["method"], one["nfe"]): one["metrics"] for one in json.loads(ran.out)}
    assert not list(tmp_path.glob("**/checkpoints/*.safetensors"))  # nothing was trained
    distance = {name: metrics["fid"]["value"] for name, metrics in found.items()}
    assert distance["cd", 2] < distance["cd", 1] < 7 < distance["ddim", 2] < distance["ddim", 1]
    assert distance["pd", 1] < 7 < distance["ect", 1] < distance["ct", 1]
