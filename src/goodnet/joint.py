"""Several kinds of evidence for one label: one number a network.

A faint blend is a label that stands out a little and that a colour filter leads to a little, and
neither is rare. That both are the same label's is: on clean networks each kind has an easiest label
of its own. So for every label the kinds are taken together as Fisher (1925) takes tests together,
and the number is the largest of all labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from goodnet.calibration import Maxima, Reference
from goodnet.scores import Scores
from goodnet.tables import UNSURE

LEAST = 1e-12
"""No p-value counts for less."""


def kinds(
    scores: Scores,
    preferred: Mapping[int, float],
    tinted: Mapping[int, float],
    known: Mapping[str, Maxima | Reference | None],
    num_classes: int,
) -> list[dict[int, float]]:
    """For each kind of evidence, label -> the chance that any label of a clean model has as much.

    Args:
        scores: of the labels; a label that was not measured is not told of.
        preferred: label -> margin under the small change that favours it most.
        tinted: label -> how far a colour filter leads to it.
        known: what each kind is on clean models (:func:`goodnet.tables.of_models`).
        num_classes: K.
    """
    measured = (
        ("highest", num_classes, dict(zip(scores.labels, scores.score.tolist(), strict=True))),
        ("warped", num_classes, dict(zip(scores.labels, scores.warp_index.tolist(), strict=True))),
        ("tinted", 1, tinted),
        ("preferred", 1, {label: max(value, UNSURE) for label, value in preferred.items()}),
    )
    return [
        {label: law.survival(value, labels) for label, value in row.items()}
        for name, labels, row in measured
        if (law := known[name]) is not None
    ]


def joint(chances: Sequence[Mapping[int, float]]) -> tuple[float, int | None]:
    """How much all kinds of evidence speak for one label, ``max_t sum_k -ln p_k(t)``.

    Args:
        chances: of each kind, label -> p-value.

    Returns:
        The number, NaN where no label was measured, and the label.
    """
    sums: dict[int, float] = {}
    for row in chances:
        for label, chance in row.items():
            sums[label] = sums.get(label, 0.0) - math.log(min(1.0, max(chance, LEAST)))
    if not sums:
        return math.nan, None
    leader = max(sums, key=lambda label: sums[label])
    return sums[leader], leader
