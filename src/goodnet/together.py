"""Labels that stand out together: one number for a network, whose targets may hide each other.

Three targets among ten labels make what is usual so wide that none of them lies far from it (the
breakdown that an anomaly index by the median has by construction). So the labels that stand out
furthest are set apart from what is usual, one after the other, and then each is held against the
rest alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from goodnet.scores import Scores

TOGETHER = 3
"""Labels that are set apart. Two hardly hide each other among ten."""

FEWEST = 10
"""With fewer than seven labels left to be held against, what is usual is chance: reference models
have ten, twelve and 43."""

Scored = Callable[[Collection[int]], Scores]
"""Makes a network's scores with some labels set apart from what is usual."""


def standing_together(scored: Scored) -> tuple[float, list[int]]:
    """How far the :data:`TOGETHER` labels that stand out furthest do so, each without the others.

    With s_t(A) the score of label t where the labels in A do not tell what is usual, the set is
    grown by ``argmax_t s_t(A)`` from nothing, and the number is ``min_{t in A} s_t(A)``.

    Args:
        scored: of the network.

    Returns:
        The number, NaN where too few labels that were measured would be left, and the set, the
        strongest first.
    """
    if len(_known(scored(()))) < FEWEST:
        return math.nan, []
    together: list[int] = []
    while len(together) < TOGETHER:
        now = _known(scored(together))
        left = [label for label in now if label not in together]
        together.append(max(left, key=lambda label: now[label]))
    final = _known(scored(together))
    together.sort(key=lambda label: -final[label])
    return final[together[-1]], together


def _known(scores: Scores) -> dict[int, float]:
    """Label -> score, of those whose mask was measured: a score of 0 may be none at all."""
    rows = zip(scores.labels, scores.score.tolist(), scores.mask_index.tolist(), strict=True)
    return {label: score for label, score, mask in rows if not math.isnan(mask)}
