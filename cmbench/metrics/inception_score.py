"""Inception Score (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), averaged over splits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax, xlogy

from cmbench.errors import UsageError, WorkError
from cmbench.metrics.moments import as_features, require_finite

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def consecutive_splits(total: int, size: int = 5000) -> npt.NDArray[np.intp]:
    """The split of each of ``total`` samples as the ADM evaluator cuts them: runs of ``size``."""
    return np.arange(total) // size


def shuffled_splits(total: int, splits: int = 10, seed: int = 2020) -> npt.NDArray[np.intp]:
    """The split of each of ``total`` samples as torch-fidelity cuts them: equal parts of a seeded shuffle.

    Raises UsageError for fewer samples than splits.
    """
    if total < splits:
        raise UsageError(f"{splits} splits need at least as many samples, there are {total}")
    bounds = np.arange(splits + 1) * total // splits
    assignment = np.empty(total, dtype=np.intp)
    order = np.random.RandomState(seed).permutation(total)  # the legacy generator: it defines the split
    assignment[order] = np.repeat(np.arange(splits), np.diff(bounds))
    return assignment


def probabilities(logits: Any) -> Float64:
    """Softmax over the last axis in float64 of logits [B, C] (array or torch tensor)."""
    result: Float64 = softmax(as_features(logits, "logits").astype(np.float64), axis=1)
    return result


class SplitEntropy:
    """What the Inception Score needs of each split: the count, Σ p [C] and Σ Σ_c p log p, all in float64.

    ``splits`` [N] names the split of every sample index, so that neither the order of the samples, nor the
    batch size, nor the order of merging changes the score.
    """

    def __init__(self, splits: npt.NDArray[np.intp], classes: int) -> None:
        self.splits = splits
        self._expected = np.bincount(splits)
        self._n = np.zeros(len(self._expected), dtype=np.int64)
        self._p: Float64 = np.zeros((len(self._expected), classes))
        self._plogp: Float64 = np.zeros(len(self._expected))

    def update(self, p: Any, indices: npt.ArrayLike) -> None:
        """Add class probabilities [B, C] (each row sums to one) of the samples of these indices [B].

        Raises:
            UsageError: shapes or indices that do not fit.
            WorkError: a value that is not finite; names the sample.
        """
        p, indices = as_features(p, "probabilities").astype(np.float64), np.asarray(indices, dtype=np.intp)
        if p.shape != (len(indices), self._p.shape[1]):
            raise UsageError(f"probabilities {list(p.shape)}, not [{len(indices)}, {self._p.shape[1]}]")
        if indices.size == 0:
            return
        if indices.min() < 0 or indices.max() >= len(self.splits):
            raise UsageError(f"sample indices must lie in 0..{len(self.splits) - 1}")
        require_finite(p, int(indices[0]))
        member = (np.arange(len(self._n))[:, None] == self.splits[indices]).astype(np.float64)  # [splits, B]
        self._n += member.sum(axis=1).astype(np.int64)
        self._p += member @ p
        self._plogp += member @ xlogy(p, p).sum(axis=1)

    def merge(self, other: "SplitEntropy") -> None:
        """Add everything that ``other`` has seen. Raises UsageError unless both follow the same splits."""
        if self._p.shape != other._p.shape or not np.array_equal(self.splits, other.splits):
            raise UsageError("cannot merge Inception Scores over different splits or classes")
        self._n += other._n
        self._p += other._p
        self._plogp += other._plogp

    def scores(self) -> Float64:
        """The score of each split. Raises WorkError where samples are missing or came twice."""
        if not np.array_equal(self._n, self._expected):
            raise WorkError(
                f"Inception Score: {int(self._n.sum())} samples of {len(self.splits)} were counted"
            )
        marginal = self._p / self._n[:, None]
        divergence = self._plogp / self._n - xlogy(marginal, marginal).sum(axis=1)
        result: Float64 = np.exp(divergence)
        return result

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation (ddof 0) of the scores of the splits."""
        scores = self.scores()
        return float(scores.mean()), float(scores.std())

    def state(self) -> dict[str, Array]:
        """Arrays ``n`` [S], ``p`` [S, C] and ``plogp`` [S] over splits, to be saved with a shard."""
        return {"n": self._n.copy(), "p": self._p.copy(), "plogp": self._plogp.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, Array], splits: npt.NDArray[np.intp]) -> "SplitEntropy":
        """Inverse of :meth:`state` for the same splits [N]. Raises WorkError for one that does not fit."""
        try:
            n, p, plogp = state["n"], state["p"], state["plogp"]
        except KeyError as error:
            raise WorkError(f"damaged Inception Score state: {error} is missing") from error
        entropy = cls(splits, p.shape[-1])
        if p.shape != entropy._p.shape or not n.shape == plogp.shape == entropy._n.shape:
            raise WorkError(f"an Inception Score state of {len(p)} splits does not fit {len(entropy._n)}")
        entropy._n[:], entropy._p[:], entropy._plogp[:] = n, p, plogp
        return entropy


def inception_score(p: Any, splits: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over splits of class probabilities [N, C] held in full."""
    entropy = SplitEntropy(splits, as_features(p, "probabilities").shape[1])
    entropy.update(p, np.arange(len(splits)))
    return entropy.score()
