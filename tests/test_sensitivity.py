"""`cmbench protocols`: what each one is, and what quantiser and resize move on given samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from tiny_runs import SETTINGS
from torch import Tensor, nn

from cmbench.data.digits import DIGITS
from cmbench.metrics import extractors, protocols
from cmbench.metrics.extractors import Definition
from cmbench.metrics.resizing import resize


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """Blurred digits [300, 8, 8, 1] in [-1, 1], between the levels of uint8."""
    images = torch.from_numpy(DIGITS.load(None, False).read(np.arange(300))).float() / 127.5 - 1
    blurred = 0.7 * images + 0.3 * nn.functional.avg_pool2d(images, 3, 1, 1)
    path = tmp_path / "floats.npz"
    np.savez(path, arr_0=blurred.permute(0, 2, 3, 1).numpy())
    return path


def test_every_protocol_is_listed_and_described(cmbench: Commands) -> None:
    listed = json.loads(cmbench("protocols", "--json").out)
    assert [entry["name"] for entry in listed] == protocols.names()
    one = json.loads(cmbench("protocols", "adm", "--json").out)
    assert one["fingerprint"] == protocols.get("adm").fingerprint
    assert protocols.from_json({key: one[key] for key in one if key != "fingerprint"}) == protocols.get("adm")
    shown = cmbench("protocols", "adm").out
    for fact in (
        "quantizer: truncate",
        "resize: tf1-bilinear",
        "split_size: 5000",
        "weights: 6726825d",
        "k: 3",
    ):
        assert fact in shown
    assert all(name in cmbench("protocols").out for name in protocols.names())
    wrong = cmbench("protocols", "admm")
    assert wrong.status == 2 and "did you mean 'adm'" in wrong.error


def compared(cmbench: Commands, *words: object) -> list[dict[str, object]]:
    done = cmbench("protocols", "--compare", *words, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_quantisers_are_compared_on_float_samples(cmbench: Commands, floats: Path, tmp_path: Path) -> None:
    first, second = compared(cmbench, floats)
    assert (first["quantizer"], second["quantizer"]) == ("round", "truncate")
    # The same levels, scored as uint8 samples, give the same figures.
    images = np.load(floats)["arr_0"]
    for row, offset in ((first, 128.0), (second, 127.5)):
        np.savez(tmp_path / "u.npz", arr_0=(images * 127.5 + offset).clip(0, 255).astype(np.uint8))
        scored = cmbench(
            "score", "u.npz", "-d", "digits", "--label", "x", "--nfe", "1", "--json", "--out", str(offset)
        )
        metrics = json.loads(scored.out)[0]["metrics"]
        assert row["metrics"]["fid"]["value"] == pytest.approx(metrics["fid"]["value"], rel=1e-9)
        assert row["metrics"]["is"]["value"] == pytest.approx(metrics["is"]["value"], rel=1e-9)
    shift = second["shifts"]["fid"]
    moved = second["metrics"]["fid"]["value"] - first["metrics"]["fid"]["value"]
    assert shift["difference"] == pytest.approx(moved) and moved != 0
    # Pairs of nearly equal samples say far more than the figures' own uncertainties.
    assert 0 < shift["std"] < 0.2 * first["metrics"]["fid"]["std"]
    assert first["shifts"] == {}


def test_a_methods_samples_are_made_again(cmbench: Commands) -> None:
    words = ("--method", "ddim", "--nfe", "2", "--samples", "100", "--set", *SETTINGS, "--device", "cpu")
    rows = compared(cmbench, *words)
    assert [row["quantizer"] for row in rows] == ["round", "truncate"]
    run = cmbench("run", "--method", "ddim", "--nfe", "2", "--samples", "100", "--set", *SETTINGS, "--json")
    assert rows[0]["metrics"]["fid"] == json.loads(run.out)[0]["metrics"]["fid"] | {}


class Pooled(nn.Module):
    """Stands for a network that takes any size: the means of 4 x 4 parts of the resized image."""

    def __init__(self, _path: Path, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": nn.functional.avg_pool2d(resize(images, 32, self.mode), 8).flatten(1)[:, :16] / 64}


@pytest.fixture
def pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol file on such a network."""
    made = Definition("pooled", {"pooled": 16}, "w", "http://nowhere", None, Pooled)
    monkeypatch.setattr(extractors, "_registry", lambda: {"pooled": made})
    (tmp_path / "w").write_text("weights")
    path = tmp_path / "pooled.toml"
    path.write_text(
        'quantizer = "round"\nsamples = 100\n[[extractors]]\nname = "pooled"\nweights = ""\nresize = "pil-bicubic"\n'
        '[[metrics]]\nkind = "frechet"\nextractor = "pooled"\nlayer = "pooled"\ntitles = {fid = "FD"}\n'
        '[references."*"]\nname = "training set"\n'
    )
    return path


def test_ways_of_resizing_are_compared_on_uint8_samples(
    cmbench: Commands, pooled: Path, tmp_path: Path
) -> None:
    np.savez("u.npz", arr_0=DIGITS.load(None, False).read(np.arange(200)).transpose(0, 2, 3, 1))
    rows = compared(cmbench, "u.npz", "--protocol", pooled, "--weights", tmp_path / "w")
    assert [row["resize"] for row in rows] == ["pil-bicubic", "tf1-bilinear", "half-pixel-bilinear"]
    assert {row["quantizer"] for row in rows} == {"as stored"}
    values = [row["metrics"]["fid"]["value"] for row in rows]
    assert len(set(values)) == 3 and min(values) > 0
    shown = cmbench("protocols", "--compare", "u.npz", "--protocol", pooled, "--weights", tmp_path / "w")
    assert "half-pixel-bilinear" in shown.out and "quantised already" in shown.err


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.linspace(0, 255, 6400).reshape(100, 8, 8, 1), "these in [0, 255]"),
        (np.linspace(0, 1, 6400).reshape(100, 8, 8, 1), "these in [0, 1]"),
        (np.full((100, 8, 8, 1), np.nan), "these in [nan, nan]"),
        (np.linspace(-1, 1, 6400).reshape(100, 64), "not [100, 64]"),
    ],
)
def test_floats_of_another_range_or_shape_are_refused(
    cmbench: Commands, array: np.ndarray, said: str
) -> None:
    np.savez("f.npz", arr_0=array.astype(np.float32))
    done = cmbench("protocols", "--compare", "f.npz")
    assert done.status == 2 and said in done.error


def test_what_cannot_be_compared_is_one_clear_line(cmbench: Commands, floats: Path) -> None:
    np.savez("u.npz", arr_0=np.zeros((100, 8, 8, 1), np.uint8))
    assert "nothing to compare" in cmbench("protocols", "--compare", "u.npz").error
    both = cmbench("protocols", "--compare", floats, "--method", "ddim")
    neither = cmbench("protocols", "--compare")
    assert both.status == neither.status == 2 and both.error == neither.error
    absent = cmbench("protocols", "--compare", floats, "--protocol", "edm", "--offline")
    assert absent.status == 1 and "inception-v3 weights not found" in absent.error
