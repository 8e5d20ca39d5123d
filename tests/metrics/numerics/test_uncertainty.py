import numpy as np
import pytest
from scipy.stats import kstest

from cmbench.errors import UsageError
from cmbench.metrics.frechet import frechet_distance
from cmbench.metrics.inception_score import consecutive_splits, inception_score, probabilities
from cmbench.metrics.paired import compare, compare_fid, compare_flags, compare_inception_score
from cmbench.metrics.precision_recall import manifold_radii, precision_recall
from cmbench.metrics.uncertainty import (
    fid_influence,
    fid_interval,
    inception_score_influence,
    inception_score_interval,
    normal_interval,
    precision_interval,
    recall_interval,
    standard_error,
)


def features(n: int, d: int, seed: int, spread: float = 1.1, shift: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    return np.maximum(
        (rng.standard_normal((n, d)) * spread * (1 + np.arange(d)) ** -0.7) @ mixing + 0.3 + shift, 0
    )


def reference(d: int) -> tuple[np.ndarray, np.ndarray]:
    x = features(20_000, d, 10**6, spread=1, shift=0)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def fid(x: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    return frechet_distance(x.mean(axis=0), np.cov(x, rowvar=False), mu, sigma)


def test_influence_is_the_derivative_of_the_distance():
    mu, sigma = reference(12)
    x = features(300, 12, 1)
    phi = fid_influence(x, mu, sigma)

    def weighted(weights: np.ndarray) -> float:
        mean = weights @ x
        return frechet_distance(mean, (weights * (x - mean).T) @ (x - mean), mu, sigma)

    even = np.full(300, 1 / 300)
    for sample in (0, 17, 299):
        point = np.zeros(300)
        point[sample] = 1
        step = 1e-5
        slope = (weighted(even + step * (point - even)) - weighted(even - step * (point - even))) / (2 * step)
        assert phi[sample] == pytest.approx(slope, rel=0.02, abs=0.02 * phi.std())  # ddof 1 against 0 remains


@pytest.mark.parametrize(("d", "n"), [(16, 400), (64, 800)])
def test_fid_deviation_equals_that_of_a_bootstrap(d, n):
    mu, sigma = reference(d)
    x = features(n, d, 1)
    rng = np.random.default_rng(0)
    resampled = [fid(x[rng.integers(0, n, n)], mu, sigma) for _ in range(400)]
    interval = fid_interval(fid(x, mu, sigma), x, mu, sigma)
    assert interval.std == pytest.approx(np.std(resampled), rel=0.12)


@pytest.mark.parametrize(("d", "n"), [(16, 400), (48, 1000)])
def test_fid_interval_covers_repeated_draws(d, n):
    mu, sigma = reference(d)
    draws = [features(n, d, seed) for seed in range(250)]
    values = np.array([fid(x, mu, sigma) for x in draws])
    covered = 0
    for x, value in zip(draws[:100], values, strict=False):
        interval = fid_interval(value, x, mu, sigma)
        covered += interval.low <= values.mean() <= interval.high
    assert np.mean([fid_interval(1, x, mu, sigma).std for x in draws[:20]]) == pytest.approx(
        values.std(), rel=0.12
    )
    assert covered >= 88


def test_fewer_samples_than_dimensions_give_no_overconfident_interval():
    mu, sigma = reference(64)
    draws = [features(40, 64, seed) for seed in range(120)]
    spread = np.std([fid(x, mu, sigma) for x in draws])
    stds = np.mean([fid_interval(1, x, mu, sigma).std for x in draws[:20]])
    assert 0.9 * spread < stds < 1.5 * spread


def class_probabilities(n: int, seed: int, shared: int | None = None, noise: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, 10)) * noise
    main = rng if shared is None else np.random.default_rng(shared)
    logits[np.arange(n), main.integers(0, 10, n)] += main.uniform(0, 9, n)
    return probabilities(logits)


@pytest.mark.parametrize("size", [600, 200])
def test_inception_score_interval_covers_repeated_draws(size):
    splits = consecutive_splits(600, size)
    draws = [class_probabilities(600, seed) for seed in range(300)]
    values = np.array([inception_score(p, splits)[0] for p in draws])
    intervals = [inception_score_interval(p, splits) for p in draws[:100]]
    assert np.mean([i.std for i in intervals]) == pytest.approx(values.std(), rel=0.12)
    assert sum(i.low <= values.mean() <= i.high for i in intervals) >= 88


def test_unequal_splits_weigh_their_samples():
    splits = consecutive_splits(700, 500)  # 500 and 200 samples count half each
    values = [inception_score(class_probabilities(700, seed), splits)[0] for seed in range(300)]
    stds = [inception_score_interval(class_probabilities(700, seed), splits).std for seed in range(30)]
    assert np.mean(stds) == pytest.approx(np.std(values), rel=0.12)


def test_precision_and_recall_deviations_against_repeated_draws():
    y = features(400, 16, 10**6, 1, 0)
    radii = manifold_radii(y)
    results = [precision_recall(features(400, 16, s, 0.9, 0), y, reference_radii=radii) for s in range(60)]
    precision = np.mean([precision_interval(r.precise).std for r in results])
    recall = np.mean([recall_interval(r.recalled, 400).std for r in results])
    assert precision == pytest.approx(np.std([r.precision for r in results]), rel=0.3)
    assert recall == pytest.approx(np.std([r.recall for r in results]), rel=0.35)


def test_intervals_of_shares_stay_between_zero_and_one():
    ones = precision_interval(np.ones(50, dtype=bool))
    assert ones.std == 0
    assert 0.9 < ones.low < 1
    assert ones.high == 1
    half = recall_interval(np.arange(1000) < 500, samples=100)
    assert half.std == pytest.approx(0.05)
    assert half.low == pytest.approx(0.5 - (half.high - 0.5))


def test_levels_are_those_of_the_normal_distribution():
    influences = np.array([-1.0, 1.0] * 50)
    interval = normal_interval(3.0, influences, level=0.6826894921)
    assert interval.high - 3 == pytest.approx(interval.std, rel=1e-8)
    assert interval.std == pytest.approx(0.1, rel=0.01)


def paired_features(
    seed: int, n: int = 300, d: int = 8, better: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Two generators of one distribution whose samples share most of their noise."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, 8))
    a, b = (0.9 * noise + np.sqrt(0.19) * rng.standard_normal((n, 8)) for _ in range(2))
    return 1.3 * a + 0.4, (1.3 - better) * b + 0.4


def test_p_values_are_uniform_where_neither_is_better():
    mu, sigma = np.zeros(8), np.eye(8)
    values = []
    for seed in range(300):
        a, b = paired_features(seed)
        values.append(compare_fid(fid(a, mu, sigma), a, fid(b, mu, sigma), b, mu, sigma).p)
    assert kstest(values, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.09


def test_pairing_finds_what_separate_intervals_cannot():
    mu, sigma = np.zeros(8), np.eye(8)
    a, b = paired_features(1, n=1000, better=0.04)
    fid_a, fid_b = fid(a, mu, sigma), fid(b, mu, sigma)
    paired = compare_fid(fid_a, a, fid_b, b, mu, sigma)
    apart = np.hypot(fid_interval(fid_a, a, mu, sigma).std, fid_interval(fid_b, b, mu, sigma).std)
    assert paired.difference == pytest.approx(fid_a - fid_b)
    assert paired.std < 0.7 * apart
    assert paired.p < 0.01
    swapped = compare_fid(fid_b, b, fid_a, a, mu, sigma)
    assert (swapped.difference, swapped.p) == (-paired.difference, paired.p)


def test_paired_inception_scores():
    splits = consecutive_splits(300, 300)
    values = []
    for seed in range(200):
        a, b = (class_probabilities(300, 10_000 * part + seed, shared=seed) for part in (1, 2))
        scores = inception_score(a, splits)[0], inception_score(b, splits)[0]
        values.append(compare_inception_score(scores[0], a, scores[1], b, splits).p)
    assert kstest(values, "uniform").pvalue > 0.01
    sure = class_probabilities(300, 1)
    unsure = 0.97 * sure + 0.03 / 10
    scores = inception_score(sure, splits)[0], inception_score(unsure, splits)[0]
    result = compare_inception_score(scores[0], sure, scores[1], unsure, splits)
    assert result.difference > 0
    assert result.p < 0.01


def test_paired_shares():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=1000) < 0.8
    b = a & (rng.uniform(size=1000) < 0.95)  # b loses 5 % of a's: McNemar's test
    result = compare_flags(a, b)
    lost = (a & ~b).sum()
    assert result.difference == pytest.approx(lost / 1000)
    assert result.z == pytest.approx(np.sqrt(lost), rel=0.05)
    same = compare_flags(a, a)
    assert (same.difference, same.std, same.p) == (0, 0, 1)


def test_wrong_use():
    with pytest.raises(UsageError, match="paired"):
        compare(1.0, np.zeros(3), 2.0, np.zeros(4))
    with pytest.raises(UsageError, match="fit"):
        fid_influence(np.zeros((5, 3)), np.zeros(4), np.eye(4))
    with pytest.raises(UsageError, match="two samples"):
        standard_error(np.zeros(1))
    assert inception_score_influence(np.full((4, 2), 0.5), consecutive_splits(4)).tolist() == [0, 0, 0, 0]
