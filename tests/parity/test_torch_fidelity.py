"""The engine against torch-fidelity on the same features: our digits network inside theirs."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.data.digits import DIGITS
from cmbench.metrics import fidelity, protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.protocols import ReferenceSpec, metric
from cmbench.records import Metric

torch_fidelity = pytest.importorskip("torch_fidelity")


class Images(Dataset[torch.Tensor]):
    """uint8 [3, H, W], as torch-fidelity takes them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    return torch.from_numpy(DIGITS.load(None, False).read(np.arange(0, 1797, 2)))


@pytest.fixture(scope="module")
def fake() -> torch.Tensor:
    """Digits that the reference does not hold, blurred."""
    images = torch.from_numpy(DIGITS.load(None, False).read(np.arange(1, 1401, 2))).float()
    return (0.7 * images + 0.3 * torch.nn.functional.avg_pool2d(images, 3, 1, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def theirs(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    fidelity.register()
    result: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, batch_size=64, save_cpu_ram=True, verbose=False,
        cache=False, feature_extractor="cmbench-digits", isc=True, fid=True, kid=True, prc=True,
        kid_subset_size=200,
    )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def ours(
    real: torch.Tensor, fake: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Metric]:
    name, layer = "digits-cnn", "features"
    protocol = dataclasses.replace(
        protocols.get("digits"),
        metrics=(
            metric("frechet", name, layer, "FD"),
            metric("inception-score", name, "logits", "IS", splits=10, shuffle_seed=2020),
            metric("precision-recall", name, layer, "P", "R"),
            metric("kid", name, layer, "KID", subset_size=200, seed=2020),
        ),
        references={"*": ReferenceSpec("half of the digits")},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        engine = Engine.open(protocol)
        shard = engine.shard()
        engine.update(shard, fake, 0)
        return engine.compute(shard, engine.reference(ImageData("half", "Half", ArraySource(real.numpy()))))


@pytest.mark.parametrize(
    ("figure", "their_name", "tolerance"),
    [
        ("fid", "frechet_inception_distance", 1e-5),
        ("is", "inception_score_mean", 1e-6),
        ("precision", "precision", 1e-7),
        ("recall", "recall", 1e-7),
        ("kid", "kernel_inception_distance_mean", 1e-5),
    ],
)
def test_figures_agree(
    ours: dict[str, Metric], theirs: dict[str, float], figure: str, their_name: str, tolerance: float
) -> None:
    assert ours[figure].value == pytest.approx(theirs[their_name], rel=tolerance, abs=1e-12)


def test_standard_deviations_agree(ours: dict[str, Metric], theirs: dict[str, float]) -> None:
    assert ours["is"].std == pytest.approx(theirs["inception_score_std"], rel=1e-5)
    assert ours["kid"].std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)


def test_registering_twice_is_harmless() -> None:
    fidelity.register()
    fidelity.register()
    assert set(fidelity.NAMES) <= set(torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY)
