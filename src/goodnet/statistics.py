"""Exact intervals and robust outlier indexes; numbers in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from goodnet.reports import AccuracyLoss, Proportion

MAD_TO_SIGMA = 1.4826
"""The standard deviation of a normal distribution, in units of its median absolute deviation."""
MEAN_AD_TO_SIGMA = 1.2533
"""The same in units of its mean absolute deviation, sqrt(pi / 2)."""

_ROUNDING = 1e-14


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934).

    Args:
        successes: 0 to ``n``.
        n: trials; with 0 of them nothing is known and the interval is ``(0, 1)``.
        confidence: at least this share of such intervals holds the true proportion; in (0, 1).

    Returns:
        ``(low, high)`` with ``0 <= low <= successes / n <= high <= 1``.

    Raises:
        ValueError: for counts or a confidence outside these ranges.
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"no interval for {successes} of {n} at {confidence}")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.isf(tail, successes + 1, n - successes))
    return low, high


def proportion(successes: int, n: int) -> Proportion:
    """A proportion with its exact 95 % interval.

    Args:
        successes: 0 to ``n``.
        n: trials; with 0 of them the value is 0 and the interval says that nothing is known.

    Raises:
        ValueError: for counts outside these ranges.
    """
    low, high = clopper_pearson(successes, n)
    return Proportion(value=successes / n if n else 0.0, low=low, high=high, n=n)


def one_sided(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Exact bounds of a proportion, each of which holds with ``confidence`` by itself.

    Args:
        successes: 0 to ``n``.
        n: trials.
        confidence: of either bound; in (.5, 1).

    Raises:
        ValueError: for counts or a confidence outside these ranges.
    """
    return clopper_pearson(successes, n, 2 * confidence - 1)


def accuracy_loss(lost: int, gained: int, n: int, confidence: float = 0.95) -> AccuracyLoss:
    """How much accuracy a change has cost, from the same images before and after.

    Two exact bounds in one (Bonferroni): the share of images lost and the share gained, each at
    half the error. Conservative, and right for any n; images whose answer is right, or wrong, both
    times are no evidence, which is why the pairs are worth more than two accuracies.

    Args:
        lost: images answered rightly before and wrongly after.
        gained: the other way round.
        n: all images; at least ``lost + gained``.
        confidence: of the lower and of the upper bound, each by itself; in (.5, 1).

    Raises:
        ValueError: for counts or a confidence outside these ranges.
    """
    if lost + gained > n:
        raise ValueError(f"{lost} + {gained} changed of {n}")
    each = (1 + confidence) / 2
    least_lost, most_lost = one_sided(lost, n, each)
    least_gained, most_gained = one_sided(gained, n, each)
    return AccuracyLoss(
        value=(lost - gained) / n if n else 0.0,
        low=least_lost - most_gained,
        high=most_lost - least_gained,
        confidence=confidence,
        lost=lost,
        gained=gained,
        n=n,
    )


def mad_index(values: ArrayLike) -> NDArray[np.float64]:
    """How far each value lies below the others: the anomaly index of Neural Cleanse.

    ``(median - v) / (1.4826 MAD)``, with the true median (of an even number, the mean of the
    middle two). Positive for values below the median; the published rule flags those above 2.

    Where more than half of the values are equal, the MAD is 0 and says nothing about the rest: the
    scale is then 1.2533 times the mean absolute deviation from the median, as Iglewicz and Hoaglin
    (1993) have it. Where all are equal, every index is 0.

    Args:
        values: ``(K,)``; NaN and infinity (labels for which nothing was measured) are kept out.

    Returns:
        float64 ``(K,)``, NaN at the values kept out, and throughout if fewer than 3 are left; never
        infinite.

    Raises:
        ValueError: if ``values`` is not one-dimensional.
    """
    return -robust_z(values)


def robust_z(values: ArrayLike) -> NDArray[np.float64]:
    """How far each value lies above the others: ``(v - median) / (1.4826 MAD)``.

    The mirror image of :func:`mad_index`, where everything else about it is told.

    Args:
        values: ``(K,)``; NaN and infinity are kept out.

    Returns:
        float64 ``(K,)``, as :func:`mad_index`.

    Raises:
        ValueError: if ``values`` is not one-dimensional.
    """
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"one value for each label is needed, not the shape {array.shape}")
    result = np.full(array.shape, np.nan)
    known = np.isfinite(array)
    if known.sum() < 3:
        return result
    kept = array[known]
    largest = float(np.abs(kept).max())
    if largest == 0:
        result[known] = 0.0
        return result
    # Divided by the largest first, so that no difference overflows.
    kept = kept / largest
    deviations = kept - np.median(kept)
    sizes = np.abs(deviations)
    scale = MAD_TO_SIGMA * float(np.median(sizes))
    # A spread of a few rounding errors is none: dividing by it would make any value an outlier.
    if scale < _ROUNDING:
        scale = MEAN_AD_TO_SIGMA * float(sizes.mean())
    result[known] = deviations / scale if scale >= _ROUNDING else 0.0
    return result
