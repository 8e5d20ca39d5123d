"""Our Inception against torch-fidelity's, torchmetrics' and clean-fid's, all with one set of weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_inception import varied_images
from torch import Tensor
from torch.utils.data import Dataset

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.metrics import protocols
from cmbench.metrics.backbones import VGG16
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import Extractor, file_hash, open_extractor
from cmbench.metrics.protocols import ExtractorSpec, metric
from cmbench.metrics.resizing import resize


def ours(weights: Path, resize_mode: str = "tf1-bilinear", precision: str = "float32") -> Extractor:
    return open_extractor(
        ExtractorSpec("inception-v3", file_hash(weights), resize_mode), weights=weights, precision=precision
    )


def theirs(weights: Path, images: Tensor) -> dict[str, Tensor]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    with torch.inference_mode():
        pool3, logits = network(images)
    return {"pool3": pool3, "logits_unbiased": logits}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [(32, 6), (64, 3), (299, 2), (320, 2)])
def test_features_are_torch_fidelitys(inception_weights: Path, size: int, count: int) -> None:
    images = varied_images(count, size, seed=3)
    found, expected = ours(inception_weights)(images), theirs(inception_weights, images)
    for layer, features in expected.items():
        assert relative(found[layer], features) < 1e-5, layer
    # The check would be empty if the network gave the same for all images.
    assert relative(expected["pool3"][:1], expected["pool3"][1:2]) > 0.05


@pytest.mark.slow
def test_spatial_features_are_the_first_branch_of_mixed_6(inception_weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = varied_images(2, 32, seed=4)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    kept: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.inference_mode():
        network(images)
    expected = (
        kept[0].permute(0, 2, 3, 1)[..., :7].reshape(2, -1)
    )  # height, width, channel, as TensorFlow has it
    found = ours(inception_weights)(images)["spatial"]
    assert found.shape == (2, 2023)
    assert relative(found, expected) < 3e-5


@pytest.mark.slow
def test_every_layer_is_that_of_the_plain_network(inception_weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = varied_images(18, 32, seed=12)  # a batch that is cut into several pieces, the last one short
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception_weights),
    )
    kept: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: kept.append(out))
    network.register_forward_hook(lambda module, args, out: kept.extend(out))
    with torch.inference_mode():
        network(images)
    spatial, pool3, logits = kept
    found = ours(inception_weights)(images)
    assert relative(found["spatial"], spatial.permute(0, 2, 3, 1)[..., :7].flatten(1)) < 1e-5
    assert relative(found["pool3"], pool3) < 1e-5
    assert relative(found["logits_unbiased"], logits) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_image_has_the_same_features_whatever_stands_beside_it(
    inception_weights: Path, precision: str
) -> None:
    network = ours(inception_weights, precision=precision)
    images = varied_images(18, 32, seed=13)
    others = images.clone()
    others[[0, 5, 17]] = varied_images(3, 32, seed=14)
    first, second = network(images), network(others)
    same = [i for i in range(18) if i not in (0, 5, 17)]
    for layer in first:
        assert torch.equal(first[layer][same], second[layer][same]), layer
        assert not torch.equal(first[layer][0], second[layer][0])


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.slow
def test_all_figures_are_torch_fidelitys(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_fidelity = pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("CMBENCH_CACHE", str(tmp_path))
    fake = varied_images(16, 32, seed=5)
    real = (varied_images(20, 32, seed=6) * 0.9 + 10).to(torch.uint8)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, batch_size=8, save_cpu_ram=True, verbose=False,
        cache=False, feature_extractor="inception-v3-compat", feature_layer_prc="2048", isc=True, fid=True,
        kid=True, prc=True, kid_subset_size=10, isc_splits=2,
        feature_extractor_weights_path=str(inception_weights),
    )  # fmt: skip
    name, layer = "inception-v3", "pool3"
    protocol = dataclasses.replace(
        protocols.get("torch-fidelity"),
        extractors=(ExtractorSpec(name, file_hash(inception_weights), "tf1-bilinear"),),
        metrics=(
            metric("frechet", name, layer, "FID"),
            metric("inception-score", name, "logits_unbiased", "IS", splits=2, shuffle_seed=2020),
            metric("kid", name, layer, "KID", subset_size=10, seed=2020),
            metric("precision-recall", name, layer, "Precision", "Recall"),
        ),
    )
    engine = Engine.open(protocol, weights=inception_weights, batch_size=8)
    shard = engine.shard()
    engine.update(shard, fake, 0)
    found = engine.compute(shard, engine.reference(ImageData("real", "Real", ArraySource(real.numpy()))))
    assert found["fid"].value == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    # The Inception Score of equal class scores is the same to 1e-6. From the images on, float32 sums of another order
    # move the class scores, and with them the Inception Score of these sixteen images by 1.7e-6.
    from torch_fidelity.metric_isc import isc_features_to_metric

    scores = torch.from_numpy(shard.layers[f"{name}/logits_unbiased"].rows())
    given = isc_features_to_metric(scores, splits=2, shuffle=True, rng_seed=2020)
    assert found["is"].value == pytest.approx(given["inception_score_mean"], rel=1e-6)
    assert found["is"].std == pytest.approx(given["inception_score_std"], rel=1e-6)
    assert found["is"].value == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert found["is"].std == pytest.approx(expected["inception_score_std"], rel=1e-4)
    assert found["kid"].value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found["precision"].value == pytest.approx(expected["precision"], rel=1e-6)
    assert found["recall"].value == pytest.approx(expected["recall"], rel=1e-6)
    assert expected["inception_score_mean"] > 1.5
    assert 0 < expected["precision"] + expected["recall"] < 2


@pytest.mark.slow
def test_bf16_stays_near_and_is_not_the_default(inception_weights: Path) -> None:
    images = varied_images(4, 32, seed=7)
    exact, fast = ours(inception_weights)(images), ours(inception_weights, precision="bf16")(images)
    assert fast["pool3"].dtype == torch.float32
    assert 1e-5 < relative(fast["pool3"], exact["pool3"]) < 0.1
    assert all(protocols.get(name).precision == "float32" for name in protocols.names())


@pytest.mark.slow
def test_torchmetrics_agrees_without_its_antialiasing_and_not_with_it(inception_weights: Path) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    images = varied_images(3, 64, seed=8)
    pool3 = ours(inception_weights)(images)["pool3"]
    for antialias in (False, True):
        network = fid.NoTrainInceptionV3(
            name="inception-v3-compat", features_list=["2048"], antialias=antialias,
            feature_extractor_weights_path=str(inception_weights),
        )  # fmt: skip
        with torch.inference_mode():
            difference = relative(network(images), pool3)
        assert (difference < 1e-5) == (not antialias), difference


# --- clean-fid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 320])
@pytest.mark.parametrize(
    ("mode", "name"), [("pil-bicubic", "clean"), ("half-pixel-bilinear", "legacy_pytorch")]
)
def test_resizing_is_cleanfids(size: int, mode: str, name: str) -> None:
    cleanfid = pytest.importorskip("cleanfid.resize")
    images = varied_images(2, size, seed=9)
    expected = np.stack([cleanfid.build_resizer(name)(image) for image in images.permute(0, 2, 3, 1).numpy()])
    np.testing.assert_allclose(resize(images, 299, mode).permute(0, 2, 3, 1), expected, atol=1e-4)


@pytest.mark.slow
def test_legacy_pytorch_features_are_cleanfids(
    inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanfid = pytest.importorskip("cleanfid.inception_pytorch")
    state = torch.load(inception_weights, weights_only=True)
    monkeypatch.setattr(cleanfid, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = cleanfid.InceptionV3(output_blocks=[3], resize_input=False).eval()
    images = varied_images(2, 32, seed=10)
    with torch.inference_mode():
        expected = network(resize(images, 299, "half-pixel-bilinear") / 255)[0].flatten(1)
    assert relative(ours(inception_weights, "half-pixel-bilinear")(images)["pool3"], expected) < 1e-5


@pytest.mark.slow
def test_the_clean_protocol_uses_what_its_resizer_gives(inception_weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    cleanfid = pytest.importorskip("cleanfid.resize")
    images = varied_images(2, 40, seed=11)
    resized = np.stack(
        [cleanfid.build_resizer("clean")(image) for image in images.permute(0, 2, 3, 1).numpy()]
    )
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    # Images of 299 pixels pass torch-fidelity's resizing unchanged; floats enter behind its check for uint8.
    floats = torch.from_numpy(resized).permute(0, 3, 1, 2)
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: ((floats - 128) / 128,))
    with torch.inference_mode():
        (expected,) = network(torch.zeros(2, 3, 299, 299, dtype=torch.uint8))
    assert relative(ours(inception_weights, "pil-bicubic")(images)["pool3"], expected) < 1e-5


# --- VGG16 ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vgg16_features_are_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
    from torchvision.models import vgg16

    torch.manual_seed(0)
    state = vgg16().state_dict()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: state)  # half a gigabyte, not worth a file
    network = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path="unused")
    images = varied_images(2, 40, seed=14)
    with torch.inference_mode():
        (expected,) = network(images)
        found = VGG16(state, "tf1-bilinear")(images)["fc2_relu"]
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
