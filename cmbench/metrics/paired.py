"""Is one run better than another? Paired comparison of runs whose samples of one index share their noise.

Two generators that start from the same noise make related images, and sampling moves their figures together.
The difference of influence values, sample by sample, keeps what they share out of the error of the
difference.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from cmbench.errors import UsageError
from cmbench.metrics.moments import Float64
from cmbench.metrics.uncertainty import fid_influence, inception_score_influence, standard_error


@dataclass(frozen=True)
class Comparison:
    """``difference`` of a figure (first run less second), its standard error, z and the two-sided p-value.

    p is the chance of a difference this large if the generators were equally good on this metric, at this
    number of samples. It speaks of these two trained networks, not of what another training run would give.
    """

    difference: float
    std: float
    z: float
    p: float


def compare(value_a: float, influence_a: Float64, value_b: float, influence_b: Float64) -> Comparison:
    """Compare two figures from the influence values [n] of their samples, index by index.

    Raises UsageError where the runs have different numbers of samples.
    """
    if influence_a.shape != influence_b.shape:
        raise UsageError(f"runs of {len(influence_a)} and {len(influence_b)} samples are not paired")
    difference = value_a - value_b
    std = standard_error(influence_a - influence_b)
    if std == 0:  # the same samples twice, or figures that no sample can move
        z = float(np.copysign(np.inf, difference)) if difference else 0.0
        return Comparison(difference, std, z, float(difference == 0))
    z = difference / std
    return Comparison(difference, std, z, float(2 * norm.sf(abs(z))))


def compare_fid(
    fid_a: float, features_a: object, fid_b: float, features_b: object, mu: Float64, sigma: Float64
) -> Comparison:
    """Compare the Fréchet distances of two runs [n, D] to one reference ``mu`` [D], ``sigma`` [D, D]."""
    return compare(fid_a, fid_influence(features_a, mu, sigma), fid_b, fid_influence(features_b, mu, sigma))


def compare_inception_score(
    score_a: float, p_a: object, score_b: float, p_b: object, splits: npt.NDArray[np.intp]
) -> Comparison:
    """Compare the Inception Scores of two runs from class probabilities [n, C] over the same splits."""
    return compare(
        score_a, inception_score_influence(p_a, splits), score_b, inception_score_influence(p_b, splits)
    )


def compare_flags(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Comparison:
    """Compare two shares from their flags.

    Flags of precision [N] pair the samples. Flags of recall [M] pair the reference images: p is then over the
    draw of the reference, with both sample manifolds as they are.
    """
    share_a, share_b = float(a.mean()), float(b.mean())
    return compare(share_a, a.astype(np.float64) - share_a, share_b, b.astype(np.float64) - share_b)
