import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.moments import Moments


def features(n: int, d: int, mean: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / 4)
    mixing = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return ((rng.standard_normal((n, d)) * scale) @ mixing + mean).astype(np.float32)


def accumulate(x: np.ndarray, cuts: list[int]) -> Moments:
    moments = Moments(x.shape[1])
    for part in np.split(x, sorted(cuts)):
        moments.update(part)
    return moments


def assert_same(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-13)
    sa, sb = a.covariance(), b.covariance()
    assert np.abs(sa - sb).max() <= 1e-12 * np.abs(sa).max()


def test_equals_numpy():
    x = features(300, 20)
    moments = accumulate(x, [7, 7, 150])
    np.testing.assert_allclose(moments.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(), np.cov(x.astype(np.float64), rowvar=False), atol=1e-14)
    np.testing.assert_allclose(moments.covariance(ddof=0) * 300 / 299, moments.covariance(), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 64), max_size=6), st.lists(st.integers(0, 64), max_size=6))
def test_the_batches_do_not_matter(cuts, other_cuts):
    x = features(64, 6)
    assert_same(accumulate(x, cuts), accumulate(x, other_cuts))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 4))
def test_merged_shards_equal_the_whole_in_any_order_and_grouping(order, group):
    x = features(50, 6)
    shards = [accumulate(part, []) for part in np.split(x, [3, 4, 20, 41])]
    left, right = Moments(6), Moments(6)
    for position in order[:group]:
        left.merge(shards[position])
    for position in order[group:]:
        right.merge(shards[position])
    left.merge(right)
    assert_same(left, accumulate(x, []))


def test_a_large_mean_costs_no_digits():
    x = features(400, 5, mean=0.0).astype(np.float64)
    exact = np.cov(x, rowvar=False)
    shifted = accumulate(x + 2.0**30, [100, 200, 300]).covariance()  # plain sums keep no digit
    np.testing.assert_allclose(shifted, exact, atol=1e-7)


def test_state_round_trip_continues_where_it_stopped():
    x = features(60, 7)
    first = accumulate(x[:25], [])
    resumed = Moments.from_state(first.state())
    resumed.update(x[25:])
    first.update(x[25:])
    np.testing.assert_array_equal(resumed.covariance(), first.covariance())
    assert resumed.n == 60


def test_torch_tensors_equal_arrays():
    x = features(30, 4)
    from_torch = Moments(4)
    from_torch.update(torch.from_numpy(x).requires_grad_())
    np.testing.assert_array_equal(from_torch.covariance(), accumulate(x, []).covariance())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_names_the_sample_that_is_not_finite(bad):
    x = features(20, 4)
    x[13, 2] = bad
    with pytest.raises(WorkError, match="sample 13 "):
        accumulate(x, [8])
    with pytest.raises(WorkError, match="sample 1013 "):
        Moments(4).update(x, first_index=1000)


def test_wrong_use():
    with pytest.raises(UsageError, match="dimensions"):
        Moments(4).update(np.zeros((3, 5)))
    with pytest.raises(UsageError, match="shape"):
        Moments(4).update(np.zeros(4))
    with pytest.raises(UsageError, match="merge"):
        Moments(4).merge(Moments(5))
    with pytest.raises(WorkError, match="more than 1"):
        accumulate(np.zeros((1, 4)), []).covariance()
    with pytest.raises(WorkError, match="damaged"):
        Moments.from_state({"n": np.array(3), "mean": np.zeros(4), "m2": np.zeros((3, 3))})
