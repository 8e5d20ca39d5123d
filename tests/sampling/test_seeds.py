"""Everything that is drawn for sample i is a function of (seed, i)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cmbench.sampling.generate import EvaluationCounter, Source, shard_ranges
from cmbench.sampling.seeds import LABEL, NOISE, SAMPLER, SampleRng, class_labels, initial_noise, stream

CPU = torch.device("cpu")


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_noise_depends_on_neither_order_nor_company(seed: int, indices: list[int]):
    together = initial_noise(seed, indices, (2, 3))
    for row, index in zip(together, indices, strict=True):
        assert torch.equal(row, initial_noise(seed, [index], (2, 3))[0])


def test_noise_of_pinned_values():
    """A change here changes every published number: raise the revision of every method if it must be."""
    assert initial_noise(0, [0], (3,)).tolist() == [
        [0.059911035001277924, 0.015559634193778038, -1.1644384860992432]
    ]
    assert initial_noise(7, [12345], (3,)).tolist() == [
        [1.8385661840438843, -0.44262272119522095, 0.19643931090831757]
    ]
    assert class_labels(0, range(8), 10).tolist() == [7, 8, 4, 5, 1, 9, 0, 9]
    rng = SampleRng(0, [0], CPU)
    assert rng.normal((2,)).tolist() == [[3.0716545581817627, 2.06587290763855]]
    assert rng.normal((1,)).tolist() == [[-0.6957802176475525]]


def test_different_seeds_samples_and_purposes_are_independent():
    n = 4000
    draws = {
        "sample 0": stream(0, 0, NOISE),
        "sample 1": stream(0, 1, NOISE),
        "seed 1": stream(1, 0, NOISE),
        "labels": stream(0, 0, LABEL),
        "sampler": stream(0, 0, SAMPLER),
    }
    values = np.stack([generator.standard_normal(n) for generator in draws.values()])
    correlation = np.corrcoef(values) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    assert len(np.unique(values)) == values.size
    # (seed, i) = (0, 1) and (1, 0) differ: the pair is not added up
    assert not np.allclose(values[1], values[2])


def test_long_streams_of_one_sample_do_not_run_into_each_other():
    """The streams of a sample start 2^192 blocks apart; the first million draws share nothing."""
    a, b = (set(stream(0, 0, p).integers(0, 2**63, 100_000).tolist()) for p in (NOISE, LABEL))
    assert len(a & b) == 0


def test_noise_is_unit_normal_across_samples():
    x = initial_noise(3, range(500), (10,)).double().numpy().ravel()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    first = initial_noise(3, range(5000), (1,)).double().numpy().ravel()  # neighbouring keys
    assert stats.kstest(first, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / math.sqrt(5000)


def test_labels_are_uniform_and_belong_to_the_sample():
    labels = class_labels(0, range(5000), 10)
    assert labels.dtype == torch.int64
    assert stats.chisquare(np.bincount(labels.numpy(), minlength=10)).pvalue > 1e-3
    assert torch.equal(class_labels(0, [17, 3], 10), labels[[17, 3]])
    assert not torch.equal(class_labels(1, range(5000), 10), labels)
    assert set(class_labels(0, range(100), 1).tolist()) == {0}


def test_noise_inside_a_sampler_goes_on_sample_by_sample():
    rng = SampleRng(0, [4, 9], CPU)
    first, second = rng.normal((3,)), rng.normal((3,))
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    alone = SampleRng(0, [9], CPU)
    assert torch.equal(alone.normal((3,))[0], first[1])
    assert torch.equal(alone.normal((3,))[0], second[1])
    assert not torch.equal(first, initial_noise(0, [4, 9], (3,)))


@given(st.integers(1, 5000), st.integers(1, 700))
def test_shards_cover_every_sample_once_in_order(samples: int, shard: int):
    ranges = shard_ranges(samples, shard)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(samples))
    assert all(stop - start == shard for start, stop in ranges[:-1])
    assert 1 <= ranges[-1][1] - ranges[-1][0] <= shard


def recording(noise, labels, rng):
    extra = 0 if labels is None else labels.reshape(-1, 1, 1, 1)
    return noise + rng.normal(tuple(noise.shape[1:])) + extra


@pytest.mark.parametrize("classes", [0, 5])
def test_batches_are_slices_of_one_sequence(classes: int):
    source = Source(recording, (1, 2, 2), classes, 11, CPU)
    whole = source.images(range(10))
    for size in (1, 3, 10, 64):
        cut = list(source.batches(2, 10, size))
        assert [first for first, _ in cut] == list(range(2, 10, size))
        assert torch.equal(torch.cat([images for _, images in cut]), whole[2:])


def test_labels_reach_the_sampler_of_a_conditional_network_only():
    seen = []

    def sampler(noise, labels, rng):
        seen.append(labels)
        return noise

    Source(sampler, (1, 2, 2), 0, 0, CPU).images(range(3))
    Source(sampler, (1, 2, 2), 4, 0, CPU).images(range(3))
    assert seen[0] is None
    assert torch.equal(seen[1], class_labels(0, range(3), 4))


def test_no_gradients_are_kept():
    weight = torch.nn.Parameter(torch.ones(()))
    made = Source(lambda noise, labels, rng: noise * weight, (1, 2, 2), 0, 0, CPU).images(range(2))
    assert not made.requires_grad


def test_counter_counts_samples_not_calls():
    network = torch.nn.Identity()
    counter = EvaluationCounter(network)
    network(torch.zeros(3, 1))
    network(torch.zeros(6, 1))  # guidance, say: both halves in one call
    assert counter.rows == 9
