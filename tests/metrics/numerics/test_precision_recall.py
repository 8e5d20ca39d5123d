import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch_fidelity.metric_prc import calculate_precision_recall_full

from cmbench.errors import UsageError, WorkError
from cmbench.metrics import screening
from cmbench.metrics.precision_recall import manifold_radii, precision_recall


@pytest.fixture(params=[torch.int8, torch.bfloat16, torch.float32], ids=str)
def screen(request, monkeypatch):
    """Screening in each arithmetic: the answers must not depend on it."""
    monkeypatch.setattr(screening, "cpu_screens", lambda: (request.param,))


def features(n: int, d: int, seed: int, spread: float = 1.0, mean: float = 0.2) -> np.ndarray:
    """Rectified features with a falling spectrum, as those of a classifier."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    x = (rng.standard_normal((n, d)) * spread * (1 + np.arange(d)) ** -0.7) @ mixing
    return (3 * np.maximum(x, -0.1) + mean).astype(np.float32)


def direct(x: np.ndarray, y: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The definition, on full matrices of float64 distances."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = cdist(x, x, "sqeuclidean"), cdist(y, y, "sqeuclidean"), cdist(x, y, "sqeuclidean")
    np.fill_diagonal(xx, np.inf)
    np.fill_diagonal(yy, np.inf)
    radii_x, radii_y = np.sort(xx, axis=1)[:, k - 1], np.sort(yy, axis=1)[:, k - 1]
    return (xy <= radii_y).any(axis=1), (xy <= radii_x[:, None]).any(axis=0)


def assert_exact(x: np.ndarray, y: np.ndarray, k: int = 3) -> None:
    result = precision_recall(x, y, k=k)
    precise, recalled = direct(x, y, k)
    np.testing.assert_array_equal(result.precise, precise)
    np.testing.assert_array_equal(result.recalled, recalled)
    assert (result.precision, result.recall) == (precise.mean(), recalled.mean())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition(screen, k):
    assert_exact(features(700, 128, 1, 0.9), features(500, 128, 2), k)


def test_equals_the_definition_over_several_blocks(screen):
    assert_exact(features(2100, 24, 1, 0.9), features(1500, 24, 2))


def test_same_counts_as_torch_fidelity():
    x, y = features(900, 256, 1, 0.95), features(1000, 256, 2)
    ours = precision_recall(x, y)
    theirs = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y))
    assert round(theirs[0] * 900) == ours.precise.sum()
    assert round(theirs[1] * 1000) == ours.recalled.sum()
    assert 100 < ours.precise.sum() < 900
    assert 100 < ours.recalled.sum() < 1000


@pytest.mark.parametrize("offset", [0, 30_000])
def test_ties_and_near_ties(screen, offset):
    # Whole numbers have exact distances: ties are ties, and near ties differ by 1 in 10^5. The offset puts
    # them where products in float32 lose every digit of a distance.
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 60, (400, 16)), rng.integers(0, 60, (450, 16))
    assert_exact((x + offset).astype(np.float32), (y + offset).astype(np.float32))


def test_many_ties(screen):
    rng = np.random.default_rng(4)
    assert_exact(
        rng.integers(0, 2, (300, 20)).astype(np.float32), rng.integers(0, 2, (350, 20)).astype(np.float32)
    )


def test_a_collapsed_generator(screen):
    y = features(300, 32, 1)
    assert_exact(np.repeat(y[:1], 250, axis=0), y)
    assert_exact(np.repeat(features(5, 32, 2), 50, axis=0), y)
    modes = np.repeat(features(4, 32, 3), 80, axis=0)
    noise = np.random.default_rng(5).standard_normal(modes.shape).astype(np.float32)
    assert_exact(modes + noise * np.float32(1e-5), y)


def test_copies_of_the_reference_are_precise_and_complete(screen):
    y = features(300, 32, 1)
    result = precision_recall(y[::-1].copy(), y)
    assert (result.precision, result.recall) == (1, 1)


def test_samples_exactly_on_the_boundary(screen):
    # A ball of radius 5 around the origin (3-4-5 triangles); samples on, just inside and just outside it.
    reference = np.array([[0, 0], [3, 4], [1000, 0], [1000, 5]], dtype=np.float64)
    samples = np.array([[-4, 3], [-4, 3 + 1e-12], [-4, 3 - 1e-12], [0, -5], [5, 1e-9]])
    assert precision_recall(samples, reference, k=1).precise.tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**50])
def test_scale_does_not_matter(screen, factor):
    x, y = features(300, 32, 1, 0.9), features(300, 32, 2)
    a, b = precision_recall(x, y), precision_recall(x * np.float32(factor), y * np.float32(factor))
    np.testing.assert_array_equal(a.precise, b.precise)
    np.testing.assert_array_equal(a.recalled, b.recalled)


def test_exchanging_the_sets_exchanges_the_figures():
    x, y = features(300, 32, 1, 0.9), features(200, 32, 2)
    assert precision_recall(x, y).precision == precision_recall(y, x).recall


def test_the_order_of_the_samples_does_not_matter():
    x, y = features(300, 32, 1, 0.9), features(200, 32, 2)
    order = np.random.default_rng(0).permutation(300)
    result, shuffled = precision_recall(x, y), precision_recall(x[order], y)
    np.testing.assert_array_equal(result.precise[order], shuffled.precise)
    np.testing.assert_array_equal(result.recalled, shuffled.recalled)


def test_kept_radii_of_the_reference():
    x, y = features(300, 32, 1, 0.9), features(200, 32, 2)
    radii = manifold_radii(y)
    kept = precision_recall(torch.from_numpy(x), torch.from_numpy(y), reference_radii=radii)
    np.testing.assert_array_equal(kept.precise, precision_recall(x, y).precise)
    with pytest.raises(UsageError, match="radii"):
        precision_recall(x, y, reference_radii=radii[1:])


def test_any_precision_setting_of_torch_gives_the_same_flags():
    x, y = features(600, 64, 1, 0.9), features(600, 64, 2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_exact(x, y)
    finally:
        torch.set_float32_matmul_precision(before)


def test_wrong_use():
    x, y = features(10, 8, 1), features(10, 8, 2)
    with pytest.raises(UsageError, match="nearest"):
        precision_recall(x[:3], y)
    with pytest.raises(UsageError, match="one D"):
        precision_recall(x[:, :4], y)
    x[7, 0] = np.nan
    with pytest.raises(WorkError, match="sample 7"):
        precision_recall(x, y)
