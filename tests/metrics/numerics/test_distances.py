import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cmbench.errors import UsageError
from cmbench.metrics.density_coverage import density_coverage
from cmbench.metrics.distances import neighbours, squared_distances
from cmbench.metrics.diversity import disjoint_pairs, diversity, feature_distances
from cmbench.metrics.memorization import memorization
from cmbench.metrics.precision_recall import manifold_radii
from cmbench.metrics.screening import prepare


def features(n: int, d: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * spread * (1 + np.arange(d)) ** -0.7
    return (3 * np.maximum(x, -0.1) + 0.2).astype(np.float32)


def full(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cdist(x.astype(np.float64), y.astype(np.float64), "sqeuclidean")


@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_of_one_set(k):
    x = features(2300, 24, 1)
    exact = full(x, x)
    np.fill_diagonal(exact, np.inf)
    (points,) = prepare(x)
    found, columns = neighbours(points, points, k)
    np.testing.assert_allclose(found, np.sort(exact, axis=1)[:, :k], rtol=1e-12)
    np.testing.assert_array_equal(columns, np.argsort(exact, axis=1)[:, :k])


@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_in_another_set(k):
    x, y = features(1200, 24, 1, 0.7), features(2100, 24, 2)
    exact = full(x, y)
    found, columns = neighbours(*prepare(x, y), k)
    np.testing.assert_allclose(found, np.sort(exact, axis=1)[:, :k], rtol=1e-12)
    np.testing.assert_array_equal(columns, np.argsort(exact, axis=1)[:, :k])


def test_neighbours_where_all_are_equally_far():
    x = np.eye(150)
    (points,) = prepare(x)
    np.testing.assert_array_equal(neighbours(points, points, 3)[0], np.full((150, 3), 2.0))


def test_a_pair_and_its_reverse_are_equally_far():
    x, y = features(50, 333, 1), features(60, 333, 2)
    i, j = np.divmod(np.arange(3000), 60)
    there = squared_distances(x, i, y, j)
    np.testing.assert_array_equal(there, squared_distances(y, j, x, i))
    np.testing.assert_array_equal(there[77:80], squared_distances(x, i[77:80], y, j[77:80]))


@pytest.mark.parametrize("spread", [0.6, 1.0, 1.3])
def test_density_and_coverage_equal_the_definition(spread):
    x, y = features(1300, 24, 1, spread), features(1100, 24, 2)
    radii = np.sort(full(y, y), axis=1)[:, 5]  # the zeroth is the vector itself
    inside = full(x, y) < radii
    result = density_coverage(x, y)
    np.testing.assert_array_equal(result.balls, inside.sum(axis=1))
    np.testing.assert_array_equal(result.occupied, inside.sum(axis=0))
    assert result.density == pytest.approx(inside.sum() / (5 * 1300), rel=1e-14)
    assert result.coverage == inside.any(axis=0).mean()
    kept = density_coverage(x, y, reference_radii=manifold_radii(y, k=5))
    np.testing.assert_array_equal(kept.balls, result.balls)


def test_the_boundary_of_a_ball_does_not_count():
    reference = np.array([[0.0, 0], [3, 4], [1000, 0], [1000, 5]])
    samples = np.array([[-4.0, 3], [-4, 3 - 1e-12], [5, 0]])
    assert density_coverage(samples, reference, k=1).balls.tolist() == [0, 1, 1]  # [5, 0] is near [3, 4]


def test_duplicates_in_the_reference_make_empty_balls():
    reference = np.repeat(features(3, 8, 1), 10, axis=0)
    assert density_coverage(reference, reference, k=5).density == 0


def test_equal_distributions_have_a_density_near_one():
    result = density_coverage(features(2000, 8, 1), features(2000, 8, 2))
    assert result.density == pytest.approx(1, abs=0.1)
    assert result.coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al., section 3.3


def test_memorization_equals_the_definition():
    x, y = features(600, 24, 1), features(500, 24, 2)
    exact, own = full(x, y), full(y, y)
    np.fill_diagonal(own, np.inf)
    result = memorization(x, y)
    np.testing.assert_array_equal(result.nearest, exact.argmin(axis=1))
    np.testing.assert_allclose(result.distances, np.sqrt(exact.min(axis=1)), rtol=1e-12)
    authentic = own.min(axis=1)[exact.argmin(axis=1)] < exact.min(axis=1)
    np.testing.assert_array_equal(result.authentic, authentic)
    assert result.authpct == pytest.approx(100 * authentic.mean())
    assert result.copied == pytest.approx(1 - authentic.mean())


def test_copies_of_training_images_are_found():
    train = features(300, 24, 2)
    copies = train[::3] + np.float32(1e-4)
    assert memorization(copies, train).copied == 1
    np.testing.assert_array_equal(memorization(copies, train).nearest, np.arange(0, 300, 3))
    far = memorization(train[:50] + 100, train)
    assert far.authpct == 100


def test_pairs_are_disjoint_and_seeded():
    pairs = disjoint_pairs(101, seed=3)
    assert pairs.shape == (50, 2)
    assert len(np.unique(pairs)) == 100
    np.testing.assert_array_equal(pairs, disjoint_pairs(101, seed=3))
    assert not np.array_equal(pairs, disjoint_pairs(101, seed=4))


def test_memorization_of_fresh_draws_has_a_closed_form_on_a_line():
    """Of points on a line at random, one in three fresh ones is authentic: E[1 - exp(-d)] with d ~ Exp(2)."""
    rng = np.random.default_rng(3)
    train, fresh = rng.random((5_000, 1)), rng.random((5_000, 1))
    assert memorization(fresh, train).authpct == pytest.approx(100 / 3, abs=2)


def test_closeness_is_the_distance_in_units_of_the_training_images_own():
    train = np.array([[0.0], [1.0], [4.0], [4.0]])
    found = memorization(np.array([[0.25], [1.0], [-3.0], [5.0], [4.0]]), train)
    radii = np.array([1.0, 1.0, 0.0, 0.0])  # squared
    np.testing.assert_array_equal(found.closeness(radii), [0.25, 0, 3, np.inf, 0])
    np.testing.assert_array_equal(found.authentic, [False, False, True, True, False])


def test_diversity_of_gaussian_features():
    x = np.random.default_rng(0).standard_normal((20_000, 2))
    result = diversity(feature_distances(x, disjoint_pairs(len(x))))
    assert result.mean == pytest.approx(np.sqrt(np.pi), abs=4 * result.error)  # |N(0, 2 I)| in two dimensions
    assert result.error == pytest.approx(np.sqrt((4 - np.pi) / 10_000), rel=0.05)


def test_wrong_use():
    x = features(20, 8, 1)
    with pytest.raises(UsageError, match="nearest"):
        density_coverage(x, x[:5])
    with pytest.raises(UsageError, match="radii"):
        memorization(x, x, train_radii=np.zeros(3))
    with pytest.raises(UsageError, match="pairs"):
        disjoint_pairs(3)
    with pytest.raises(UsageError, match="pairs"):
        diversity([1.0])
