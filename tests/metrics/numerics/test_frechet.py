import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.frechet import covariance_factor, frechet_distance


def rotation(d: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def features(n: int, d: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """Rectified features, the variances of which fall over six orders of magnitude."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(d) * 7 / d)
    return np.maximum(scale * (rng.standard_normal((n, d)) * spectrum) @ rotation(d, 0) + 0.3, 0)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def statistics(n: int, d: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return moments(features(n, d, seed, scale))


def high_precision(x1: np.ndarray, x2: np.ndarray) -> float:
    """The distance between two sets of features, from the features on with 60 digits."""
    with mpmath.workdps(60):
        means, covariances = [], []
        for x in (x1, x2):
            exact = mpmath.matrix(x.tolist())
            mean = mpmath.matrix([[mpmath.fsum(exact[:, k]) / len(x) for k in range(x.shape[1])]])
            centred = exact - mpmath.ones(len(x), 1) * mean
            means.append(mean)
            covariances.append(centred.T * centred / (len(x) - 1))
        values, vectors = mpmath.eigsy(covariances[1])
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        product = mpmath.eigsy(root * covariances[0] * root, eigvals_only=True)
        trace = sum(mpmath.sqrt(max(v, 0)) for v in product)
        shift = means[0] - means[1]
        total = sum(covariances[0][i, i] + covariances[1][i, i] for i in range(x1.shape[1]))
        return float((shift * shift.T)[0] + total - 2 * trace)


def test_isotropic_gaussians():
    mu1, mu2, one = np.zeros(5), np.full(5, 2.0), np.eye(5)
    assert frechet_distance(mu1, 4 * one, mu2, 9 * one) == pytest.approx(5 * 4 + 5 * (2 - 3) ** 2, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_commuting_covariances(d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.01, 5, d), rng.uniform(0.01, 5, d)
    q = rotation(d, seed)
    shift = rng.standard_normal(d)
    exact = shift @ shift + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(shift, (q * a) @ q.T, np.zeros(d), (q * b) @ q.T) == pytest.approx(
        exact, rel=1e-9
    )


@pytest.mark.parametrize("n", [400, 40])
def test_identical_gaussians_are_at_distance_zero(n):
    mu, sigma = statistics(n, 64, seed=1)
    assert frechet_distance(mu, sigma, mu, sigma) <= 1e-12 * np.trace(sigma)


def test_symmetric():
    a, b = statistics(500, 48, 1), statistics(20, 48, 2)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-10)


@pytest.mark.parametrize(("n1", "n2"), [(100, 90), (12, 90), (90, 12), (12, 9)])
def test_equals_high_precision_also_where_samples_are_fewer_than_dimensions(n1, n2):
    a, b = features(n1, 16, 1), features(n2, 16, 2, scale=1.1)
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(high_precision(a, b), rel=1e-11)


def test_equals_scipy_and_torch_fidelity():
    a, b = statistics(4000, 160, 1), statistics(4000, 160, 2, scale=1.1)
    distance = frechet_distance(*a, *b)
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    by_scipy = np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * np.real(root))
    by_fidelity = fid_statistics_to_metric(
        {"mu": a[0], "sigma": a[1]}, {"mu": b[0], "sigma": b[1]}, verbose=False
    )["frechet_inception_distance"]
    assert distance == pytest.approx(by_scipy, rel=1e-8)
    assert distance == pytest.approx(by_fidelity, rel=1e-8)


def test_constant_features():
    mu, sigma = statistics(100, 8, 1)
    flat = np.zeros((8, 8))
    assert frechet_distance(mu, flat, mu, flat) == 0
    assert frechet_distance(mu, sigma, mu + 1, flat) == pytest.approx(8 + np.trace(sigma), rel=1e-12)


@pytest.mark.parametrize("n", [200, 10])
def test_a_factor_multiplies_back(n):
    _, sigma = statistics(n, 30, 1)
    factor = covariance_factor(sigma)
    assert factor.shape == (30, min(n - 1, 30))
    np.testing.assert_allclose(factor @ factor.T, sigma, atol=1e-12 * np.trace(sigma))


def test_no_covariance_is_an_error():
    mu, sigma = statistics(100, 8, 1)
    with pytest.raises(UsageError, match="are needed"):
        frechet_distance(mu[:5], sigma, mu, sigma)
    broken = sigma.copy()
    broken[2, 3] = np.nan
    with pytest.raises(WorkError, match="finite"):
        frechet_distance(mu, broken, mu, sigma)
    with pytest.raises(WorkError, match="symmetric"):
        frechet_distance(mu, sigma + np.triu(np.ones((8, 8)), 1), mu, sigma)
