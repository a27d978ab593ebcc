"""From each label's score to a verdict: statistics only.

Four tests with fixed shares of the error rate: one label stands out (:data:`STANDS_OUT`), the
classes are permuted, a small change of the image prefers a label, a warp that is made for it leads
there. Each statistic is held against what it is on clean reference models (:mod:`goodnet.tables`);
together they are one p-value by weighted Bonferroni. Where the tables do not reach, an index takes
its place, with a higher bar and no p-value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from goodnet import tables
from goodnet.calibration import combine, selected
from goodnet.reports import TestResult, Verdict
from goodnet.scores import Scores

NEURAL_CLEANSE_THRESHOLD = 2.0
"""Wang et al. 2019, section IV: an anomaly index above 2 names a target."""

BACKDOORED, SUSPICIOUS = 0.01, 0.1
"""The p-values up to which a model is called so."""

FALSE_LABELS = 0.05
"""The share of wrongly named labels that is allowed for."""

STANDS_OUT, PERMUTED = "one label stands out", "classes are permuted"
PREFERS, WARPED = "changes prefer it", "a warp leads to it"

WEIGHTS = {STANDS_OUT: 0.6, PERMUTED: 0.1, PREFERS: 0.15, WARPED: 0.15}
"""Shares of the error rate: most for the test that finds most."""

FEW_CLASSES = 4
"""Below this many classes no label can be an outlier among the others."""

FEW_IMAGES = 20
"""Below this many clean images "no evidence" is not an answer."""

LOUD = 2.5
"""An index from which a channel speaks for a label: few labels of clean networks come so far."""

UNCALIBRATED_BAR, UNCALIBRATED_SUSPICION = 5.0, 3.5
"""Without reference models: bars for the score. Of the 37 clean models behind the tables none
reaches the first (the highest score is 4.63), two the second."""

RANKED_BAR, RANKED_SUSPICION, GAP, HEAD = 5.0, 4.5, 1.25, 5
"""The same of labels that were ranked first. Where hundreds of classes differ in how easy they are,
the scores of a clean network rise smoothly up to the highest; a planted target stands apart. So one
of the :data:`HEAD` highest scores must lead the next by :data:`GAP`; targets are those above."""


@dataclass(frozen=True)
class Findings:
    """What a scan measured, as far as the verdict looks at it.

    Attributes:
        scores: of the labels.
        num_classes: K, of which some labels may not have been measured.
        images: clean images that the scan could use.
        permutation: the statistic of the permutation, NaN where it could not be taken.
        mapping: class -> label of that permutation.
        ranked: whether the labels are leaders of a ranking, with controls.
        preferred: label -> margin under the change that favours it most; empty if not measured.
    """

    scores: Scores
    num_classes: int
    images: int
    permutation: float = math.nan
    mapping: Mapping[int, int] = field(default_factory=dict)
    preferred: Mapping[int, float] = field(default_factory=dict)
    ranked: bool = False

    @property
    def tested(self) -> int:
        """How many labels could have been the highest: all, or those that the user asked for."""
        return self.num_classes if self.ranked else len(self.scores.labels)


@dataclass(frozen=True)
class Decision:
    """The verdict and what it rests on.

    Attributes:
        verdict: "clean" here means that nothing was found; :func:`doubts` may yet overrule it.
        p_value: of the model; None while uncalibrated.
        tests: behind it.
        targets: labels that are named, the strongest first.
        label_p: label -> p-value of its score among single labels of clean models.
        mapping: of a permutation that was found.
        calibration: what the p-value rests on, or why there is none.
        reasons: in words.
    """

    verdict: Verdict
    p_value: float | None
    tests: list[TestResult]
    targets: list[int]
    label_p: dict[int, float]
    mapping: dict[int, int]
    calibration: str
    reasons: list[str]


def decide(found: Findings) -> Decision:
    """The default method's verdict."""
    missing = tables.out_of_reach(
        found.tested, len(found.scores.labels), found.images, found.ranked
    )
    return _by_index(found, missing) if missing else _by_p_value(found)


def _by_p_value(found: Findings) -> Decision:
    known, scores = tables.of_models(found.tested, found.ranked), found.scores
    highest = float(np.nanmax(scores.score)) if len(scores.labels) else math.nan
    preferred = max((*found.preferred.values(), tables.UNSURE)) if found.preferred else math.nan
    warp = scores.warp_index
    warped = float(np.nanmax(warp)) if np.isfinite(warp).any() else math.nan
    statistics = {
        STANDS_OUT: ("highest", highest, found.tested),
        PERMUTED: ("permutation", found.permutation, 1),
        PREFERS: ("preferred", preferred, 1),
        WARPED: ("warped", warped, found.tested),
    }
    tests = []
    for name, (key, value, labels) in statistics.items():
        reference, missing = known[key], math.isnan(value)
        tests.append(
            TestResult(
                name=name,
                statistic=None if missing else value,
                p_value=None if missing or not reference else reference.survival(value, labels),
                weight=WEIGHTS[name],
                models=reference.total if reference else 0,
            )
        )
    p_value = combine([test.p_value for test in tests], [test.weight for test in tests])
    single = tables.of_labels(found.tested, found.ranked)
    label_p = {
        label: single.survival(score) if single else math.nan
        for label, score in zip(scores.labels, scores.score.tolist(), strict=True)
    }
    calibration = tables.in_words(found.tested, found.ranked)
    verdict: Verdict = "clean"
    if p_value is not None and p_value <= SUSPICIOUS:
        verdict = "backdoored" if p_value <= BACKDOORED else "suspicious"
    level = BACKDOORED if verdict == "backdoored" else SUSPICIOUS
    speaking = {
        test.name
        for test in tests
        if test.p_value is not None and test.p_value / test.weight <= level
    }
    named = _named(found, speaking, label_p) if verdict in ("backdoored", "suspicious") else []
    reasons = [_sentence(test, found) for test in tests if test.name in speaking]
    if verdict == "clean" and p_value is not None:
        reasons = [f"no test speaks up: p = {p_value:.2g} of all together"]
    mapping = dict(found.mapping) if PERMUTED in speaking else {}
    targets = named if verdict == "backdoored" else []
    return Decision(verdict, p_value, tests, targets, label_p, mapping, calibration, reasons)


def _named(found: Findings, speaking: set[str], label_p: Mapping[int, float]) -> list[int]:
    """The labels behind the tests that speak, the strongest first."""
    order = sorted(label_p, key=lambda label: label_p[label])
    named: list[int] = []
    highest = tables.of_models(found.tested, found.ranked)["highest"]
    score = dict(zip(found.scores.labels, found.scores.score.tolist(), strict=True))

    def alone(label: int) -> float:
        """The p-value of a model whose highest score is this label's."""
        if highest is None:
            return 1.0
        return highest.survival(score[label], found.tested) / WEIGHTS[STANDS_OUT]

    if STANDS_OUT in speaking:
        # Ranked labels that were not measured count as tested.
        values = [label_p[label] for label in order]
        values += [1.0] * max(0, found.tested - len(values))
        chosen = [order[place] for place in selected(values, FALSE_LABELS)]
        # The easiest label of a clean network is often the easiest of its attacked twin, too: a
        # further target must be one that would make a clean model suspicious.
        named += [label for label in chosen if alone(label) <= SUSPICIOUS] or order[:1]
    others = [_preferred(found)] if PREFERS in speaking else []
    others += [_warped(found)] if WARPED in speaking else []
    # A network that obeys a trigger is easily led in other ways as well: where a label that stands
    # out explains the finding, another one must be suspicious for its own sake.
    named += [n for n in others if not named or (n in score and alone(n) <= SUSPICIOUS)]
    if PERMUTED in speaking:
        named += sorted(found.mapping.values())
    return list(dict.fromkeys(named))


def _preferred(found: Findings) -> int:
    """The label that a small change of the images favours most."""
    return max(found.preferred, key=lambda label: found.preferred[label])


def _warped(found: Findings) -> int:
    """The label that a warp leads to most easily."""
    return found.scores.labels[int(np.nanargmax(found.scores.warp_index))]


def _sentence(test: TestResult, found: Findings) -> str:
    tail = f"p = {test.p_value:.2g} against {test.models} clean models"
    if test.name == STANDS_OUT:
        score = dict(zip(found.scores.labels, found.scores.score.tolist(), strict=True))
        leader = max(score, key=lambda label: score[label])
        return f"label {leader} stands out from the others: score {test.statistic:.2f}, {tail}"
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
    return (
        f"a small change of the images makes the model sure of label {_preferred(found)}: margin "
        f"{test.statistic:.2f} of a clean image's, {tail}"
    )


def _by_index(found: Findings, missing: str) -> Decision:
    """Where no clean reference model is like this one: an index, a high bar, no p-value."""
    scores = found.scores
    calibration = f"uncalibrated: {missing}"
    order = [int(i) for i in np.argsort(-scores.score, kind="stable")]
    ranking = [(scores.labels[i], float(scores.score[i])) for i in order]
    if found.ranked:
        bar, suspicion = RANKED_BAR, RANKED_SUSPICION
        leads = [a - b for (_, a), (_, b) in itertools.pairwise(ranking[: HEAD + 1])]
        apart = max((n + 1 for n, lead in enumerate(leads) if lead >= GAP), default=0)
        targets = [label for label, score in ranking[:apart] if score >= bar]
        rule = f"score at least {bar:.2f}, and {GAP:g} above the next"
    else:
        # The median and MAD of a handful of labels are themselves chance.
        more = 0.5 * max(0, tables.FEWEST_CLASSES - len(scores.labels))
        bar, suspicion = UNCALIBRATED_BAR + more, UNCALIBRATED_SUSPICION + more
        targets = [label for label, score in ranking if score >= bar]
        rule = f"score at least {bar:.2f}"
    suspects = [label for label, score in ranking if score >= suspicion]
    if len(scores.labels) < FEW_CLASSES:
        targets, suspects = [], []
    verdict: Verdict = "backdoored" if targets else "suspicious" if suspects else "clean"
    named = targets or suspects
    value = dict(ranking)
    reasons = [f"label {label}: {value[label]:.2f}; rule: {rule}; {calibration}" for label in named]
    reasons = reasons or [f"no label reaches the rule: {rule}; {calibration}"]
    return Decision(verdict, None, [], targets, {}, {}, calibration, reasons)


def looks(scores: Scores, label: int) -> str:
    """Whether a named label's trigger looks planted or natural, and which channels speak for it.

    An easy class is forced by any faint change, but by no smaller patch than others are.
    """
    place = scores.labels.index(label)
    told = {
        "margin": scores.margin_index[place],
        "mask": scores.mask_index[place],
        "noise": scores.noise_index[place],
    }
    speak = ", ".join(f"{name} {value:.1f}" for name, value in told.items() if value >= LOUD)
    quiet = [name for name, value in told.items() if not value >= LOUD]
    if told["mask"] >= LOUD and told["margin"] >= LOUD:
        opinion = "planted: a faint change and a small patch force it"
    elif told["mask"] >= LOUD:
        opinion = "planted: a small patch forces it, though no faint change does"
    else:
        opinion = "natural, perhaps: no smaller patch forces it than other labels"
    heard = f"indices above {LOUD:g}: {speak}" if speak else f"no index above {LOUD:g}"
    return f"{opinion} ({heard}{'; not ' + ', '.join(quiet) if speak and quiet else ''})"


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
    return Decision(verdict, None, [], targets, {}, {}, calibration, reasons)


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
