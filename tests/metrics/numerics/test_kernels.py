import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.cmmd import cmmd
from cmbench.metrics.fid_infinity import fid_infinity
from cmbench.metrics.kid import kid, kid_unbiased


def features(n: int, d: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * spread * (1 + np.arange(d)) ** -0.5
    return (np.maximum(x, -0.1) + 0.4).astype(np.float32)


def test_kid_equals_torch_fidelity():
    x, y = features(700, 64, 1, 1.1), features(600, 64, 2)
    theirs = kid_features_to_metric(
        torch.from_numpy(x).double(),
        torch.from_numpy(y).double(),
        kid_subsets=10,
        kid_subset_size=300,
        verbose=False,
    )
    mean, std = kid(x.astype(np.float64), y.astype(np.float64), subsets=10, size=300)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-8)
    assert kid(x, y, subsets=10, size=300) == pytest.approx((mean, std), rel=1e-5)


def direct_kid(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


@pytest.mark.parametrize(("n", "m"), [(30, 50), (1500, 2100)])
def test_kid_of_all_samples(n, m):
    x, y = features(n, 16, 1, 1.2), features(m, 16, 2)
    assert kid_unbiased(x, y) == pytest.approx(direct_kid(x, y), rel=1e-5)


def test_kid_is_unbiased():
    values = [kid_unbiased(features(40, 16, seed), features(40, 16, seed + 1000)) for seed in range(200)]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / np.sqrt(200))


@pytest.mark.parametrize(("n", "m"), [(40, 70), (1100, 60)])
def test_cmmd_equals_the_definition(n, m):
    x, y = features(n, 32, 1, 1.2), features(m, 32, 2)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (v / np.sqrt((v * v).sum(axis=1, keepdims=True)) for v in (a.astype("g"), b.astype("g")))
        return np.exp(-(2 - 2 * np.einsum("id,jd->ij", a, b)) / 200)  # "g": more digits than float64

    exact = 1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    assert cmmd(x, y) == pytest.approx(float(exact), rel=1e-9)


def test_cmmd_looks_at_directions_only():
    x, y = features(50, 32, 1, 1.2), features(60, 32, 2)
    assert cmmd(x * np.float32(4), y) == pytest.approx(cmmd(x, y), rel=1e-9)
    assert cmmd(x, x.copy()) == pytest.approx(0, abs=1e-12)


def test_fid_infinity_removes_the_bias_of_the_sample_size():
    # Both Gaussian: the true distance is known, and 2,000 samples in 40 dimensions overestimate it.
    d = 40
    spread = 1.1 * (1 + np.arange(d)) ** -0.3
    mu, sigma = np.full(d, 0.05), np.diag((1 + np.arange(d)) ** -0.6)
    truth = d * 0.05**2 + ((0.1 * (1 + np.arange(d)) ** -0.3) ** 2).sum()
    plain, extrapolated = [], []
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((2000, d)) * spread
        line = fid_infinity(x, mu, sigma, points=8, smallest=250, seed=seed)
        plain.append(line.distances[-1])
        extrapolated.append(line.value)
        assert line.sizes[0] == 250
        assert line.sizes[-1] == 2000
        assert line.slope > 0
    assert np.mean(plain) - truth > 0.03
    assert abs(np.mean(extrapolated) - truth) < 0.2 * (np.mean(plain) - truth)


def test_fid_infinity_depends_on_its_seed_alone():
    x = features(400, 8, 1)
    mu, sigma = x.mean(axis=0), np.cov(x, rowvar=False)
    first = fid_infinity(x, mu, sigma, points=4, smallest=100, seed=1)
    assert fid_infinity(torch.from_numpy(x), mu, sigma, points=4, smallest=100, seed=1) == first
    assert fid_infinity(x, mu, sigma, points=4, smallest=100, seed=2).value != first.value


def test_wrong_use():
    x = features(50, 8, 1)
    with pytest.raises(UsageError, match="subsets"):
        kid(x, x)
    with pytest.raises(UsageError, match="dimensions"):
        kid_unbiased(x, x[:, :4])
    with pytest.raises(UsageError, match="two vectors"):
        kid_unbiased(x[:1], x)
    with pytest.raises(UsageError, match="length"):
        cmmd(np.zeros((3, 8)), x)
    with pytest.raises(UsageError, match="FID∞"):
        fid_infinity(x, np.zeros(8), np.eye(8))
    x[9, 3] = np.inf
    with pytest.raises(WorkError, match="sample 9"):
        kid(x, x)
