"""The engine on the embedded digits: one pass, the same figures however the work is cut."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cmbench.data import ImageData
from cmbench.data.base import ArraySource
from cmbench.data.digits import DIGITS
from cmbench.errors import UsageError, WorkError
from cmbench.metrics import building, protocols, references
from cmbench.metrics.engine import Engine
from cmbench.metrics.protocols import ReferenceSpec, metric
from cmbench.metrics.references import Reference
from cmbench.metrics.shards import Shard
from cmbench.records import Metric


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return DIGITS.load(None, False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(protocols.get("digits"))


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    """300 blurred digits, uint8 [300, 1, 8, 8]: near the data and not in it."""
    images = torch.from_numpy(DIGITS.load(None, False).read(np.arange(300))).float()
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    return (0.6 * images + 0.4 * blurred).to(torch.uint8)


def measure(engine: Engine, images: torch.Tensor, batch: int, first: int = 0) -> Shard:
    shard = engine.shard()
    for start in range(0, len(images), batch):
        engine.update(shard, images[start : start + batch], first + start)
    return shard


@pytest.fixture
def figures(engine: Engine, samples: torch.Tensor, digits: ImageData) -> dict[str, Metric]:
    return engine.compute(measure(engine, samples, 64), engine.reference(digits))


def test_figures_come_in_the_protocols_order_with_sensible_values(figures: dict[str, Metric]) -> None:
    assert list(figures) == list(engine_titles())
    value = {key: figure.value for key, figure in figures.items()}
    assert 0.1 < value["fid"] < 50  # type: ignore[operator]
    assert 1 < value["is"] <= 10  # type: ignore[operator]
    assert 0 < value["recall"] < 1  # type: ignore[operator]
    assert "300 samples; the protocol asks for 1797" in (figures["fid"].note or "")


def engine_titles() -> dict[str, str]:
    return protocols.get("digits").metric_titles


def test_the_data_itself_is_at_distance_zero(engine: Engine, digits: ImageData) -> None:
    images = torch.from_numpy(digits.read(np.arange(len(digits))))
    figures = engine.compute(measure(engine, images, 500), engine.reference(digits))
    assert figures["fid"].value == pytest.approx(0, abs=1e-9)
    assert (figures["precision"].value, figures["recall"].value) == (1, 1)
    assert figures["fid"].note is None


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
def test_figures_do_not_depend_on_the_callers_batches(
    engine: Engine, samples: torch.Tensor, digits: ImageData, figures: dict[str, Metric], batch: int
) -> None:
    assert engine.compute(measure(engine, samples, batch), engine.reference(digits)) == figures


@pytest.mark.parametrize("size", [30, 64, 77, 299])
def test_figures_do_not_depend_on_shards_or_their_order(
    engine: Engine,
    samples: torch.Tensor,
    digits: ImageData,
    figures: dict[str, Metric],
    size: int,
    tmp_path: Path,
) -> None:
    parts = []
    for start in range(0, 300, size):
        engine.save(measure(engine, samples[start : start + size], 11, start), tmp_path / f"{start}.npz")
        parts.append(tmp_path / f"{start}.npz")
    loaded = [engine.load(path) for path in reversed(parts)]
    assert engine.compute(engine.merge(loaded), engine.reference(digits)) == figures


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_extractors_batch_changes_features_by_rounding_only(
    samples: torch.Tensor, digits: ImageData, figures: dict[str, Metric], batch_size: int
) -> None:
    # A matrix product of another height may add up in another order: relative 1e-6, as float32 has it.
    engine = Engine.open(protocols.get("digits"), batch_size=batch_size)
    again = engine.compute(measure(engine, samples, 64), engine.reference(digits))
    for key, figure in figures.items():
        assert again[key].reason == figure.reason
        assert again[key].value is None or again[key].value == pytest.approx(figure.value, rel=1e-6, abs=1e-7)


def test_layers_without_samples_kept_are_folded_and_still_agree(
    samples: torch.Tensor, digits: ImageData
) -> None:
    # 300 samples in 64 dimensions: the moments take less room than the rows, and merge to the same distance.
    frechet = dataclasses.replace(
        protocols.get("digits"), metrics=(metric("frechet", "digits-cnn", "features", "FD"),)
    )
    engine = Engine.open(frechet)
    expected = engine.compute(measure(engine, samples, 64), engine.reference(digits))["fid"]
    folded = engine.empty({"digits-cnn/features": False})
    for start in (0, 100, 200):
        engine.update(folded, samples[start : start + 100], start)
    found = engine.compute(folded, engine.reference(digits))["fid"]
    assert len(folded.layers["digits-cnn/features"].rows()) < 128
    assert found.value == pytest.approx(expected.value, rel=1e-10)
    assert expected.std is not None and found.std is None  # which takes the features of every sample


def test_the_reference_is_built_once_and_says_where_it_comes_from(
    engine: Engine, digits: ImageData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    first = engine.reference(digits, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1797, 1797)
    assert first.provenance["fingerprint"] == digits.fingerprint
    assert set(first.provenance["weights"]) == {"digits-cnn"}
    monkeypatch.setattr(Engine, "_run", lambda *args: pytest.fail("built again"))
    again = engine.reference(digits)
    np.testing.assert_array_equal(
        again.layers["digits-cnn/features"].covariance, first.layers["digits-cnn/features"].covariance
    )
    assert [path.suffix for path in (cache / "references").iterdir()] == [".npz"]


def test_a_reference_that_was_interrupted_continues(
    engine: Engine, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PART", 512)

    def interrupt(done: int, total: int) -> None:
        if done > 1200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.reference(digits, interrupt)
    seen: list[int] = []
    reference = engine.reference(digits, lambda done, total: seen.append(done))
    assert seen[0] == 1024 + engine.batch_size  # two parts of 512 were done
    images = torch.from_numpy(digits.read(np.arange(len(digits))))
    assert engine.compute(measure(engine, images, 500), reference)["fid"].value == pytest.approx(0, abs=1e-9)


def test_a_published_reference_that_is_absent_may_be_rebuilt_and_says_so(
    samples: torch.Tensor, digits: ImageData, figures: dict[str, Metric]
) -> None:
    published = {"digits": ReferenceSpec("published", "stats.npz", "https://example.org/stats.npz")}
    engine = Engine.open(dataclasses.replace(protocols.get("digits"), references=published), download=False)
    again = engine.compute(measure(engine, samples, 64), engine.reference(digits))
    assert again["fid"].value == figures["fid"].value
    assert "reference computed from Digits: stats.npz is not at" in (again["fid"].note or "")


def test_a_published_reference_in_the_cache_is_used(
    engine: Engine, samples: torch.Tensor, digits: ImageData, cache: Path
) -> None:
    half = ImageData("half", "Half", ArraySource(digits.read(np.arange(0, 1797, 2))))
    own = Engine.open(dataclasses.replace(protocols.get("digits"), references={"*": ReferenceSpec("set")}))
    references.write(cache / "references" / "stats.npz", own.reference(half))
    published = {"digits": ReferenceSpec("published", "stats.npz", "https://example.org/stats.npz")}
    cached = Engine.open(dataclasses.replace(protocols.get("digits"), references=published))
    found = cached.reference(digits)
    assert found.provenance["file"] == "stats.npz"
    figures = cached.compute(measure(cached, samples, 64), found)
    assert (
        figures["fid"].value
        != engine.compute(measure(engine, samples, 64), engine.reference(digits))["fid"].value
    )
    assert figures["precision"].value is not None


def test_gray_and_repeated_gray_are_the_same_images(
    engine: Engine, samples: torch.Tensor, digits: ImageData
) -> None:
    gray = engine.compute(measure(engine, samples, 64), engine.reference(digits))
    colour = engine.compute(measure(engine, samples.expand(-1, 3, -1, -1), 64), engine.reference(digits))
    assert gray["fid"].value == pytest.approx(colour["fid"].value, rel=1e-6)


# --- what goes wrong ----------------------------------------------------------------------------


def test_missing_weights_cost_their_own_metrics_only(
    tmp_path: Path, samples: torch.Tensor, digits: ImageData
) -> None:
    both = dataclasses.replace(
        protocols.get("digits"),
        extractors=(*protocols.get("digits").extractors, *protocols.get("edm").extractors),
        metrics=(
            *protocols.get("digits").metrics[:1],
            metric("frechet", "inception-v3", "pool3", "FID", keys=("f",)),
        ),
    )
    engine = Engine.open(both, weights=tmp_path, download=False)
    figures = engine.compute(measure(engine, samples, 64), engine.reference(digits))
    assert figures["fid"].value is not None
    reason = figures["f"].reason or ""
    assert "weights-inception-2015-12-05-6726825d.pth" in reason
    assert "--weights" in reason
    assert "\n" not in reason


def test_a_shard_of_another_protocol_is_refused(
    engine: Engine, samples: torch.Tensor, tmp_path: Path
) -> None:
    other = Engine.open(dataclasses.replace(protocols.get("digits"), quantizer="truncate"))
    other.save(measure(other, samples, 64), tmp_path / "other.npz")
    with pytest.raises(UsageError, match="another protocol"):
        engine.load(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="different protocols"):
        engine.merge([measure(engine, samples, 64), measure(other, samples, 64, 300)])


def test_a_damaged_shard_is_named(engine: Engine, samples: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "half.npz"
    engine.save(measure(engine, samples, 64), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WorkError, match=r"half\.npz is no readable shard"):
        engine.load(path)


def test_shards_with_a_hole_or_an_overlap_are_refused(engine: Engine, samples: torch.Tensor) -> None:
    first, last = measure(engine, samples[:100], 64), measure(engine, samples[150:], 64, 150)
    with pytest.raises(WorkError, match="samples 100 to 149 are missing"):
        engine.merge([last, first])
    with pytest.raises(WorkError, match="samples 100 to 299 come twice"):
        engine.merge([measure(engine, samples, 64), measure(engine, samples[100:], 64, 100)])


def test_indices_must_continue(engine: Engine, samples: torch.Tensor) -> None:
    shard = engine.shard()
    engine.update(shard, samples[:10], 5)
    with pytest.raises(UsageError, match="number 15, not 10"):
        engine.update(shard, samples[10:20], 10)


def test_a_shard_holds_images_of_one_shape(engine: Engine, samples: torch.Tensor) -> None:
    shard = measure(engine, samples[:10], 10)
    with pytest.raises(UsageError, match=r"not \[1, 8, 8\] and \[3, 8, 8\]"):
        engine.update(shard, samples[10:20].expand(-1, 3, -1, -1), 10)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.zeros(2, 1, 8, 8), "quantise floats first"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int32), "uint8, not torch.int32"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"not \[2, 8, 8\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"not \[2, 8, 8, 3\]"),
    ],
)
def test_images_that_are_none_are_refused(engine: Engine, images: torch.Tensor, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        engine.update(engine.shard(), images, 0)


def test_images_of_another_size_are_refused_by_our_classifiers(engine: Engine) -> None:
    with pytest.raises(UsageError, match="measures 8x8 images and was given 32x32"):
        engine.compute(measure(engine, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 2), Reference("r", {}))


@pytest.mark.parametrize("quantizer", ["truncate", "round"])
def test_quantizers(quantizer: str) -> None:
    engine = Engine.open(dataclasses.replace(protocols.get("digits"), quantizer=quantizer))
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(engine.quantize(levels / 127.5 - 1 + 1e-6), levels.to(torch.uint8))
    up = {"truncate": 10, "round": 11}[quantizer]
    assert int(engine.quantize(torch.full((1, 1, 1, 1), 10.7 / 127.5 - 1))) == up
    assert engine.quantize(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]
    with pytest.raises(WorkError, match="1 of 2 generated images"):
        engine.quantize(torch.tensor([0.0, torch.nan]).reshape(2, 1, 1, 1))
    with pytest.raises(UsageError, match="floats in"):
        engine.quantize(levels)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_for_statistics(
    engine: Engine, samples: torch.Tensor, digits: ImageData, count: int
) -> None:
    figures = engine.compute(measure(engine, samples[:count], 64), engine.reference(digits))
    assert {figure.reason for figure in figures.values()} == {
        f"{count} samples are too few for any statistics"
    }


def test_fewer_samples_than_dimensions_are_noted(
    engine: Engine, samples: torch.Tensor, digits: ImageData
) -> None:
    figures = engine.compute(measure(engine, samples[:20], 64), engine.reference(digits))
    assert "20 samples in 64 dimensions" in (figures["fid"].note or "")
    assert figures["fid"].value > 0  # type: ignore[operator]


def test_collapsed_samples_are_measured_for_what_they_are(engine: Engine, digits: ImageData) -> None:
    one = torch.from_numpy(digits.read(np.arange(1))).expand(100, -1, -1, -1)
    figures = engine.compute(measure(engine, one, 64), engine.reference(digits))
    assert figures["is"].value == pytest.approx(1, abs=1e-9)
    assert figures["precision"].value == 1
    assert figures["recall"].value == pytest.approx(1 / 1797)
    assert figures["fid"].value > 5  # type: ignore[operator]


def test_features_that_are_not_finite_are_reported(
    engine: Engine, samples: torch.Tensor, digits: ImageData, tmp_path: Path
) -> None:
    shard = measure(engine, samples, 64)
    engine.save(shard, tmp_path / "whole.npz")  # runs what waits
    shard.layers["digits-cnn/features"].update(np.full((1, 64), np.nan, np.float32), 300)
    shard.count += 1
    engine.save(shard, tmp_path / "nan.npz")
    figures = engine.compute(engine.load(tmp_path / "nan.npz"), engine.reference(digits))
    assert figures["fid"].reason == "the features of sample 300 are not finite"


def test_a_protocol_without_a_reference_for_the_data_says_so(
    samples: torch.Tensor, digits: ImageData
) -> None:
    with pytest.raises(UsageError, match="no reference for digits"):
        Engine.open(protocols.get("mnist")).reference(digits)
    published = {
        "digits": ReferenceSpec("published", "stats.npz", "https://example.org/stats.npz", rebuild=False)
    }
    engine = Engine.open(dataclasses.replace(protocols.get("digits"), references=published), download=False)
    reference = engine.reference(digits)
    figures = engine.compute(measure(engine, samples, 64), reference)
    assert "get it from https://example.org/stats.npz" in (figures["fid"].reason or "")
    assert figures["is"].value is not None


def test_an_unknown_layer_is_refused() -> None:
    wrong = dataclasses.replace(
        protocols.get("digits"), metrics=(metric("frechet", "digits-cnn", "feature", "FD"),)
    )
    with pytest.raises(UsageError, match="did you mean 'features'"):
        Engine.open(wrong)
