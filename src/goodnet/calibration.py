"""From a statistic to a p-value: by what the same statistic is on clean reference models.

Numbers in, numbers out. What a rank among M reference models says ends at 1 / (M + 1); a smaller
p-value takes a law. A model's statistic is a maximum, of its labels or of several tries, and the
law of maxima is Gumbel's (Fisher and Tippett 1928): :class:`Maxima`. For single labels, for a
statistic that is nought of most clean models, and for those that are a sum of logarithms or the
third largest number, the tail of all reference numbers is taken to be exponential (Pickands 1975,
with shape 0): :class:`Reference`.
Both p-values are those of the *predictive* law: what the parameters are is known only as well as so
many reference models can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TAIL = 0.1
"""The share of the reference labels that the tail is fitted to."""

FEWEST_MODELS = 8
"""With fewer reference models there is no p-value."""


@dataclass(frozen=True)
class Reference:
    """What one statistic is on clean models.

    Attributes:
        scores: all reference labels' scores, ascending, float64 ``(n,)``.
        weights: of each of them: one over the labels of its model, so that a model of many classes
            counts as much as one of few; they sum to ``total``.
        start: where the tail begins.
        share: of the weight that lies beyond it.
        scale: mean excess over ``start`` of those, by weight.
        models: how many models they belong to: the degrees of freedom of ``scale``. The labels of
            one model are alike, so that they count once.
        total: how many reference models there are.
    """

    scores: Floats
    weights: Floats
    start: float
    share: float
    scale: float
    models: int
    total: int

    def survival(self, score: float, labels: int = 1) -> float:
        """The chance that a label of a clean model has at least this score; of NaN it is 1.

        ``labels`` is for :meth:`Maxima.survival` and plays no part here.

        Below the start of the tail it is the share of the reference labels, with one more label on
        both sides (which keeps a rank honest); beyond it, with n models behind the scale b,
        ``share * (1 + (score - start) / (n b)) ** -n``: an exponential tail whose scale has the
        posterior that n exponential excesses leave of it.
        """
        if np.isnan(score):
            return 1.0
        if score <= self.start:
            place = int(np.searchsorted(self.scores, score, side="left"))
            return _one_more(float(self.weights[place:].sum()), self.weights)
        beyond = (score - self.start) / (self.models * self.scale)
        return float(self.share * (1.0 + beyond) ** -self.models)


GRID = 61
"""Points on each axis on which the two parameters of a Gumbel law are weighed."""


@dataclass(frozen=True)
class Maxima:
    """What a statistic that is a maximum is on clean models: a Gumbel law that is known in part.

    The largest of n numbers with an exponential tail lies, of ten times as many, ``scale * ln 10``
    higher. So the location of a model of n labels is that of one label plus ``scale * ln n``.

    Attributes:
        values: of the reference models.
        locations, scales: parameters that may be theirs, ``(g,)``; the location is that of n = 1.
        weights: how probable each pair is, by the reference and a flat prior of the location and of
            the logarithm of the scale; they sum to 1.
    """

    values: Floats
    locations: Floats
    scales: Floats
    weights: Floats

    @property
    def total(self) -> int:
        """How many reference models there are."""
        return len(self.values)

    def survival(self, value: float, labels: int = 1) -> float:
        """The chance that a clean model has at least this value; of NaN it is 1.

        Args:
            value: the statistic.
            labels: how many numbers it is the largest of, as far as the reference tells them.
        """
        if np.isnan(value):
            return 1.0
        beyond = -np.expm1(-labels * np.exp(-(value - self.locations) / self.scales))
        return float(np.clip((self.weights * beyond).sum(), 0.0, 1.0))


def maxima(values: Sequence[float], labels: Sequence[int] | None = None) -> Maxima | None:
    """What a statistic of clean models says of further ones.

    Args:
        values: one for each reference model; NaN is left out.
        labels: how many numbers each is the largest of; by default that plays no part.

    Returns:
        None where there are fewer than :data:`FEWEST_MODELS` models, or no spread.
    """
    everything = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(everything)
    known = everything[finite]
    logs = np.zeros(len(known)) if labels is None else np.log(np.asarray(labels)[finite])
    if len(known) < FEWEST_MODELS or np.ptp(known) == 0:
        return None
    # By moments, and far enough to all sides that the rest of the parameters weighs nothing.
    scale = float(known.std(ddof=1)) * math.sqrt(6.0) / math.pi
    scales = (scale * np.exp(np.linspace(-1.5, 1.5, GRID)))[:, None]
    # For each scale the location is looked for around the one that fits it.
    middle = known.mean() - (np.euler_gamma + logs.mean()) * scales
    locations = middle + scale * np.linspace(-3.0, 3.0, GRID)[None, :]
    likelihood = np.zeros((GRID, GRID))
    for value, log in zip(known, logs, strict=True):
        reduced = (value - locations) / scales - log
        likelihood += -np.log(scales) - reduced - np.exp(-reduced)
    weights = np.exp(likelihood - likelihood.max())
    return Maxima(
        known,
        locations.ravel(),
        np.broadcast_to(scales, weights.shape).ravel(),
        (weights / weights.sum()).ravel(),
    )


def _one_more(above: float, weights: Floats) -> float:
    """A share of weight with one more label of mean weight on both sides."""
    each = float(weights.mean())
    return (above + each) / (float(weights.sum()) + each)


def reference(models: Sequence[ArrayLike], tail: float = TAIL) -> Reference | None:
    """What the scores of clean models' labels say of further ones.

    The law of a score may depend on the number of classes: give models like those to be judged.

    Args:
        models: the labels' scores of each reference model; a statistic of the whole model is one
            number. NaN is left out.
        tail: the share of the labels that the tail is fitted to.

    Returns:
        None where there are fewer than :data:`FEWEST_MODELS` models, or no spread.
    """
    rows = [np.asarray(row, dtype=np.float64).ravel() for row in models]
    rows = [row[np.isfinite(row)] for row in rows]
    rows = [row for row in rows if len(row)]
    if len(rows) < FEWEST_MODELS:
        return None
    scores = np.concatenate(rows)
    weights = np.concatenate([np.full(len(row), 1.0 / len(row)) for row in rows])
    order = np.argsort(scores, kind="stable")
    scores, weights = scores[order], weights[order]
    # Never less than a handful of labels.
    above = np.cumsum(weights[::-1])[::-1]
    wanted = max(int((above <= tail * len(rows)).sum()), FEWEST_MODELS)
    start = float(scores[-min(wanted, len(scores) - 1) - 1])
    beyond = scores > start
    if not beyond.any():
        return None
    behind = sum(bool((row > start).any()) for row in rows)
    return Reference(
        scores=scores,
        weights=weights,
        start=start,
        share=_one_more(float(weights[beyond].sum()), weights),
        scale=float(np.average(scores[beyond] - start, weights=weights[beyond])),
        models=behind,
        total=len(rows),
    )


def combine(p_values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Weighted Bonferroni: ``min(1, min_i p_i / w_i)``, whatever the dependence of the p-values.

    Args:
        p_values: None for a test that could not be made; its weight is lost, not shared out, so
            that the rule stays fixed in advance.
        weights: above 0, with a sum of at most 1.

    Returns:
        None where no test could be made.

    Raises:
        ValueError: the weights do not fit.
    """
    if len(p_values) != len(weights) or min(weights) <= 0 or sum(weights) > 1 + 1e-9:
        raise ValueError(f"weights {list(weights)} for {len(p_values)} p-values")
    made = [p / w for p, w in zip(p_values, weights, strict=True) if p is not None]
    return min(1.0, *made) if made else None


def selected(p_values: ArrayLike, level: float = 0.05) -> list[int]:
    """Which of many p-values stand out, with control of false discoveries.

    Benjamini and Hochberg (1995): the k smallest, for the largest k with p_(k) <= k level / n.

    Args:
        p_values: ``(n,)``; NaN is never selected, but counts.
        level: the expected share of false ones among those selected.

    Returns:
        Places in ``p_values``, the smallest p-value first.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    bounds = level * np.arange(1, len(values) + 1) / max(len(values), 1)
    passed = np.flatnonzero(values[order] <= bounds)
    return [int(i) for i in order[: passed[-1] + 1]] if len(passed) else []
