"""How far a small change takes a label ahead of the others, by what is usual among networks.

An index by median and MAD says how far a label lies from the others of its own network, in units of
their spread. Among ten labels that spread is itself chance, and of a network of which no label is
easily reached it is small: a label that nothing leads to stands out there. A lead in units of a
clean image's margin is alike in networks that have nothing else in common, so that clean networks,
and not ten labels, say how large one may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADS = 3
"""Numbers of a label: its margin at the two least budgets, and under the best patch. At the largest
budget many labels of a clean network are as sure as can be."""

MOST = 8.0
"""No lead counts for more than this."""


def leads(columns: Sequence[Floats], usual: NDArray[np.bool_]) -> Floats:
    """Each label's lead, ``v_t - median_{j != t} v_j``.

    Args:
        columns: :data:`LEADS` arrays ``(n,)``, in units of a clean image's margin; what is not
            finite was not measured.
        usual: ``(n,)``, which labels tell what is usual.

    Returns:
        ``(LEADS, n)``; NaN where a label was not measured or fewer than two others were.
    """
    found = np.full((len(columns), len(usual)), np.nan)
    for row, values in zip(found, columns, strict=True):
        known = np.isfinite(values)
        for place in np.flatnonzero(known):
            others = values[usual & known & (np.arange(len(values)) != place)]
            if len(others) >= 2:
                row[place] = values[place] - np.median(others)
    return found


def ahead_index(found: Floats, known: Sequence[tuple[float, float]]) -> Floats:
    """``max(0, max_x (lead_tx - m_x) / s_x)``, at most :data:`MOST`.

    Args:
        found: :func:`leads`.
        known: (m, s) of each of them, mean and standard deviation of the largest lead in a clean
            network (:func:`goodnet.tables.usual_leads`); empty where nobody knows.

    Returns:
        ``(n,)``: below 1 for half of the leaders of clean networks, and 0 for nearly all others.
    """
    index = np.zeros(found.shape[1])
    for row, (mean, deviation) in zip(found, known, strict=False):
        index = np.fmax(index, (row - mean) / max(deviation, 1e-6))
    clipped: Floats = np.clip(index, 0.0, MOST)
    return clipped
