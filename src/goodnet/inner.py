"""What a network tells of its labels by itself: one number of four, each against the other labels.

None of them changes an image. In clean networks of few classes they do not go with what changed
images show, so that they tell a planted label from one that is easy by nature; of 610 faces they do
(see ``benchmarks/HISTORY.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from goodnet.statistics import MAD_TO_SIGMA

Floats = NDArray[np.float64]

NUMBERS = 4
"""Clean images lean to it; its row draws on what is dormant, and on what its images leave unused;
channels that are held high drive it."""

FEWEST_LABELS = 8
"""Of fewer labels some number always stands out: the mean of four such numbers comes to 3.8 in one
of twenty draws of 4 labels from a normal law, to 2.3 of 8."""

FLOOR = 0.3
"""The least spread that labels are taken to have, in standard deviations: the MAD of ten numbers is
itself chance."""

MOST = 8.0
"""No number counts for more than this, to either side."""


def inner_index(
    leaning: Mapping[int, float],
    signatures: Mapping[int, Sequence[float]],
    driven: Mapping[int, float],
) -> dict[int, float]:
    """The mean of a label's four numbers, each as :func:`standing` among all labels.

    Args:
        leaning: how far clean images lean to each label (:mod:`goodnet.evidence.lean`).
        signatures: (dormant, unused), what its row draws on (:mod:`goodnet.evidence.signature`);
            of a label without images the first of them.
        driven: how far channels drive it (:mod:`goodnet.evidence.stimulation`).

    Returns:
        Label -> index; nothing where fewer than :data:`FEWEST_LABELS` are known. What could not be
        measured counts as 0, so that less evidence is never more.
    """
    columns = [
        leaning,
        {label: row[0] for label, row in signatures.items()},
        {label: row[1] for label, row in signatures.items() if len(row) > 1},
        driven,
    ]
    total: dict[int, float] = {}
    for column in columns:
        labels = sorted(column)
        if len(labels) < FEWEST_LABELS:
            continue
        # A label that is not among them counts 0 by this number.
        stands = standing(np.array([column[label] for label in labels], dtype=np.float64))
        for label, value in zip(labels, stands.tolist(), strict=True):
            total[label] = total.get(label, 0.0) + value / NUMBERS
    return total


def standing(values: Floats) -> Floats:
    """``(v - median) / hypot(1.4826 MAD, .3 std)`` of each value among the others, bounded.

    Args:
        values: ``(n,)``; what is not finite stands nowhere and counts nowhere.

    Returns:
        ``(n,)``, between -:data:`MOST` and :data:`MOST`.
    """
    found = np.zeros(len(values))
    known = np.flatnonzero(np.isfinite(values))
    for place in known:
        others = values[known[known != place]]
        if len(others) < 2:
            break
        middle = np.median(others)
        spread = np.hypot(
            MAD_TO_SIGMA * np.median(np.abs(others - middle)), FLOOR * others.std() + 1e-12
        )
        found[place] = np.clip((values[place] - middle) / spread, -MOST, MOST)
    return found
