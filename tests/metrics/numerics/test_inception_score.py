import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.inception import InceptionScore

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.inception_score import (
    SplitEntropy,
    consecutive_splits,
    inception_score,
    probabilities,
    shuffled_splits,
)


def logits(n: int, classes: int = 30, seed: int = 0) -> np.ndarray:
    """Logits that are sure of most samples, as those of a trained classifier are; sorted by class."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, classes)) * 2
    x[np.arange(n), np.arange(n) * classes // n] += rng.uniform(0, 15, n)
    return x.astype(np.float32)


def test_one_hot_uniform_scores_the_number_of_classes():
    p = np.tile(np.eye(10), (20, 1))
    mean, std = inception_score(p, consecutive_splits(200, 50))
    assert mean == pytest.approx(10, rel=1e-14)
    assert std == pytest.approx(0, abs=1e-13)


def test_undecided_predictions_score_one():
    assert inception_score(np.full((40, 8), 1 / 8), shuffled_splits(40, 4))[0] == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("n", [500, 503, 1009])
def test_equals_torch_fidelity(n):
    x = logits(n)
    expected = isc_features_to_metric(torch.from_numpy(x))
    mean, std = inception_score(probabilities(x), shuffled_splits(n))
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-11)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-9)


@pytest.mark.filterwarnings("ignore")  # torchmetrics speaks of its buffers
def test_equals_torchmetrics_on_one_split():
    x = torch.from_numpy(logits(400))
    with torch.no_grad():
        theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
        theirs.features.append(x)
        expected = float(theirs.compute()[0])
    assert inception_score(probabilities(x), consecutive_splits(400))[0] == pytest.approx(expected, rel=1e-5)


def test_consecutive_chunks_are_those_of_the_adm_evaluator():
    p = probabilities(logits(1250))
    scores = []
    for start in range(0, len(p), 500):
        part = p[start : start + 500]
        kl = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(kl.sum(axis=1).mean()))
    mean, std = inception_score(p, consecutive_splits(1250, 500))
    assert mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert std == pytest.approx(np.std(scores), rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=4), st.booleans())
def test_order_batches_and_merging_do_not_matter(order, cuts, merge):
    p, splits = probabilities(logits(24, 5)), shuffled_splits(24, 3)
    total = SplitEntropy(splits, 5)
    for indices in np.split(np.array(order), sorted(cuts)):
        part = SplitEntropy(splits, 5) if merge else total
        part.update(p[indices], indices)
        if merge:
            total.merge(part)
    assert total.score() == pytest.approx(inception_score(p, splits), rel=1e-12, abs=1e-13)


def test_state_round_trip():
    p, splits = probabilities(logits(60, 5)), consecutive_splits(60, 20)
    first = SplitEntropy(splits, 5)
    first.update(p[:33], np.arange(33))
    resumed = SplitEntropy.from_state(first.state(), splits)
    resumed.update(p[33:], np.arange(33, 60))
    assert resumed.score() == pytest.approx(inception_score(p, splits), rel=1e-13)
    with pytest.raises(WorkError, match="does not fit"):
        SplitEntropy.from_state(first.state(), consecutive_splits(60, 10))


def test_an_incomplete_or_doubled_count_is_an_error():
    p, splits = probabilities(logits(20, 5)), consecutive_splits(20, 10)
    entropy = SplitEntropy(splits, 5)
    entropy.update(p[:15], np.arange(15))
    with pytest.raises(WorkError, match="15 samples of 20"):
        entropy.score()
    entropy.update(p[:5], np.arange(5))
    with pytest.raises(WorkError, match="were counted"):
        entropy.score()


def test_wrong_use():
    entropy = SplitEntropy(consecutive_splits(20, 10), 5)
    with pytest.raises(UsageError, match="sample indices"):
        entropy.update(np.full((1, 5), 0.2), [20])
    with pytest.raises(UsageError, match="probabilities"):
        entropy.update(np.full((2, 5), 0.2), [0])
    with pytest.raises(WorkError, match="sample 3"):
        entropy.update(np.full((1, 5), np.nan), [3])
    with pytest.raises(UsageError, match="merge"):
        entropy.merge(SplitEntropy(consecutive_splits(20, 5), 5))
    with pytest.raises(UsageError, match="splits"):
        shuffled_splits(5, 10)
