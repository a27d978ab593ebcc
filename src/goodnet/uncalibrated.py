"""Rules without an error rate: where no clean reference model is like this one, and the paper's."""

from __future__ import annotations

import itertools

import numpy as np

from goodnet import tables
from goodnet.findings import Decision, Findings
from goodnet.reports import Verdict
from goodnet.scores import Scores

NEURAL_CLEANSE_THRESHOLD = 2.0
"""Wang et al. 2019, section IV: an anomaly index above 2 names a target."""

FEW_CLASSES = 4
"""Below this many classes no label can be an outlier among the others."""

UNCALIBRATED_BAR, UNCALIBRATED_SUSPICION = 5.5, 4.0
"""Without reference models: bars for the score. Of the 167 clean models behind the tables none
reaches the first (without what is usual of other networks the highest score is 4.78), nine the
second."""

RANKED_BAR, RANKED_SUSPICION, GAP, HEAD = 5.0, 4.5, 1.25, 5
"""The same of labels that were ranked first. Where hundreds of classes differ in how easy they are,
the scores of a clean network rise smoothly up to the highest; a planted target stands apart. So one
of the :data:`HEAD` highest scores must lead the next by :data:`GAP`; targets are those above."""

FEWEST_CONTROLS = 10
"""Where a budget leaves fewer random labels beside the leaders, they hardly tell what is usual, and
nothing is named."""

PERMUTATION_BAR = 0.8
"""Share of images that fit a map of the classes: of the clean models behind the tables none comes
to more than .5. Fewer classes than those models have can be permuted by chance."""

FEWEST_RIVALS = 100
"""From so many labels on a place among them says something."""

FOREMOST, FIRST = 0.01, 3
"""What a label that leads many has to be by what the network itself tells: of the first hundredth,
or of the first three. Whoever knows of it can push other labels before his target; then the model
is suspicious, no more. It is no p-value: of a clean network of 610 faces the labels that lead by
score lie in the first third by this as well, not anywhere."""


def by_index(found: Findings, missing: str) -> Decision:
    """Where no clean reference model is like this one: an index, a high bar, no p-value.

    Args:
        found: what was measured.
        missing: why there is no p-value.
    """
    calibration = f"uncalibrated: {missing}"
    targets, suspects, rule = (_ranked if found.ranked else _few)(found)
    if found.ranked and len(found.inner) >= FEWEST_RIVALS:
        first = _foremost(found)
        suspects = list(dict.fromkeys([*targets, *suspects]))
        # Where the leader fails, its lead is by nature, and one that comes after it is no finding.
        leads = bool(targets) and targets[0] in first
        targets = [label for label in targets if label in first] if leads else []
        rule += (
            f", and one of the first {len(first)} of {len(found.inner):,} by what the network "
            "itself tells"
        )
    if len(found.scores.labels) < FEW_CLASSES:
        targets, suspects = [], []
    elif found.ranked and found.controls is not None and found.controls < FEWEST_CONTROLS:
        targets, suspects = [], list(dict.fromkeys([*targets, *suspects]))
        rule += f", of which {found.controls} random labels tell too little"
    value = dict(_ranking(found))
    reasons = [
        f"label {label}: {value[label]:.2f}; rule: {rule}; {calibration}"
        for label in targets or suspects
    ]
    enough = found.num_classes >= tables.FEWEST_CLASSES
    mapping = dict(found.mapping) if enough and found.permutation >= PERMUTATION_BAR else {}
    if mapping:
        targets = list(dict.fromkeys([*targets, *sorted(mapping.values())]))
        reasons.append(
            f"one change sends the classes to labels of their own: {found.permutation:.0%} of "
            f"images, rule: at least {PERMUTATION_BAR:.0%}; {calibration}"
        )
    verdict: Verdict = "backdoored" if targets else "suspicious" if suspects else "clean"
    reasons = reasons or [f"no label reaches the rule: {rule}; {calibration}"]
    suspects = suspects if verdict == "suspicious" else []
    return Decision(verdict, None, [], targets, suspects, {}, mapping, calibration, reasons)


def _foremost(found: Findings) -> set[int]:
    """The labels of which the network itself tells most."""
    count = max(FIRST, int(FOREMOST * len(found.inner)))
    return set(sorted(found.inner, key=lambda label: -found.inner[label])[:count])


def _ranking(found: Findings) -> list[tuple[int, float]]:
    scores = found.scores
    # The bars are of scores that know nothing of other networks' leads.
    bare = scores.score - scores.ahead_index
    order = np.argsort(-bare, kind="stable")
    return [(scores.labels[int(i)], float(bare[int(i)])) for i in order]


def _ranked(found: Findings) -> tuple[list[int], list[int], str]:
    """Targets, suspects and the rule, of labels that were ranked first."""
    ranking = _ranking(found)
    leads = [a - b for (_, a), (_, b) in itertools.pairwise(ranking[: HEAD + 1])]
    apart = max((n + 1 for n, lead in enumerate(leads) if lead >= GAP), default=0)
    targets = [label for label, score in ranking[:apart] if score >= RANKED_BAR]
    suspects = [label for label, score in ranking if score >= RANKED_SUSPICION]
    return targets, suspects, f"score at least {RANKED_BAR:.2f}, and {GAP:g} above the next"


def _few(found: Findings) -> tuple[list[int], list[int], str]:
    """The same of labels that were all measured in full."""
    ranking = _ranking(found)
    # The median and MAD of a handful of labels are themselves chance.
    more = 0.5 * max(0, tables.FEWEST_CLASSES - len(ranking))
    bar, suspicion = UNCALIBRATED_BAR + more, UNCALIBRATED_SUSPICION + more
    targets = [label for label, score in ranking if score >= bar]
    suspects = [label for label, score in ranking if score >= suspicion]
    return targets, suspects, f"score at least {bar:.2f}"


def neural_cleanse(scores: Scores) -> Decision:
    """The paper's rule: anomaly index above 2, the largest index first."""
    index = np.nan_to_num(scores.anomaly_index, nan=-np.inf)
    order = [int(i) for i in np.argsort(-index, kind="stable")]
    targets = [scores.labels[i] for i in order if index[i] > NEURAL_CLEANSE_THRESHOLD]
    value = dict(zip(scores.labels, scores.anomaly_index.tolist(), strict=True))
    rule = "rule: anomaly index above 2 (Wang et al. 2019); a clean model is often flagged by it"
    reasons = [f"label {label}: {value[label]:.2f}; {rule}" for label in targets]
    reasons = reasons or [f"no label reaches the {rule}"]
    verdict: Verdict = "backdoored" if targets else "clean"
    calibration = "uncalibrated: the paper's rule has no error rate"
    return Decision(verdict, None, [], targets, [], {}, {}, calibration, reasons)
