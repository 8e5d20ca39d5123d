"""Final FIDs against clean-fid's: its files, resizing, extractors, moments and distance, with one set of weights.

clean-fid's Inception for the modes ``clean`` and ``legacy_tensorflow`` is a TorchScript archive that cannot always be
fetched. In its place stands torch-fidelity's network with this suite's weights, behind clean-fid's own class name;
``legacy_pytorch`` runs clean-fid's own network. All else is clean-fid's code.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from seeded_inception import varied_images
from torch import Tensor, nn

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import file_hash
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.moments import Moments
from cmbench.metrics.protocols import ExtractorSpec, metric

Features = NDArray[np.float32]

cleanfid = pytest.importorskip("cleanfid.fid")
features = pytest.importorskip("cleanfid.features")

MODES = {
    "clean": "pil-bicubic",
    "legacy_tensorflow": "tf1-bilinear",
    "legacy_pytorch": "half-pixel-bilinear",
}


class StandIn(nn.Module):
    """The interface of clean-fid's ``InceptionV3W``: floats in 0 .. 255 to pool_3, resized inside or before."""

    weights: Path

    def __init__(self, path: str, download: bool = True, resize_inside: bool = False) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(self.weights)
        )
        self.resize_inside = resize_inside

    def forward(self, x: Tensor) -> Tensor:
        if self.resize_inside:
            whole = x.round()
            assert (
                float((x - whole).abs().max()) < 1e-3
            )  # clean-fid's reader divides by 255 and multiplies again
            return self.network(whole.to(torch.uint8))[0]
        assert x.shape[2:] == (299, 299)
        # Images of 299 pixels pass torch-fidelity's resizing unchanged; floats enter behind its check for uint8.
        hook = self.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: ((x - 128) / 128,))
        try:
            return self.network(torch.zeros(x.shape, dtype=torch.uint8))[0]
        finally:
            hook.remove()


def folder(path: Path, images: Tensor) -> str:
    path.mkdir()
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(path / f"{index:03d}.png")
    return str(path)


def theirs(path: str, mode: str) -> Features:
    network = features.build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False)
    found: Features = cleanfid.get_folder_features(
        path, network, num_workers=0, batch_size=8, device=torch.device("cpu"), mode=mode, verbose=False
    )
    return found


def exact(x: Features, y: Features) -> float:
    """Fréchet distance of fewer samples than dimensions: the trace of the root is a nuclear norm of n x m."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root)


def ours(weights: Path, mode: str, fake: Tensor, real: Tensor) -> tuple[float, Features]:
    """FID of the engine, and the features of the samples."""
    name = "inception-v3"
    protocol = dataclasses.replace(
        protocols.get("clean"),
        extractors=(ExtractorSpec(name, file_hash(weights), MODES[mode]),),
        metrics=(metric("frechet", name, "pool3", "FID"),),
        references={"*": protocols.ReferenceSpec("training set")},
    )
    engine = Engine.open(protocol, weights=weights, batch_size=8)
    shard = engine.shard()
    engine.update(shard, fake, 0)
    engine.flush(shard)
    data = ImageData(f"real {mode}", "Real", ArraySource(real.numpy()))
    value = engine.compute(shard, engine.reference(data))["fid"].value
    assert value is not None
    return value, shard.layers[f"{name}/pool3"].rows()


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 310])
@pytest.mark.parametrize("mode", MODES)
def test_the_final_fid_is_cleanfids(
    mode: str, size: int, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn.weights = inception_weights
    state = torch.load(inception_weights, weights_only=True)
    monkeypatch.setattr(features, "InceptionV3W", StandIn)
    monkeypatch.setattr("cleanfid.inception_pytorch.load_state_dict_from_url", lambda *args, **kwargs: state)
    fake = varied_images(12, size, seed=20)
    real = (varied_images(14, size, seed=21) * 0.5 + 90).to(torch.uint8)
    x, y = theirs(folder(tmp_path / "fake", fake), mode), theirs(folder(tmp_path / "real", real), mode)
    value, rows = ours(inception_weights, mode, fake, real)
    # In all 2048 dimensions clean-fid's root of a singular product has no five digits: its features and moments
    # go through the closed form for few samples.
    assert value == pytest.approx(exact(x, y), rel=1e-5)
    assert value > 1

    # In six directions the covariances are regular, and clean-fid's own distance has all its digits.
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((2048, 6)))[0]
    try:
        expected = cleanfid.fid_from_feats(x @ turn, y @ turn)
    except TypeError as error:
        pytest.skip(f"this scipy no longer has what clean-fid calls: {error}")
    moments = []
    for z in (y, rows):
        moments.append(Moments(6))
        moments[-1].update(z @ turn)
    known, made = moments
    found = frechet_distance(known.mean, known.covariance(), made.mean, made.covariance())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_modes_differ(inception_weights: Path) -> None:
    """The comparison above would be empty if resizing moved nothing."""
    fake, real = varied_images(6, 32, seed=20), varied_images(7, 32, seed=21)
    values = [ours(inception_weights, mode, fake, real)[0] for mode in MODES]
    assert min(abs(a - b) / a for i, a in enumerate(values) for b in values[i + 1 :]) > 1e-3
