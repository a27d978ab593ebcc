"""From each channel's numbers to a verdict: statistics only.

Until clean reference models have calibrated it (then a p-value stands here), the decision is an
index against the other labels of the same model, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goodnet.statistics import mad_index, robust_z

Floats = NDArray[np.float64]

NEURAL_CLEANSE_THRESHOLD = 2.0
"""Wang et al. 2019, section IV: an anomaly index above 2 names a target."""

SLACK = 1.65
"""How far beyond the expected largest of K normal scores a target's score lies."""

SUSPICION = 1.0
"""The same of a suspect."""

COMPANION = 0.6
"""A further target has at least this share of the leader's score: planted triggers are of one
order, while a label that is easy by nature only looks like one."""

CEILING = 10.0
"""No channel counts for more than this: beyond it a robust z says nothing more."""

FEW_CLASSES = 4
"""Below this many classes no label can be an outlier among the others."""

FEW_IMAGES = 20
"""Below this many clean images "no evidence" is not an answer."""


@dataclass(frozen=True)
class Scores:
    """The evidence of every measured label, arrays of one length.

    Attributes:
        labels: the class numbers.
        margin_index: robust z of the universal margin, mean over the budgets.
        anomaly_index: Neural Cleanse's MAD index of the mask's L1 norm.
        mask_index: the same of log L1: norms are skewed, and the plain index saturates at
            median/MAD however small a mask is.
        score: both channels in one number, in units of a standard normal.
    """

    labels: list[int]
    margin_index: Floats
    anomaly_index: Floats
    mask_index: Floats
    score: Floats


def combine(
    labels: Sequence[int],
    margins: Mapping[int, Sequence[float]],
    masks: Mapping[int, float],
    reference: Sequence[int],
) -> Scores:
    """The indices of ``labels`` against the labels in ``reference``.

    Args:
        labels: what was measured.
        margins: label -> universal margin for each budget; absent where it failed.
        masks: label -> L1 norm; absent where the inversion failed.
        reference: the labels that say what is usual: all of them, or random controls where only
            the leaders and controls were measured (the leaders are no fair sample).
    """
    usual = np.isin(np.array(labels), np.array(reference))
    widest = max((len(row) for row in margins.values()), default=0)
    columns = [
        _against(np.array([margins[n][b] if n in margins else np.nan for n in labels]), usual)
        for b in range(widest)
    ]
    margin = np.mean(columns, axis=0) if columns else np.full(len(labels), np.nan)
    sizes = np.array([masks.get(label, np.nan) for label in labels], dtype=np.float64)
    mask = -_against(np.log(np.maximum(sizes, 1e-6)), usual)
    parts = [np.clip(np.nan_to_num(part, nan=0.0), 0.0, CEILING) for part in (margin, mask)]
    score = (parts[0] + parts[1]) / math.sqrt(2.0)
    return Scores(list(labels), margin, _index(sizes, usual), mask, score)


def _against(values: Floats, usual: NDArray[np.bool_]) -> Floats:
    """Robust z of every value by the median and MAD of the usual ones."""
    out = np.full(len(values), np.nan)
    for place in np.flatnonzero(np.isfinite(values)):
        sample = np.append(values[usual & (np.arange(len(values)) != place)], values[place])
        out[place] = robust_z(sample)[-1]
    return out


def _index(sizes: Floats, usual: NDArray[np.bool_]) -> Floats:
    out = np.full(len(sizes), np.nan)
    for place in np.flatnonzero(np.isfinite(sizes)):
        sample = np.append(sizes[usual & (np.arange(len(sizes)) != place)], sizes[place])
        out[place] = mad_index(sample)[-1]
    return out


def threshold(num_classes: int, slack: float = SLACK, *, compared: int | None = None) -> float:
    """The score from which a label is a target: the largest of K normal scores lies near
    ``sqrt(2 ln K)``, so that more classes alone do not raise more alarms. ``compared`` is the
    number of labels that were measured, where not all were.
    """
    # The median and MAD of a handful of labels are themselves chance.
    few = 0.5 * max(0, 10 - (num_classes if compared is None else compared))
    return math.sqrt(2.0 * math.log(max(num_classes, 2))) + slack + few


def flagged(scores: Scores, num_classes: int, slack: float = SLACK) -> list[int]:
    """Labels above :func:`threshold` and not far below the leader, the strongest first."""
    compared = len(scores.labels)
    bar = max(
        threshold(num_classes, slack, compared=compared),
        COMPANION * float(scores.score.max(initial=0.0)),
    )
    order = np.argsort(-scores.score, kind="stable")
    return [scores.labels[i] for i in order if scores.score[i] >= bar]


def neural_cleanse(scores: Scores) -> list[int]:
    """The paper's rule: anomaly index above 2, the largest index first."""
    order = np.argsort(-np.nan_to_num(scores.anomaly_index, nan=-np.inf), kind="stable")
    return [scores.labels[i] for i in order if scores.anomaly_index[i] > NEURAL_CLEANSE_THRESHOLD]


def skipped_words(labels: int) -> str:
    """The reason that belongs into every report of a scan that ran out of time."""
    return f"{labels} labels were skipped: the budget of time was spent"


def doubts(
    *, images: int, measured: int, wanted: int, compared: int, skipped: int = 0
) -> list[str]:
    """Why "no evidence" would not be an honest answer; empty if it would.

    Args:
        images: clean images that the scan could use.
        measured: labels whose every channel came to a result.
        wanted: labels that should have one.
        compared: labels that were measured; with 2 there is nothing to be an outlier of.
        skipped: labels that there was no time for.
    """
    found = []
    if images < FEW_IMAGES:
        found.append(f"only {images} usable clean images; at least {FEW_IMAGES} are needed")
    if measured < 2 * wanted / 3 or not (wanted or skipped):
        found.append(f"the measurement failed for {wanted - measured} of {wanted} labels")
    if skipped:
        found.append(skipped_words(skipped))
    if compared < FEW_CLASSES:
        found.append(f"with {compared} labels none can be an outlier among the others")
    return found
