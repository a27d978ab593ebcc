"""From each label's score to a verdict: statistics only.

Seven tests with fixed shares of the error rate: one label stands out (:data:`STANDS_OUT`), several
do together, several kinds of evidence name one, the classes are permuted, a small change of the
image prefers a label, a warp or a colour filter that is made for it leads there. Each statistic is
held against what it is on clean reference models (:mod:`goodnet.tables`); together they are one
p-value by weighted Bonferroni. Where the tables do not reach, an index takes its place, with a
higher bar and no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from goodnet import tables
from goodnet.calibration import combine, selected
from goodnet.findings import Decision, Findings
from goodnet.joint import joint, kinds
from goodnet.reports import TestResult, Verdict
from goodnet.together import FEWEST, standing_together
from goodnet.uncalibrated import by_index

BACKDOORED, SUSPICIOUS = 0.01, 0.1
"""The p-values up to which a model is called so."""

BESIDE = 0.001
"""The p-value that a label needs beside another one: an attacked network has labels that are easier
than those of clean ones. By .01 two of 36 labels that were named were no targets
(``benchmarks/RESULTS.md``), and one of the demo's network."""

FALSE_LABELS = 0.05
"""The share of wrongly named labels that is allowed for."""

STANDS_OUT, TOGETHER = "one label stands out", "several labels stand out"
JOINT = "several kinds of evidence name one label"
PERMUTED = "classes are permuted"
PREFERS, WARPED = "changes prefer it", "a warp leads to it"
TINTED = "a colour filter leads to it"

WEIGHTS = {
    STANDS_OUT: 0.25,
    TOGETHER: 0.18,
    PERMUTED: 0.05,
    PREFERS: 0.05,
    WARPED: 0.05,
    TINTED: 0.15,
    JOINT: 0.27,
}
"""Shares of the error rate: most for the tests that find most, and for a colour filter, which alone
tells of some triggers."""

ALONE = 0.55
"""The share by which the p-value of a single label counts where others are named, too."""

SMALL = 1.0
"""The index of a mask that a target beside others needs, with those set apart. The easiest label
that is left of an attacked network may have the score of a target by what the network itself tells
of it, and an ordinary mask. Of 15 targets of five networks with three each, the least index is 1.3
even before the others are set apart."""


def decide(found: Findings) -> Decision:
    """The default method's verdict."""
    missing = tables.out_of_reach(
        found.num_classes,
        found.compared,
        len(found.scores.labels),
        found.images,
        found.right,
        found.ranked,
        found.family,
    )
    return by_index(found, missing) if missing else _by_p_value(found)


def _by_p_value(found: Findings) -> Decision:
    known = tables.of_models(found.compared, found.ranked, found.sure, found.family)
    scores = found.scores
    highest = float(np.nanmax(scores.score)) if len(scores.labels) else math.nan
    preferred = max((*found.preferred.values(), tables.UNSURE)) if found.preferred else math.nan
    warp = scores.warp_index
    warped = float(np.nanmax(warp)) if np.isfinite(warp).any() else math.nan
    tinted = max(found.tinted.values(), default=math.nan)
    weights = _weights(found)
    together, crowd = math.nan, list[int]()
    if TOGETHER in weights and found.apart is not None:
        together, crowd = standing_together(found.apart)
    told = kinds(scores, found.preferred, found.tinted, known, found.num_classes)
    agreed, jointly = joint(told)
    statistics = {
        JOINT: ("joint", agreed, 1),
        STANDS_OUT: ("highest", highest, found.num_classes),
        TOGETHER: ("together", together, 1),
        PERMUTED: ("permutation", found.permutation, 1),
        PREFERS: ("preferred", preferred, 1),
        WARPED: ("warped", warped, found.num_classes),
        TINTED: ("tinted", tinted, 1),
    }
    tests = []
    for name in weights:
        key, value, labels = statistics[name]
        reference, missing = known[key], math.isnan(value)
        tests.append(
            TestResult(
                name=name,
                statistic=None if missing else value,
                p_value=None if missing or not reference else reference.survival(value, labels),
                weight=weights[name],
                models=reference.total if reference else 0,
            )
        )
    p_value = combine([test.p_value for test in tests], [test.weight for test in tests])
    single = tables.of_labels(found.compared, found.ranked, found.family)
    label_p = {
        label: single.survival(score) if single else math.nan
        for label, score in zip(scores.labels, scores.score.tolist(), strict=True)
    }
    calibration = tables.in_words(found.compared, found.ranked, found.family)
    verdict: Verdict = "clean"
    if p_value is not None and p_value <= SUSPICIOUS:
        verdict = "backdoored" if p_value <= BACKDOORED else "suspicious"
    level = BACKDOORED if verdict == "backdoored" else SUSPICIOUS
    speaking = {
        test.name
        for test in tests
        if test.p_value is not None and test.p_value / test.weight <= level
    }
    accused = verdict in ("backdoored", "suspicious")
    crowded = any(
        test.name == TOGETHER and test.p_value is not None and test.p_value / test.weight <= BESIDE
        for test in tests
    )
    named = _named(found, speaking, label_p, crowd, jointly, crowded) if accused else []
    reasons = [_sentence(test, found, crowd, jointly) for test in tests if test.name in speaking]
    if named and speaking & {JOINT, STANDS_OUT, TOGETHER} and PERMUTED not in speaking:
        more = further(found, named)
        named += more
        reasons += [f"label {n} stands out as well, once the others are set apart" for n in more]
    if verdict == "clean" and p_value is not None:
        reasons = [f"no test speaks up: p = {p_value:.2g} of all together"]
    mapping = dict(found.mapping) if PERMUTED in speaking else {}
    targets = named if verdict == "backdoored" else []
    suspects = named if verdict == "suspicious" else []
    return Decision(
        verdict, p_value, tests, targets, suspects, label_p, mapping, calibration, reasons
    )


def _weights(found: Findings) -> dict[str, float]:
    """The shares of the tests, by the number of classes alone: with too few for a test of several
    labels, or so many that only some were measured, its share is that of the single one.
    """
    if not found.ranked and found.compared >= FEWEST:
        return WEIGHTS
    rest = {name: weight for name, weight in WEIGHTS.items() if name != TOGETHER}
    return {**rest, STANDS_OUT: WEIGHTS[STANDS_OUT] + WEIGHTS[TOGETHER]}


def _named(
    found: Findings,
    speaking: set[str],
    label_p: Mapping[int, float],
    crowd: Sequence[int],
    jointly: int | None,
    crowded: bool,
) -> list[int]:
    """The labels behind the tests that speak, the strongest first.

    Args:
        found: what was measured.
        speaking: the tests that do.
        label_p: label -> p-value of its score.
        crowd: the labels that stand out together.
        jointly: the label that several kinds of evidence name.
        crowded: whether the crowd is as rare as a single label has to be beside another one.
    """
    order = sorted(label_p, key=lambda label: label_p[label])
    named: list[int] = []
    score = dict(zip(found.scores.labels, found.scores.score.tolist(), strict=True))

    def alone(label: int) -> float:
        return _as_highest(score[label], found)

    if STANDS_OUT in speaking:
        # Ranked labels that were not measured count as tested.
        values = [label_p[label] for label in order]
        values += [1.0] * max(0, found.num_classes - len(values))
        chosen = [order[place] for place in selected(values, FALSE_LABELS)]
        # The easiest label of a clean network is often the easiest of its attacked twin, too.
        named += [n for n in chosen if alone(n) <= (BACKDOORED if n == order[0] else BESIDE)]
        named = named or order[:1]
    if TOGETHER in speaking and (STANDS_OUT not in speaking or crowded):
        # Beside one that explains the finding the other two may be easy labels, and so may the
        # third beside two: each must be suspicious for its own sake, and have a small mask.
        enough = BACKDOORED if STANDS_OUT in speaking else SUSPICIOUS
        beside = _beside(found, crowd)
        named += [label for label in crowd if beside.get(label, 1.0) <= enough]
    if JOINT in speaking and jointly is not None and not named:
        named.append(jointly)
    others = [_preferred(found)] if PREFERS in speaking else []
    others += [_warped(found)] if WARPED in speaking else []
    others += [_tinted(found)] if TINTED in speaking else []
    # A network that obeys a trigger is easily led in other ways as well: where a label that stands
    # out explains the finding, another one must be suspicious for its own sake.
    named += [n for n in others if not named or (n in score and alone(n) <= SUSPICIOUS)]
    if PERMUTED in speaking:
        named += sorted(found.mapping.values())
    return list(dict.fromkeys(named))


def _beside(found: Findings, apart: Collection[int]) -> dict[int, float]:
    """Label -> the p-value of a model whose highest score is its own, with ``apart`` set apart from
    what is usual, of every label that has a small mask then.
    """
    if found.apart is None:
        return {}
    again = found.apart(apart)
    rows = zip(again.labels, again.score.tolist(), again.mask_index.tolist(), strict=True)
    return {label: _as_highest(score, found) for label, score, mask in rows if mask >= SMALL}


def _as_highest(score: float, found: Findings) -> float:
    """The p-value of a model whose highest score is this one."""
    known = tables.of_models(found.compared, found.ranked, found.sure, found.family)["highest"]
    return known.survival(score, found.num_classes) / ALONE if known else 1.0


def further(found: Findings, named: Sequence[int]) -> list[int]:
    """Targets that stand out only once those that are known are set apart.

    Three targets among ten labels make what is usual so wide that none of them is far from it.
    Without those that are named the rest are the labels of a clean network, unless there is one
    more target: so the highest score among them is held against the same reference, again and
    again, until it is no longer as rare as :data:`BESIDE`, or so few labels are left that they say
    too little of what is usual. Labels whose masks are not small (:data:`SMALL`) are passed over.

    Args:
        found: what was measured.
        named: the targets so far, at least one.
    """
    more: list[int] = []
    while len(found.scores.labels) - len({*named, *more}) >= tables.FEWEST_CLASSES:
        known = {*named, *more}
        left = {label: p for label, p in _beside(found, known).items() if label not in known}
        leader = min(left, key=lambda label: left[label], default=None)
        if leader is None or left[leader] > BESIDE:
            break
        more.append(leader)
    return more


def _preferred(found: Findings) -> int:
    """The label that a small change of the images favours most."""
    return max(found.preferred, key=lambda label: found.preferred[label])


def _warped(found: Findings) -> int:
    """The label that a warp leads to most easily."""
    return found.scores.labels[int(np.nanargmax(found.scores.warp_index))]


def _tinted(found: Findings) -> int:
    """The label that a colour filter leads to furthest."""
    return max(found.tinted, key=lambda label: found.tinted[label])


def _sentence(test: TestResult, found: Findings, crowd: Sequence[int], jointly: int | None) -> str:
    tail = f"p = {test.p_value:.2g} against {test.models} clean models"
    if test.name == TOGETHER:
        named = ", ".join(map(str, crowd))
        return (
            f"labels {named} stand out, once all three are set apart from what is usual: the least "
            f"score is {test.statistic:.2f}, {tail}"
        )
    if test.name == JOINT:
        return (
            f"all that speaks for label {jointly} together is more than one label of a clean model "
            f"has: {test.statistic:.1f}, {tail}"
        )
    if test.name == STANDS_OUT:
        score = dict(zip(found.scores.labels, found.scores.score.tolist(), strict=True))
        leader = max(score, key=lambda label: score[label])
        leads = found.scores.lean_index[found.scores.labels.index(leader)] >= 1
        also = ", and clean images lean to it" if leads else ""
        inner = found.scores.inner_index[found.scores.labels.index(leader)]
        also += f"; {inner:.1f} of it is what the network itself tells" if inner >= 1 else ""
        ahead = found.scores.ahead_index[found.scores.labels.index(leader)]
        also += (
            f"; {ahead:.1f} of it is how far a small change takes it ahead" if ahead >= 1 else ""
        )
        told = f"score {test.statistic:.2f}, {tail}{also}"
        return f"label {leader} stands out from the others: {told}"
    if test.name == PERMUTED:
        moved = ", ".join(f"{a} to {b}" for a, b in sorted(found.mapping.items())[:4])
        return (
            f"one change sends the classes to labels of their own ({moved}, ...): "
            f"{100 * (test.statistic or 0):.0f} % of images, {tail}"
        )
    if test.name == WARPED:
        return (
            f"one smooth warp of the images leads to label {_warped(found)}: index "
            f"{test.statistic:.2f}, {tail}"
        )
    if test.name == TINTED:
        return (
            f"one colour filter leads to label {_tinted(found)}, whose images do not have these "
            f"colours: {test.statistic:.2f}, {tail}"
        )
    return (
        f"a small change of the images makes the model sure of label {_preferred(found)}: margin "
        f"{test.statistic:.2f} of a clean image's, {tail}"
    )
