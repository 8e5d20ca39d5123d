"""The ``adm`` protocol against the evaluator's definitions, recomputed directly in float64."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seeded_inception import varied_images

from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import file_hash
from cmbench.records import Metric

Features = NDArray[np.float64]


def layers(weights: Path, images: torch.Tensor) -> dict[str, Features]:
    """pool_3, mixed_6/conv[..., :7] and the class scores without bias, of torch-fidelity's network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    kept: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.inference_mode():
        pool3, logits = network(images)
    spatial = kept[0].permute(0, 2, 3, 1)[..., :7].flatten(1)
    named = {"pool3": pool3, "logits": logits, "spatial": spatial}
    return {name: features.double().numpy() for name, features in named.items()}


def frechet(x: Features, y: Features) -> float:
    """Fréchet distance of fewer samples than dimensions: the trace of the root is a nuclear norm of n x m."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root)


def manifold(points: Features, k: int) -> NDArray[np.float64]:
    """Squared distance of each point to its k-th neighbour."""
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.sort(distances, 1)[:, k]


def inside(queries: Features, points: Features, k: int) -> float:
    """Share of queries within any point's ball."""
    distances = ((queries[:, None] - points[None]) ** 2).sum(-1)
    return float((distances <= manifold(points, k)).any(1).mean())


def score(logits: Features, size: int) -> float:
    """Inception Score over consecutive chunks."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    chunks = [p[start : start + size] for start in range(0, len(p), size)]
    return float(np.mean([np.exp((c * (np.log(c) - np.log(c.mean(0)))).sum(1).mean()) for c in chunks]))


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return varied_images(14, 64, seed=12)


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    return (varied_images(16, 64, seed=13).float() * 0.9 + 10).to(torch.uint8)


@pytest.fixture(scope="module")
def ours(
    inception_weights: Path,
    samples: torch.Tensor,
    real: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Metric]:
    """Figures of the engine against a reference batch in ADM's format, whose images are 12 of its 16."""
    expected = layers(inception_weights, real)
    path = tmp_path_factory.mktemp("reference") / "VIRTUAL_test.npz"
    np.savez(
        path,
        mu=expected["pool3"].mean(0),
        sigma=np.cov(expected["pool3"], rowvar=False),
        mu_s=expected["spatial"].mean(0),
        sigma_s=np.cov(expected["spatial"], rowvar=False),
        arr_0=real[:12].permute(0, 2, 3, 1).numpy(),
    )
    adm = protocols.get("adm")
    metrics = tuple(
        dataclasses.replace(m, settings={**m.settings, "split_size": 5}) if "split_size" in m.settings else m
        for m in adm.metrics
    )
    named = tuple(dataclasses.replace(spec, weights=file_hash(inception_weights)) for spec in adm.extractors)
    protocol = dataclasses.replace(adm, metrics=metrics, extractors=named).with_reference(path)
    engine = Engine.open(protocol, weights=inception_weights, batch_size=8)
    shard = engine.shard()
    engine.update(shard, samples, 0)
    return engine.compute(shard, engine.reference(None))


@pytest.mark.slow
def test_every_figure_is_what_its_definition_gives(
    ours: dict[str, Metric], inception_weights: Path, samples: torch.Tensor, real: torch.Tensor
) -> None:
    x, y = layers(inception_weights, samples), layers(inception_weights, real)
    expected = {
        "fid": frechet(x["pool3"], y["pool3"]),
        "sfid": frechet(x["spatial"], y["spatial"]),
        "is": score(x["logits"], 5),
        "precision": inside(x["pool3"], y["pool3"][:12], 3),
        "recall": inside(y["pool3"][:12], x["pool3"], 3),
    }
    for key, value in expected.items():
        assert ours[key].value == pytest.approx(value, rel=1e-5), key
    assert 0 < expected["precision"] + expected["recall"] < 2


@pytest.mark.slow
def test_figures_say_that_the_samples_are_few(ours: dict[str, Metric]) -> None:
    assert "14 samples; the protocol asks for 50000" in (ours["fid"].note or "")
    assert "14 samples in 2048 dimensions" in (ours["fid"].note or "")
