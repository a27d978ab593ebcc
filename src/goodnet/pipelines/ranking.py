"""With many classes: which labels are worth the full treatment.

Rounds of the universal margin (successive halving): one gradient step for all labels, then fewer
labels climb further. Ranking never clears a label: what is left out has no p-value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from goodnet.evidence import CHANNELS, Case, Effort

LEADERS, CONTROLS = 12, 20
"""Labels that are measured in full: the best ranked, and random ones that say what is usual."""

GLANCE = Effort(
    images=8, steps=1, budgets=(0.045,), purpose="ranking all labels", keep_triggers=False
)
STROLL = replace(GLANCE, images=24, steps=4, purpose="ranking the better half")
CLIMB = replace(STROLL, steps=16, purpose="ranking the best")

ROUNDS = ((1, GLANCE), (2, STROLL), (6, CLIMB))
"""One label in so many comes to a round, and what is spent on it. A step tells little (a target
that leads in the end was 221st of 610 after it), and two tell no more (another was 112th after one
and 213th after two): half of the labels, and no less, come to the next round. After four it was
51st: so 101 come to the last round, which is as long as the measurement that follows. What that
keeps, ``benchmarks/speed.py shortlist`` tells."""


@dataclass(frozen=True)
class Ranking:
    """The outcome.

    Attributes:
        margins: label -> its margin after the first round, in logits.
        last: the same after the last round, of those that came to it.
        chosen: leaders, controls, and labels whose margin could not be taken.
        controls: those drawn at random.
        skipped: labels that there was no time to look at once.
        cut_off: whether there was no time for a later round: the leaders are those of the round
            before.
    """

    margins: dict[int, float]
    last: dict[int, float]
    chosen: list[int]
    controls: list[int]
    skipped: list[int]
    cut_off: bool


def rank(case: Case, wanted: list[int]) -> Ranking:
    """Ranks ``wanted`` and draws the controls.

    Raises:
        Unfinished: a share of a scan has to wait for the others.
    """
    margins: dict[int, float] = {}
    reached: dict[int, float] = {}
    order, skipped, cut_off = wanted, set[int](), False
    for share, effort in ROUNDS:
        best = sorted(order[: max(len(wanted) // share, LEADERS)])
        found = case.settled(CHANNELS["universal_margin"](case, best, effort))
        if found.skipped and margins:
            # Blocks go by the labels' numbers: by this round the last ones could not lead.
            cut_off = True
            break
        reached = {label: values[0] for label, values in found.values.items()}
        margins = margins or reached
        order = sorted(reached, key=lambda label: -reached[label])
        skipped.update(found.skipped)
    leaders = order[:LEADERS]
    # Controls come from all labels: the others alone are more alike than labels are.
    first = sorted(margins, key=lambda label: -margins[label])
    picked = np.random.default_rng(case.seed).permutation(len(first))[:CONTROLS]
    controls = sorted(first[int(i)] for i in picked)
    failed = [label for label in wanted if label not in margins and label not in skipped]
    chosen = list(dict.fromkeys(leaders + controls + failed[:LEADERS]))
    return Ranking(margins, reached, chosen, controls, sorted(skipped), cut_off)
