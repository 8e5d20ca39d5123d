"""``cmbench verify``: known inputs through the metrics of this installation, beside what must come out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmbench.data.digits import DIGITS
from cmbench.errors import CmbenchError
from cmbench.metrics import extractors, protocols
from cmbench.metrics.engine import Engine
from cmbench.metrics.figures import Measurement
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.inception_score import inception_score, shuffled_splits
from cmbench.metrics.kid import kid, kid_unbiased
from cmbench.metrics.moments import Moments
from cmbench.metrics.precision_recall import precision_recall
from cmbench.metrics.quantize import quantize
from cmbench.metrics.references import Reference, Statistics
from cmbench.metrics.resizing import resize
from cmbench.sampling.seeds import initial_noise


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what is checked.
        expected: numbers that must come out; why the check was left out, where ``ok`` is None.
        got: what came out; the error, where there was one.
        tolerance: largest relative difference of any number (of the largest expected one); 0 for equality.
        ok: whether they agree; None for a check that was left out.
    """

    name: str
    expected: tuple[float, ...] | str
    got: tuple[float, ...] | str
    tolerance: float
    ok: bool | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Case = tuple[str, Sequence[float], float, Callable[[], Any]]
"""Name, expected numbers, tolerance, and what computes them."""


def run(*, full: bool = False, weights: Path | None = None) -> Iterator[Check]:
    """All checks, one at a time; downloads nothing.

    Args:
        full: also compare with independent implementations (SciPy, torch-fidelity), which takes longer.
        weights: the user's Inception weights; by default those in the cache.
    """
    for name, expected, tolerance, compute in (
        *_closed_forms(),
        *_golden(),
        *(_independent() if full else ()),
    ):
        yield _check(name, expected, tolerance, compute)
    yield _inception(full, weights)


def _check(name: str, expected: Sequence[float], tolerance: float, compute: Callable[[], Any]) -> Check:
    known = tuple(float(value) for value in expected)
    try:
        got = tuple(float(value) for value in np.ravel(compute()))
    except CmbenchError as error:
        return Check(name, known, str(error), tolerance, False)
    scale = max(map(abs, known), default=0.0) or 1.0
    close = len(got) == len(known) and all(
        abs(a - b) <= tolerance * scale for a, b in zip(got, known, strict=True)
    )
    return Check(name, known, got, tolerance, close)


# --- what follows from a formula -----------------------------------------------------------------


def _closed_forms() -> Iterator[Case]:
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.2]).reshape(6, 1, 1, 1)
    yield "truncation to uint8", (0, 63, 127, 191, 255, 255), 0, lambda: quantize(levels, "truncate")
    yield "rounding to uint8", (0, 64, 128, 191, 255, 255), 0, lambda: quantize(levels, "round")

    step = torch.tensor([0, 100], dtype=torch.uint8).expand(1, 1, 2, 2)

    def enlarged(mode: str) -> torch.Tensor:
        return resize(step, 4, mode)[0, 0, 0]

    yield "resize tf1-bilinear", (0, 50, 100, 100), 0, partial(enlarged, "tf1-bilinear")
    yield "resize half-pixel-bilinear", (0, 25, 75, 100), 0, partial(enlarged, "half-pixel-bilinear")
    # Catmull-Rom's weights are 111/128 at a distance of 1/4 pixel, 29/128 at 3/4, -9/128 at 5/4; below 0 is cut.
    cubic = (0, 100 * 29 / 140, 100 * 111 / 140, 100 * 111 / 102)
    yield "resize pil-bicubic", cubic, 1e-6, partial(enlarged, "pil-bicubic")

    def moments() -> tuple[float, float]:
        total = Moments(1)
        for start in range(0, 1000, 7):
            total.update(1e8 + np.arange(start, min(start + 7, 1000))[:, None] % 2)
        return float(total.mean[0]), float(total.covariance()[0, 0])

    yield "moments about 1e8", (1e8 + 0.5,), 1e-15, lambda: moments()[0]
    yield "variance about 1e8", (250 / 999,), 1e-7, lambda: moments()[1]

    a, b = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([[1.0, -0.4], [-0.4, 0.8]])
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    shift = np.array([1.0, -2.0])
    distance = 5 + np.trace(a) + np.trace(b) - 2 * root
    yield "Fréchet distance", (distance,), 1e-12, lambda: frechet_distance(shift, a, np.zeros(2), b)
    u, v = np.arange(1.0, 201.0), np.sin(np.arange(200.0))
    thin = u @ u + v @ v - 2 * abs(u @ v)
    zero = np.zeros(200)
    yield (
        "Fréchet distance, rank 1",
        (thin,),
        1e-10,
        lambda: frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v)),
    )

    one = np.zeros(100, np.intp)
    sure = np.eye(10)[np.arange(100) % 10]
    yield "Inception Score, certain", (10,), 1e-12, lambda: inception_score(sure, one)[0]
    half = np.array([[0.9, 0.1], [0.1, 0.9]])[np.arange(100) % 2]
    score = 2 * math.exp(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    yield "Inception Score, 90 : 10", (score,), 1e-12, lambda: inception_score(half, one)[0]

    points = np.zeros((2, 1)), np.ones((2, 1))
    yield "KID", (7,), 1e-12, lambda: kid_unbiased(*points)

    def shares() -> tuple[float, float]:
        x, y = (np.array(values, np.float64)[:, None] for values in ((0, 2, 5, 7), (-3, -2, 1, 8, 10, 11)))
        found = precision_recall(x, y, k=1)
        return found.precision, found.recall

    yield "precision and recall, counted", (3 / 4, 3 / 6), 0, shares


# --- what came out when the numbers were known to be right ---------------------------------------


def _golden() -> Iterator[Case]:
    yield (
        "noise of sample 5, seed 3",
        (1.2475075, 0.1883308, 0.6163598, -0.3949929),
        1e-6,
        lambda: initial_noise(3, [5], (1, 2, 2)),
    )
    yield (
        "torch-fidelity's shuffle",
        (3, 1, 1, 3, 0, 0, 0, 2, 3, 0),
        0,
        lambda: shuffled_splits(20, 4)[:10],
    )
    engine = Engine.open(protocols.get("digits"), download=False)
    digits = torch.from_numpy(DIGITS.load(None, False).read(np.arange(1797)))
    yield (
        "digits-cnn, features of 3 digits",
        (52.81756, 43.91217, 52.33083),
        1e-4,
        lambda: _measure_rows(engine, digits[:3]).sum(1),
    )
    found: list[Measurement] = []

    def half(key: str) -> float | None:
        if not found:
            found.append(_halves(engine, digits))
        return found[0].metrics[key].value

    # Features differ between processors by about 1e-6, which KID, a difference of near values, enlarges; a flag of
    # precision or recall may turn where distances nearly agree.
    for key, title, value, tolerance in (
        ("fid", "FD-digits, first half against second", 0.7204727, 1e-4),
        ("is", "IS-digits, first half", 9.478353, 1e-4),
        ("precision", "Prec-digits, first half against second", 736 / 898, 3e-3),
        ("recall", "Rec-digits, first half against second", 694 / 899, 3e-3),
        ("kid", "KID-digits, first half against second", 0.01858214, 5e-3),
    ):
        yield title, (value,), tolerance, partial(half, key)


def _measure_rows(engine: Engine, images: torch.Tensor) -> np.ndarray[Any, Any]:
    shard = engine.shard()
    engine.update(shard, images, 0)
    engine.flush(shard)
    return shard.layers["digits-cnn/features"].rows().astype(np.float64)


def _halves(engine: Engine, digits: torch.Tensor) -> Measurement:
    """The first 898 digits measured against the other 899."""
    rows = _measure_rows(engine, digits[898:])
    moments = Moments(rows.shape[1])
    moments.update(rows)
    known = Statistics(moments.mean, moments.covariance(), len(rows), rows.astype(np.float32))
    shard = engine.shard()
    engine.update(shard, digits[:898], 0)
    return engine.measure(shard, Reference("second half", {"digits-cnn/features": known}))


# --- what other code computes --------------------------------------------------------------------


def _independent() -> Iterator[Case]:
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    x, y = random.standard_normal((300, 8)), 0.5 + 1.2 * random.standard_normal((400, 8))
    means, covariances = (x.mean(0), y.mean(0)), (np.cov(x.T), np.cov(y.T))
    root = np.real(np.trace(sqrtm(covariances[0] @ covariances[1])))
    shift = means[0] - means[1]
    distance = shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    yield (
        "Fréchet distance, SciPy's matrix root",
        (distance,),
        1e-7,
        lambda: frechet_distance(means[0], covariances[0], means[1], covariances[1]),
    )

    def apart(a: Any, b: Any) -> Any:
        return np.square(a[:, None] - b[None]).sum(-1)

    def inside(points: Any, others: Any) -> float:
        radii = np.sort(apart(others, others), axis=1)[:, 3]
        return float((apart(points, others) <= radii).any(1).mean())

    counted = inside(x, y), inside(y, x)

    def shares() -> tuple[float, float]:
        found = precision_recall(x, y, k=3)
        return found.precision, found.recall

    yield "precision and recall, all pairs in NumPy", counted, 0, shares

    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=10,
        kid_subset_size=100,
        rng_seed=2020,
        verbose=False,
    )
    values = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    yield "KID, torch-fidelity", values, 1e-7, lambda: kid(x, y, subsets=10, size=100, seed=2020)


def _inception(full: bool, weights: Path | None) -> Check:
    """Our Inception beside torch-fidelity's, on the same weights."""
    name = "Inception pool3, torch-fidelity's network"
    spec = protocols.get("adm").extractor("inception-v3")
    try:
        path = extractors.locate(extractors.definition(spec.name), weights, download=False)
    except CmbenchError as error:
        return Check(name, f"not checked: {str(error).partition(':')[0]}", "", 1e-4, None)
    if not full:
        return Check(name, "not checked: takes some seconds, --full does it", "", 1e-4, None)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8))
    theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(path))
    with torch.inference_mode():
        expected = theirs(images)[0].double().sum(1)
    return _check(
        name,
        expected.tolist(),
        1e-4,
        lambda: extractors.open_extractor(spec, weights=path)(images)["pool3"].double().sum(1),
    )
