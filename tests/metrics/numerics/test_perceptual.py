"""The formula of LPIPS on any layers, and the distances that are opened by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmbench.data.digits import DIGITS
from cmbench.errors import WorkError
from cmbench.metrics import classifiers
from cmbench.metrics.perceptual import layers_distance, open_distances, titles

CPU = torch.device("cpu")


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """No backbone in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def seeded_backbone(monkeypatch):
    """VGG16's convolutions with seeded weights in place of the downloaded ones."""
    import lpips.pretrained_networks as pretrained
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    monkeypatch.setattr(pretrained.tv, "vgg16", lambda **_: SimpleNamespace(features=features))


def test_closed_forms():
    """Unit vectors that agree, are orthogonal or opposite are 0, 2 or 4 apart, whatever their length."""
    x = torch.zeros(3, 2, 4, 4)
    x[:, 0] = 5
    y = torch.zeros(3, 2, 4, 4)
    y[0, 0], y[1, 1], y[2, 0] = 1, 7, -2
    assert layers_distance([x], [y]).tolist() == pytest.approx([0, 2, 4])
    assert layers_distance([x, x], [y, y]).tolist() == pytest.approx([0, 4, 8])
    half = y.clone()
    half[1, :, :2] = x[1, :, :2]  # one half of the places agrees
    assert layers_distance([x], [half]).tolist() == pytest.approx([0, 1, 4])


@pytest.mark.slow
def test_the_formula_is_that_of_the_lpips_package_without_its_weights(seeded_backbone):
    import lpips

    plain = lpips.LPIPS(net="vgg", lpips=False, verbose=False).eval()
    x, y = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (1, 2))
    with torch.inference_mode():
        layers = [list(plain.net(plain.scaling_layer(z))) for z in (x, y)]
        torch.testing.assert_close(layers_distance(*layers), plain(x, y).flatten(), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_lpips_of_uint8_images_is_lpips_of_floats(seeded_backbone, tmp_path):
    import lpips

    images = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 256, 256), np.uint8)
    found = {one.key: one for one in open_distances("images", CPU, download=True)}["lpips"]
    plain = lpips.LPIPS(net="vgg", verbose=False).eval()
    with torch.inference_mode():
        expected = plain(*(torch.from_numpy(z).float() / 127.5 - 1 for z in images)).flatten()
    np.testing.assert_allclose(found.between(*images, CPU), expected, rtol=1e-5)


def test_what_is_missing_says_why_and_has_another_title(torch_home):
    lpips, own = open_distances("digits", CPU, download=False)
    assert (lpips.title, own.title) == ("LPIPS", "digits-cnn")
    assert "put vgg16-397923af.pth into" in (lpips.reason or "") and own.reason is None
    images = np.zeros((2, 1, 8, 8), np.uint8)
    with pytest.raises(WorkError, match="VGG16"):
        lpips.between(images, images, CPU)
    assert titles("imagenet64") == {"lpips": "LPIPS"}


def test_our_classifiers_see_difference_and_not_the_number_of_channels(torch_home):
    _, own = open_distances("digits", CPU, download=False)
    digits = DIGITS.load(None, False).read(np.arange(150))
    a, b = digits[:75], digits[75:]
    found = own.between(a, b, CPU)
    assert found.shape == (75,) and (found > 0).all() and (found < 2 * 3).all()
    np.testing.assert_array_equal(own.between(a, a, CPU), 0)
    colour = [images.repeat(3, axis=1) for images in (a, b)]
    np.testing.assert_allclose(own.between(*colour, CPU), found, rtol=1e-5)
    # A level more or less is less than another digit.
    nearly = np.where(a < 255, a + 1, a).astype(np.uint8)
    assert own.between(a, nearly, CPU).mean() < 0.02 * found.mean()


def test_stage_outputs_end_in_the_features():
    network = classifiers.load(classifiers.ASSETS / "cifar10-resnet.safetensors")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    outputs = network.stage_outputs(images)
    assert [tuple(x.shape[1:]) for x in outputs] == [
        (width, 32 // 2**i, 32 // 2**i) for i, width in enumerate(network.architecture.widths)
    ]
    torch.testing.assert_close(outputs[-1].mean((2, 3)), network(images)[0])
