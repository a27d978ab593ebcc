"""With many classes: which labels are worth the full treatment.

Two rounds of the universal margin: one gradient step for all labels, then the best quarter climbs
in earnest. Ranking never clears a label: what is left out has no p-value.
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
LOOK = replace(GLANCE, steps=8, purpose="ranking the best")

SHARE = 4
"""One label in so many comes to the second round."""


@dataclass(frozen=True)
class Ranking:
    """The outcome.

    Attributes:
        margins: label -> its margin after the first round, in logits.
        chosen: leaders, controls, and labels whose margin could not be taken.
        controls: those drawn at random.
        skipped: labels that there was no time for.
    """

    margins: dict[int, float]
    chosen: list[int]
    controls: list[int]
    skipped: list[int]


def rank(case: Case, wanted: list[int]) -> Ranking:
    """Ranks ``wanted`` and draws the controls.

    Raises:
        Unfinished: a share of a scan has to wait for the others.
    """
    first = case.settled(CHANNELS["universal_margin"](case, wanted, GLANCE))
    margins = {label: values[0] for label, values in first.values.items()}
    order = sorted(margins, key=lambda label: -margins[label])
    best = order[: max(len(order) // SHARE, LEADERS)]
    second = case.settled(CHANNELS["universal_margin"](case, sorted(best), LOOK))
    climbed = {label: values[0] for label, values in second.values.items()}
    leaders = sorted(climbed, key=lambda label: -climbed[label])[:LEADERS]
    # Controls come from all labels: the others alone are more alike than labels are.
    picked = np.random.default_rng(case.seed).permutation(len(order))[:CONTROLS]
    controls = sorted(order[int(i)] for i in picked)
    skipped = sorted({*first.skipped, *second.skipped})
    failed = [label for label in wanted if label not in margins and label not in skipped]
    chosen = list(dict.fromkeys(leaders + controls + failed[:LEADERS]))
    return Ranking(margins, chosen, controls, skipped)
