"""Reference statistics: our files, the published ones, and files that are none."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmbench.errors import UsageError, WorkError
from cmbench.metrics import protocols, references
from cmbench.metrics.engine import Engine
from cmbench.metrics.protocols import Protocol
from cmbench.metrics.references import Reference, Statistics

RNG = np.random.default_rng(0)
MU, SIGMA = RNG.normal(size=8), np.cov(RNG.normal(size=(8, 40)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_ours_survive_the_file(tmp_path: Path) -> None:
    features = RNG.normal(size=(5, 8)).astype(np.float32)
    known = {"a/x": Statistics(MU, SIGMA, 40, features), "b/y": Statistics(MU[:2], SIGMA[:2, :2])}
    references.write(tmp_path / "ours.npz", Reference("mine", known, {"data": "digits"}))
    found, images = references.read(tmp_path / "ours.npz")
    assert (found.name, found.provenance, images) == ("mine", {"data": "digits"}, None)
    assert list(found.layers) == ["a/x", "b/y"]
    np.testing.assert_array_equal(found.layers["a/x"].covariance, SIGMA)
    np.testing.assert_array_equal(found.layers["a/x"].features, features)  # type: ignore[arg-type]
    assert (found.layers["a/x"].count, found.layers["b/y"].features) == (40, None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pytorch_fid_clean_fid_and_edm_files(tmp_path: Path, dtype: type) -> None:
    np.savez(tmp_path / "stats.npz", mu=MU.astype(dtype), sigma=SIGMA)
    found, images = references.read(tmp_path / "stats.npz")
    assert images is None
    assert found.layers["inception-v3/pool3"].mean.dtype == np.float64
    np.testing.assert_allclose(found.layers["inception-v3/pool3"].mean, MU, rtol=1e-6)


def test_adm_files(tmp_path: Path) -> None:
    batch = RNG.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "virtual.npz", mu=MU, sigma=SIGMA, mu_s=MU[:3], sigma_s=SIGMA[:3, :3], arr_0=batch)
    found, images = references.read(tmp_path / "virtual.npz")
    assert {name: known.mean.size for name, known in found.layers.items()} == {
        "inception-v3/pool3": 8,
        "inception-v3/spatial": 3,
    }
    assert images is not None
    np.testing.assert_array_equal(images, batch.transpose(0, 3, 1, 2))


def test_edm2_pickles_give_their_arrays(tmp_path: Path) -> None:
    path = tmp_path / "img512.pkl"
    stats = {"fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": MU[:2], "sigma": SIGMA[:2, :2]}}
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(stats, protocol=protocol))
        found, _ = references.read(path)
        np.testing.assert_array_equal(found.layers["inception-v3/pool3"].covariance, SIGMA)
        assert found.layers["dinov2-vit-l-14/cls"].mean.size == 2


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"fid": Attack(tmp_path / "executed")}))
    with pytest.raises(WorkError, match="which statistics do not need"):
        references.read(tmp_path / "bad.pkl")
    np.savez(tmp_path / "bad.npz", mu=np.array([Attack(tmp_path / "executed")], dtype=object), sigma=SIGMA)
    with pytest.raises(WorkError, match=r"bad\.npz holds no reference statistics"):
        references.read(tmp_path / "bad.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "holds nothing"),
        ({"feats": MU}, "holds feats, neither mu and sigma nor images"),
        ({"arr_0": RNG.normal(size=(2, 4, 4, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"not uint8 \[N, H, W, 3\]"),
    ],
)
def test_other_files_say_what_they_hold(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(WorkError, match=complaint):
        references.read(tmp_path / "other.npz")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(WorkError, match=r"half\.npz holds no reference"):
        references.read(tmp_path / "half.npz")
    with pytest.raises(WorkError, match=r"absent\.npz holds no reference"):
        references.read(tmp_path / "absent.npz")


# --- through the engine -----------------------------------------------------------------------------


def digits_against(path: Path) -> tuple[Protocol, Engine]:
    protocol = protocols.get("digits").with_reference(path)
    return protocol, Engine.open(protocol)


def test_a_reference_of_another_extractor_is_refused(tmp_path: Path) -> None:
    known = {"digits-cnn/features": Statistics(MU, SIGMA)}
    references.write(tmp_path / "other.npz", Reference("other", known))
    _, engine = digits_against(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="has 8 dimensions and digits-cnn/features has 64"):
        engine.reference(None)


def test_statistics_without_features_serve_the_metrics_that_need_none(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
    known = {"digits-cnn/features": Statistics(np.zeros(64), np.eye(64))}
    references.write(tmp_path / "moments.npz", Reference("moments", known))
    _, engine = digits_against(tmp_path / "moments.npz")
    shard = engine.shard()
    engine.update(shard, images, 0)
    figures = engine.compute(shard, engine.reference(None))
    assert figures["fid"].value is not None
    assert figures["precision"].reason == "reference moments holds no features of digits-cnn/features"


def test_images_alone_make_a_reference(tmp_path: Path) -> None:
    batch = RNG.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8).repeat(3, 3)
    np.savez(tmp_path / "images.npz", arr_0=batch)
    _, engine = digits_against(tmp_path / "images.npz")
    shard = engine.shard()
    engine.update(shard, torch.from_numpy(batch.transpose(0, 3, 1, 2)), 0)
    figures = engine.compute(shard, engine.reference(None))
    assert figures["fid"].value == pytest.approx(0, abs=1e-6)
    assert figures["precision"].value == 1


def test_a_file_that_changed_under_the_protocol_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, mu=MU, sigma=SIGMA)
    _, engine = digits_against(path)
    np.savez(path, mu=MU + 1, sigma=SIGMA)
    with pytest.raises(WorkError, match="the protocol says"):
        engine.reference(None)
