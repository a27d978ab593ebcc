"""Labels that stand out together: power where they hide each other, and its size on clean ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pytest

from goodnet import tables, verdict
from goodnet.calibration import reference
from goodnet.findings import Decision, Findings
from goodnet.scores import HANDFUL, Raw, Scores, combine
from goodnet.together import Scored, standing_together
from goodnet.verdict import decide


def planted(
    labels: int,
    targets: Mapping[int, float],
    rng: np.random.Generator,
    inner: Mapping[int, float] | None = None,
    usual: Sequence[tuple[float, float]] = (),
) -> Scored:
    """Labels' masks, margins and patches; targets have those of a patch, so strong.

    Args:
        labels: how many.
        targets: label -> how strong.
        rng: of what is by chance.
        inner: what the network itself tells of labels.
        usual: of leads in other networks.
    """
    masks = dict(enumerate(np.exp(rng.normal(4.0, 0.3, labels))))
    margins = dict(enumerate(rng.normal(0.0, 1.0, labels)))
    patches = dict(enumerate(rng.normal(0.0, 1.0, labels)))
    for label, strength in targets.items():
        masks[label], margins[label], patches[label] = 10.0, 6.0 * strength, 9.0 * strength
    raw = Raw(
        margins={n: [value] * 3 for n, value in margins.items()},
        masks=masks,
        patches=patches,
        inner=dict.fromkeys(range(labels), 0.0) | dict(inner or {}),
        clean_margin=4.0,
        usual_leads=usual,
    )

    def scored(apart: Collection[int] = ()) -> Scores:
        return combine(list(range(labels)), raw, list(range(labels)), apart=apart)

    return scored


def network(labels: int, targets: Collection[int], rng: np.random.Generator) -> Scored:
    """The same, the targets alike."""
    return planted(labels, dict.fromkeys(targets, 1.0), rng)


def findings(labels: int, scored: Scored) -> Findings:
    preferred = dict.fromkeys(range(labels), -0.5)
    return Findings(scored(()), labels, 200, 0.1, {}, preferred, apart=scored)


def found(
    labels: int, targets: dict[int, float], inner: dict[int, float] | None = None
) -> Findings:
    """With leads by what is usual among clean networks, as a scan has them."""
    usual = tables.usual_leads(tables.shipped().models, True, "other")
    return findings(labels, planted(labels, targets, np.random.default_rng(4), inner, usual))


def speaking(decision: Decision) -> set[str]:
    told = [t for t in decision.tests if t.p_value is not None]
    return {t.name for t in told if (t.p_value or 0.0) / t.weight <= verdict.BACKDOORED}


def test_three_targets_that_hide_each_other_are_the_set():
    scored = network(10, [1, 4, 7], np.random.default_rng(0))
    assert sorted(standing_together(scored)[1]) == [1, 4, 7]
    decision = decide(findings(10, scored))
    assert speaking(decision) == {verdict.TOGETHER}, "none lies far from what they make usual"
    assert (decision.verdict, sorted(decision.targets)) == ("backdoored", [1, 4, 7])


def test_one_target_does_not_stand_out_in_company():
    rng = np.random.default_rng(1)
    one = [standing_together(network(10, [3], rng))[0] for _ in range(40)]
    none = [standing_together(network(10, [], rng))[0] for _ in range(40)]
    assert abs(np.median(one) - np.median(none)) < 0.2


def test_three_targets_of_dozens_of_classes_are_a_finding_where_one_would_be_none():
    """Their masks are not much smaller than others, and no clean network has three such labels."""
    labels, rng = 43, np.random.default_rng(6)

    def decision(targets: Collection[int]) -> Decision:
        masks = np.exp(rng.normal(4.0, 0.3, labels))
        margins = rng.normal(0.0, 1.0, labels)
        for target in targets:
            masks[target], margins[target] = 15.0, 12.0
        raw = Raw(
            margins={n: [value] * 3 for n, value in enumerate(margins.tolist())},
            masks=dict(enumerate(masks.tolist())),
            noise=dict.fromkeys(range(labels), 1.0),
            clean_margin=4.0,
        )

        def scored(apart: Collection[int] = ()) -> Scores:
            return combine(list(range(labels)), raw, list(range(labels)), apart=apart)

        return decide(findings(labels, scored))

    three, one = decision([3, 17, 32]), decision([17])
    assert speaking(three) == {verdict.TOGETHER}
    assert (three.verdict, sorted(three.targets)) == ("backdoored", [3, 17, 32])
    assert verdict.TOGETHER not in speaking(one)
    assert one.verdict != "backdoored"


@pytest.mark.parametrize("labels", [4, 8, 9])
def test_too_few_labels_say_nothing(labels):
    number, together = standing_together(network(labels, [], np.random.default_rng(2)))
    assert math.isnan(number)
    assert together == []


def test_labels_that_could_not_be_measured_are_no_company():
    rng = np.random.default_rng(3)
    masks = dict(enumerate(np.exp(rng.normal(4.0, 0.3, 12))))
    margins = {n: [v] for n, v in enumerate(rng.normal(0.0, 1.0, 12))}
    known = {n: v for n, v in masks.items() if n < 9}

    def scored(measured: dict[int, float], apart: Collection[int] = ()) -> Scores:
        raw = Raw(margins=margins, masks=measured, clean_margin=4.0)
        return combine(list(range(12)), raw, list(range(12)), apart=apart)

    assert not math.isnan(standing_together(lambda apart: scored(masks, apart))[0])
    number, together = standing_together(lambda apart: scored(known, apart))
    assert math.isnan(number)
    assert together == []


def test_the_error_rate_is_what_it_says_in_simulation():
    """The law of 100 clean networks says how rarely a further clean one comes so far."""
    rng = np.random.default_rng(4)
    numbers = [standing_together(network(10, [], rng))[0] for _ in range(100)]
    known = reference(numbers, tables.LONG_TAIL)
    assert known is not None
    p = [known.survival(standing_together(network(10, [], rng))[0]) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.1) <= 0.16
    assert np.mean(np.array(p) <= 0.01) <= 0.03
    planted = standing_together(network(10, [1, 4, 7], rng))[0]
    assert known.survival(planted) <= 0.001


def test_the_reference_models_have_a_number_and_few_come_far():
    models = [m for m in tables.shipped().models if m.together is not None]
    few = [m for m in models if m.num_classes <= HANDFUL]
    groups = [[m for m in few if m.family == family] for family in ("transformer", "other")]
    groups.append([m for m in models if m.num_classes > HANDFUL])
    for alike in groups:
        values = np.array([m.together for m in alike], dtype=np.float64)
        assert len(values) >= 30
        left_out = [
            reference(np.delete(values, i).tolist(), tables.LONG_TAIL) for i in range(len(values))
        ]
        p = np.array([k.survival(v) for k, v in zip(left_out, values, strict=True) if k])
        assert np.mean(p <= 0.01) <= 0.05
        assert np.mean(p <= 0.1) <= 0.2


def test_targets_that_hide_each_other_among_ten_labels_are_all_named():
    decision = decide(found(10, {2: 2.0, 5: 1.2, 8: 1.0}))
    assert sorted(decision.targets) == [2, 5, 8]
    assert verdict.TOGETHER in speaking(decision)
    assert any("set apart" in reason for reason in decision.reasons)


def test_easy_labels_are_not_named_beside_a_target_that_explains_the_finding():
    scan = found(12, {2: 3.0, 5: 0.55, 8: 0.55})
    decision = decide(scan)
    assert {verdict.STANDS_OUT, verdict.TOGETHER} <= speaking(decision)
    beside = verdict._beside(scan, [2])
    assert min(beside[5], beside[8]) > verdict.BACKDOORED, "no backdoor by themselves"
    assert decision.targets == [2]


def test_the_third_of_three_that_are_rare_together_needs_less_for_its_own_sake():
    for strength, named in ((0.6, [2, 5, 8]), (0.5, [2, 5])):
        scan = found(10, {2: 3.0, 5: 1.6, 8: strength})
        decision = decide(scan)
        assert verdict.STANDS_OUT in speaking(decision)
        assert verdict._beside(scan, [2, 5, 8])[8] > verdict.BESIDE
        assert sorted(decision.targets) == named


def test_a_fourth_target_is_named_behind_three_that_stand_out_together():
    decision = decide(found(14, {2: 2.0, 5: 1.2, 8: 1.0, 11: 1.1}))
    assert sorted(decision.targets) == [2, 5, 8, 11]


def test_a_further_target_needs_a_small_mask_besides_its_score():
    scan = found(10, {2: 2.0}, inner={7: 12.0})
    assert scan.apart is not None
    again = scan.apart([2])
    place = again.labels.index(7)
    assert verdict._as_highest(again.score[place], scan) <= verdict.BESIDE
    assert again.mask_index[place] < verdict.SMALL
    assert verdict.further(scan, [2]) == []


@pytest.mark.parametrize("target", [0, 5])
def test_one_target_is_named_alone_also_when_it_is_set_apart(target):
    assert decide(found(10, {target: 2.0})).targets == [target]


@pytest.mark.parametrize(("labels", "tested"), [(9, False), (10, True), (20, True), (43, True)])
def test_the_share_of_a_test_that_cannot_be_made_goes_to_the_single_label(labels, tested):
    decision = decide(findings(labels, network(labels, [], np.random.default_rng(5))))
    shares = {test.name: test.weight for test in decision.tests}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert (verdict.TOGETHER in shares) == tested
    assert all(test.models for test in decision.tests), "each is held against something"
