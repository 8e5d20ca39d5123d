"""The Fréchet distance on CIFAR-10: small between halves, larger for worse copies, and its bias removed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmbench.data import open_dataset
from cmbench.metrics.extractors import open_network
from scripts.study_cifar10 import QUALITIES, Pixels, Study, halves, resnet56, study

IMAGES = 3000  # of each half


@pytest.fixture(scope="module")
def images() -> tuple[Pixels, Pixels]:
    folder = os.environ.get("CMBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CMBENCH_TEST_DATA names no folder with cifar-10-batches-bin/")
    data = open_dataset("cifar10", Path(folder), download=False)
    return halves(data.read(np.arange(len(data))), IMAGES)


def resnet56_file() -> Path:
    """The published weights: in the folder that CMBENCH_TEST_EXTRACTORS names, or beside the test data."""
    given = os.environ.get("CMBENCH_TEST_EXTRACTORS")
    data = os.environ.get("CMBENCH_TEST_DATA")
    folder = Path(given) if given else Path(data or ".") / "extractors"
    path = folder / "resnet56-4bfd9763.th"
    if not path.is_file():
        pytest.skip(f"CMBENCH_TEST_EXTRACTORS names no folder with {path.name}, nor is it at {path}")
    return path


@pytest.fixture(scope="module", params=["cifar10-resnet", "ResNet-56"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return open_network("cifar10-resnet") if request.param == "cifar10-resnet" else resnet56(resnet56_file())


@pytest.fixture(scope="module")
def found(network: nn.Module, images: tuple[Pixels, Pixels]) -> Study:
    return study(network, *images)


@pytest.mark.slow
def test_the_network_is_the_one_that_it_should_be(network: nn.Module, images: tuple[Pixels, Pixels]) -> None:
    data = open_dataset("cifar10", Path(os.environ["CMBENCH_TEST_DATA"]), download=False)
    with torch.inference_mode():
        made = network(torch.from_numpy(data.read(np.arange(200))))["logits"].argmax(1).numpy()
    assert data.labels is not None and (made == data.labels[:200]).mean() > 0.9


@pytest.mark.slow
def test_halves_are_as_near_as_two_samples_of_one_distribution(found: Study) -> None:
    assert found.halves == pytest.approx(found.floor, rel=0.5)


@pytest.mark.slow
def test_worse_copies_are_further_away(found: Study) -> None:
    values = [found.compressed[quality] for quality in (100, *QUALITIES)]
    assert values == sorted(values)
    assert values[1] > 1.3 * values[0] and values[-1] > 20 * values[0]


@pytest.mark.slow
def test_extrapolation_removes_what_the_number_of_samples_adds(found: Study) -> None:
    plain, extrapolated = np.array(list(found.sizes.values())).T
    assert plain[0] > 2 * plain[-1]
    assert np.ptp(extrapolated) < 0.5 * np.ptp(plain)
