"""Extractors: the right weights or a clear reason, and networks that compute what they should."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmbench.data.digits import DIGITS
from cmbench.errors import UsageError, WorkError
from cmbench.metrics import classifiers, extractors
from cmbench.metrics.backbones import CLIP, CLIP_COLOURS, IMAGENET, DINOv2
from cmbench.metrics.extractors import open_extractor
from cmbench.metrics.protocols import ExtractorSpec
from cmbench.metrics.resizing import resize

FILE = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CMBENCH_OFFLINE", "1")
    return tmp_path


# --- weights ------------------------------------------------------------------------------------


def test_absent_weights_say_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"put {FILE} .* in .*cache/weights or pass --weights"):
        open_extractor(ExtractorSpec("inception-v3", None), download=False)
    with pytest.raises(WorkError, match=f"put {FILE} .* in {tmp_path} or"):
        open_extractor(ExtractorSpec("inception-v3", None), weights=tmp_path)
    with pytest.raises(WorkError, match="CMBENCH_OFFLINE"):
        open_extractor(ExtractorSpec("inception-v3", None), download=True)
    with pytest.raises(UsageError, match="no weights at"):
        open_extractor(ExtractorSpec("inception-v3", None), weights=tmp_path / "absent")


@pytest.mark.parametrize("name", [FILE, "pt_inception-2015-12-05-6726825d.pth"])
@pytest.mark.parametrize("folder", ["given", "cache/weights", "torch/hub/checkpoints"])
def test_other_weights_under_the_right_name_are_refused(tmp_path: Path, name: str, folder: str) -> None:
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, path)
    given = tmp_path / "given" if folder == "given" else None
    with pytest.raises(WorkError, match=f"{name} has SHA-256 .*, its publisher says 6726825d"):
        open_extractor(ExtractorSpec("inception-v3", None), weights=given)
    with pytest.raises(WorkError, match="the protocol says 1234"):
        open_extractor(ExtractorSpec("inception-v3", "1234"), weights=given)


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "executed"),)  # type: ignore[return-value]

    path = tmp_path / "attack.pth"
    torch.save({"fc.weight": Attack()}, path)
    with pytest.raises(WorkError, match="not executed"):
        open_extractor(ExtractorSpec("inception-v3", extractors.file_hash(path)), weights=path)
    assert not (tmp_path / "executed").exists()


def test_a_torchscript_network_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(nn.Linear(1, 1)).save(path)
    with pytest.raises(WorkError, match="TorchScript network, which is code"):
        open_extractor(ExtractorSpec("inception-v3", extractors.file_hash(path)), weights=path)


def test_a_file_of_another_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WorkError, match="does not hold the weights of inception-v3"):
        open_extractor(ExtractorSpec("inception-v3", extractors.file_hash(path)), weights=path)


def test_unknown_extractors_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'inception-v3'"):
        open_extractor(ExtractorSpec("inception", None))


# --- our own ------------------------------------------------------------------------------------


def test_shipped_classifiers_are_those_of_the_index() -> None:
    index = json.loads((classifiers.ASSETS / "index.json").read_text())
    for name, entry in index.items():
        content = (classifiers.ASSETS / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) < 2_000_000
        assert name in extractors.names()


def test_the_digits_classifier_knows_digits_it_has_not_seen() -> None:
    digits = DIGITS.load(None, False)
    held_out = np.arange(len(digits) * 4 // 5, len(digits))
    logits = open_extractor(ExtractorSpec("digits-cnn", None))(torch.from_numpy(digits.read(held_out)))[
        "logits"
    ]
    assert digits.labels is not None
    assert (logits.argmax(1).numpy() == digits.labels[held_out]).mean() >= 0.97


@pytest.mark.slow
def test_the_mnist_classifier_knows_the_test_set() -> None:
    if "CMBENCH_TEST_DATA" not in os.environ:
        pytest.skip("CMBENCH_TEST_DATA names no folder with MNIST/raw")
    folder = Path(os.environ["CMBENCH_TEST_DATA"]) / "MNIST" / "raw"
    images = np.fromfile(folder / "t10k-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 1, 28, 28)
    labels = np.fromfile(folder / "t10k-labels-idx1-ubyte", np.uint8)[8:]
    logits = open_extractor(ExtractorSpec("mnist-cnn", None))(torch.from_numpy(images[:2000]))["logits"]
    assert (logits.argmax(1).numpy() == labels[:2000]).mean() >= 0.985


def test_folding_keeps_the_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = classifiers.Classifier(classifiers.Architecture(3, 16, (8, 16), 2), folded=False)
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    for _ in range(3):
        trained(images)  # moves the running statistics away from their start
    folded = classifiers.fold(trained.eval())
    classifiers.save(tmp_path / "net.safetensors", folded, {"name": "net"})
    loaded = classifiers.load(tmp_path / "net.safetensors")
    for expected, found in zip(trained(images), loaded(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(WorkError, match="not one of our extractors"):
        (tmp_path / "bad.safetensors").write_bytes(b"0")
        classifiers.load(tmp_path / "bad.safetensors")


# --- other backbones ----------------------------------------------------------------------------


def _vit_weights(dim: int, depth: int, side: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.05) -> Tensor:
        return scale * torch.randn(shape, generator=rng)

    weights = {
        "cls_token": normal(1, 1, dim, scale=1),
        "pos_embed": normal(1, 1 + side * side, dim, scale=1),
        "mask_token": normal(1, dim),
        "patch_embed.proj.weight": normal(dim, 3, 14, 14),
        "patch_embed.proj.bias": normal(dim),
        "norm.weight": 1 + normal(dim),
        "norm.bias": normal(dim),
    }
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
            "ls1.gamma": (dim,), "ls2.gamma": (dim,),
        }.items():  # fmt: skip
            weights[f"blocks.{i}.{name}"] = normal(*shape, scale=0.2)
    return weights


def test_dinov2_is_a_prenorm_transformer_with_layer_scale() -> None:
    # PyTorch's own encoder layers, with each scale merged into the linear layer before it.
    dim, depth = 128, 3
    weights = _vit_weights(dim, depth, 16)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    x = resize(images, 224, "pil-bicubic-uint8") / 255
    x = (x - torch.tensor(IMAGENET[0])[:, None, None]) / torch.tensor(IMAGENET[1])[:, None, None]
    tokens = nn.functional.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 14)
    tokens = torch.cat([weights["cls_token"].expand(2, -1, -1), tokens.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + weights["pos_embed"]
    for i in range(depth):
        block = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        layer = nn.TransformerEncoderLayer(
            dim, dim // 64, 4 * dim, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block["attn.qkv.weight"],
                "self_attn.in_proj_bias": block["attn.qkv.bias"],
                "self_attn.out_proj.weight": block["ls1.gamma"][:, None] * block["attn.proj.weight"],
                "self_attn.out_proj.bias": block["ls1.gamma"] * block["attn.proj.bias"],
                "linear1.weight": block["mlp.fc1.weight"],
                "linear1.bias": block["mlp.fc1.bias"],
                "linear2.weight": block["ls2.gamma"][:, None] * block["mlp.fc2.weight"],
                "linear2.bias": block["ls2.gamma"] * block["mlp.fc2.bias"],
                **{name: w for name, w in block.items() if name.startswith("norm")},
            }
        )
        tokens = layer(tokens)
    expected = nn.functional.layer_norm(
        tokens[:, 0], (dim,), weights["norm.weight"], weights["norm.bias"], 1e-6
    )
    torch.testing.assert_close(
        DINOv2(weights, "pil-bicubic-uint8")(images)["cls"], expected, rtol=1e-4, atol=1e-4
    )


def test_dinov2_resamples_positions_of_the_training_resolution() -> None:
    weights = _vit_weights(64, 1, 37)
    rows = torch.linspace(-1, 1, 37)
    weights["pos_embed"][:, 1:] = rows.repeat_interleave(37)[None, :, None]
    positions = DINOv2(weights, "pil-bicubic-uint8").positions[0, 1:].reshape(16, 16, 64)
    assert torch.all(positions[1:, 0, 0] > positions[:-1, 0, 0])  # rows still vary along rows ...
    torch.testing.assert_close(positions[:, 0], positions[:, 15])  # ... and columns do not


def test_clip_is_torch_fidelitys_tower_on_our_resizing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import feature_extractor_clip

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.visual = feature_extractor_clip.VisionTransformer(28, 14, 64, 2, 1, 32)
            self.text_projection = nn.Parameter(torch.zeros(8, 32))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.visual(x)
            return out

    whole = Whole().half().float().eval()
    path = tmp_path / "clip.pt"
    torch.jit.trace(whole, torch.zeros(1, 3, 28, 28)).save(path)
    images = torch.randint(0, 256, (2, 3, 50, 50), dtype=torch.uint8)
    x = resize(images, 28, "half-pixel-bicubic") / 255
    x = (x - torch.tensor(CLIP_COLOURS[0])[:, None, None]) / torch.tensor(CLIP_COLOURS[1])[:, None, None]
    found = CLIP(path, "half-pixel-bicubic")(images)["embedding"]
    torch.testing.assert_close(found, whole(x), rtol=1e-3, atol=1e-3)


# --- resizing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 64, 300, 500])
def test_tf1_bilinear_is_torch_fidelitys_to_the_bit(size: int) -> None:
    reference = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = torch.randint(0, 256, (2, 3, size, size + 3), dtype=torch.uint8)
    expected = reference.interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), (299, 299), align_corners=False
    )
    assert torch.equal(resize(images, 299, "tf1-bilinear"), expected)


def test_the_resizing_modes_differ_and_keep_a_constant() -> None:
    images = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    flat = torch.full((1, 3, 20, 20), 77, dtype=torch.uint8)
    modes = ["tf1-bilinear", "half-pixel-bilinear", "half-pixel-bicubic", "pil-bicubic", "pil-bicubic-uint8"]
    results = [resize(images, 50, mode) for mode in modes]
    for mode, result in zip(modes, results, strict=True):
        assert result.shape == (1, 3, 50, 50)
        torch.testing.assert_close(resize(flat, 50, mode), torch.full((1, 3, 50, 50), 77.0))
        assert sum(torch.allclose(result, other, atol=0.1) for other in results) == 1, mode
    assert torch.equal(results[-1], results[-1].round())
    with pytest.raises(ValueError, match="images of 20x20, not 50x50"):
        resize(images, 50, "none")
