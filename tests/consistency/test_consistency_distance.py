"""The distances of consistency losses: closed forms, gradients, and LPIPS without and with a backbone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cmbench.consistency.distance import NAMES, PLAIN, distance, pseudo_huber
from cmbench.errors import UsageError, WorkError

CPU = torch.device("cpu")


def test_closed_forms():
    x = torch.zeros(2, 1, 2, 3)
    y = torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0, 3.0]).reshape(1, 1, 2, 3).expand(2, -1, -1, -1).clone()
    y[1] *= 2
    assert distance("l2", CPU)(x, y).tolist() == pytest.approx([14 / 6, 56 / 6])
    assert distance("l1", CPU)(x, y).tolist() == pytest.approx([1.0, 2.0])
    c = 0.00054 * math.sqrt(6)
    wanted = [math.sqrt(14 + c * c) - c, math.sqrt(56 + c * c) - c]
    assert distance("pseudo-huber", CPU)(x, y).tolist() == pytest.approx(wanted)


def test_pseudo_huber_of_a_small_difference_does_not_cancel():
    """Far below c it is |x - y|^2 / 2c; the formula as printed gives 0 in float32."""
    x = torch.zeros(1, 3, 32, 32)
    y = torch.full_like(x, 1e-7)
    c = 0.00054 * math.sqrt(3072)
    assert float(pseudo_huber(x, y)) == pytest.approx(3072 * 1e-14 / (2 * c), rel=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_distance_is_a_symmetric_distance_for_each_sample_with_finite_gradients(name: str):
    d = distance(name, CPU)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = torch.randn(4, 3, 5, 5)
    y[2] = x[2].detach()
    made = d(x, y)
    assert made.shape == (4,)
    assert float(made[2].detach()) == 0
    assert bool((made[[0, 1, 3]] > 0).all())
    torch.testing.assert_close(made, d(y, x))
    made.sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad[2].abs().max()) == 0
    assert float(x.grad[0].abs().max()) > 0


def test_unknown_distance_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'lpips'"):
        distance("lpisp", CPU)
    assert set(NAMES) == {"l1", "l2", "lpips", "pseudo-huber", "features"}


def test_lpips_without_its_backbone_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request._opener", None)  # urllib keeps the proxies of its first call
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WorkError, match=r"vgg16-397923af.pth into .*torch/hub/checkpoints"):
        distance("lpips", CPU)


@pytest.fixture
def seeded_backbone(monkeypatch):
    """VGG16's convolutions with seeded weights in place of the downloaded ones."""
    import lpips.pretrained_networks as pretrained
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    monkeypatch.setattr(pretrained.tv, "vgg16", lambda **_: SimpleNamespace(features=features))


@pytest.mark.slow
def test_lpips_sees_small_images_upsampled_and_gray_ones_as_three_channels(seeded_backbone):
    import lpips

    d = distance("lpips", CPU)
    x = (torch.rand(1, 1, 8, 8) * 2 - 1).requires_grad_()
    y = torch.rand(1, 1, 8, 8) * 2 - 1
    made = d(x, y)
    plain = lpips.LPIPS(net="vgg", verbose=False).eval()
    wanted = plain(
        *(
            functional.interpolate(
                z.detach().repeat(1, 3, 1, 1), (224, 224), mode="bilinear", align_corners=False
            )
            for z in (x, y)
        )
    )
    torch.testing.assert_close(made.detach(), wanted.flatten())
    assert made.shape == (1,)
    made.sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) > 0
    with torch.no_grad():
        assert float(d(y, y)) == 0


@pytest.mark.parametrize(("dataset", "shape"), [("digits", (1, 8, 8)), ("mnist", (1, 28, 28))])
def test_features_is_the_formula_of_lpips_on_the_classifiers_stages(dataset: str, shape: tuple[int, ...]):
    """Beside a computation of its own: hooks on the classifier, loops over layers and places, in float64."""
    from cmbench.metrics import classifiers
    from cmbench.metrics.perceptual import OWN

    d = distance("features", CPU, dataset)
    rng = torch.Generator().manual_seed(3)
    x, y = (torch.rand(3, *shape, generator=rng) * 2 - 1 for _ in range(2))
    network = classifiers.load(classifiers.ASSETS / f"{OWN[dataset]}.safetensors")
    stages = [[stage.double().numpy() for stage in network.stage_outputs((z + 1) * 127.5)] for z in (x, y)]
    assert len(stages[0]) >= 2
    for one, value in enumerate(d(x, y).tolist()):
        wanted = 0.0
        for a, b in zip(*stages, strict=True):
            places = []
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    u, v = a[one, :, i, j], b[one, :, i, j]
                    u, v = u / (np.linalg.norm(u) + 1e-10), v / (np.linalg.norm(v) + 1e-10)
                    places.append(float(((u - v) ** 2).sum()))
            wanted += sum(places) / len(places)
        assert value == pytest.approx(wanted, rel=1e-4)


def test_features_is_a_symmetric_distance_for_each_sample_with_finite_gradients():
    d = distance("features", CPU, "digits")
    rng = torch.Generator().manual_seed(4)
    x = (torch.rand(4, 1, 8, 8, generator=rng) * 2 - 1).requires_grad_()
    y = torch.rand(4, 1, 8, 8, generator=rng) * 2 - 1
    y[2] = x[2].detach()
    made = d(x, y)
    assert made.shape == (4,) and float(made[2].detach()) == 0
    assert bool((made[[0, 1, 3]] > 0).all())
    torch.testing.assert_close(made, d(y, x))
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(d(x[order], y[order]), made[order])  # each image on its own
    torch.testing.assert_close(d(x[:1], y[:1]), made[:1])
    made.sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad[2].abs().max()) == 0
    assert all(float(x.grad[one].abs().max()) > 0 for one in (0, 1, 3))


def test_features_do_not_change_with_the_scale_of_a_layers_activations():
    from cmbench.metrics.perceptual import layers_distance

    rng = torch.Generator().manual_seed(5)
    a, b = ([torch.rand(2, c, 3, 3, generator=rng) for c in (4, 6)] for _ in range(2))
    made = layers_distance(a, b)
    torch.testing.assert_close(layers_distance([7 * a[0], a[1] / 3], [b[0], 100 * b[1]]), made)
    shifted = [[z.roll(1, 3) for z in layers] for layers in (a, b)]
    torch.testing.assert_close(layers_distance(*shifted), made)  # a mean over places
    assert float(made.max()) <= 8


def test_features_of_a_data_set_without_a_classifier_are_refused():
    with pytest.raises(UsageError, match="there is none for imagenet64"):
        distance("features", CPU, "imagenet64")


def test_lpips_that_may_not_be_downloaded_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_a, **_k: pytest.fail("downloads"))
    with pytest.raises(WorkError, match=r"put vgg16-397923af.pth into"):
        distance("lpips", CPU, download=False)
