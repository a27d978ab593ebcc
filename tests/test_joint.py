"""Several kinds of evidence for one label: power where none is rare, and its size on clean ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from goodnet import tables, verdict
from goodnet.calibration import reference
from goodnet.findings import Findings
from goodnet.joint import joint
from goodnet.scores import Raw, combine
from goodnet.verdict import decide

LABELS = list(range(10))


def network(rng: np.random.Generator, kinds: int = 4, target: int | None = None):
    """p-values of labels, of which each kind has its own easiest; a target has a few of all kinds.

    What a kind says of a label is as rare as the largest of ten.
    """
    chances = [1 - rng.uniform(size=10) ** 10 for _ in range(kinds)]
    if target is not None:
        for row in chances:
            row[target] = rng.uniform(0.005, 0.1)
    return [dict(enumerate(row.tolist())) for row in chances]


def test_what_several_kinds_say_of_one_label_counts_together():
    both, apart = [{3: 0.01, 5: 1.0}, {3: 0.01, 5: 1.0}], [{3: 0.01, 5: 1.0}, {3: 1.0, 5: 0.01}]
    assert joint(both) == (pytest.approx(-2 * math.log(0.01)), 3)
    assert joint(apart)[0] == pytest.approx(-math.log(0.01))
    # A kind that was not measured of a label, or of any, says nothing.
    assert joint([{3: 0.01}, {5: 0.5}, {}]) == (pytest.approx(-math.log(0.01)), 3)
    assert joint([{3: 0.0}])[0] < 100
    number, label = joint([{}, {}])
    assert math.isnan(number)
    assert label is None


def test_the_error_rate_is_what_it_says_in_simulation_and_four_hints_are_a_finding():
    rng = np.random.default_rng(0)
    known = reference([joint(network(rng))[0] for _ in range(100)], tables.LONG_TAIL)
    assert known is not None
    p = np.array([known.survival(joint(network(rng))[0]) for _ in range(1000)])
    assert 0.06 <= np.mean(p <= 0.1) <= 0.14
    assert np.mean(p <= 0.01) <= 0.02
    found = [joint(network(rng, target=7)) for _ in range(50)]
    assert {label for _, label in found} == {7}
    assert np.mean([known.survival(number) <= 0.004 for number, _ in found]) > 0.9


def test_the_reference_models_have_a_number_and_few_come_far():
    """Each is by all the others' numbers; here each number is held against the others' as well."""
    values = np.array([m.joint for m in tables.shipped().models if m.joint is not None])
    assert len(values) >= 150
    left_out = [
        reference(np.delete(values, place).tolist(), tables.LONG_TAIL)
        for place in range(len(values))
    ]
    p = np.array([k.survival(v) for k, v in zip(left_out, values, strict=True) if k])
    assert 0.05 <= np.mean(p <= 0.1) <= 0.15
    assert np.mean(p <= 0.01) <= 0.02
    assert np.mean(p <= 0.003) <= 0.01


def told(tinted: dict[int, float], preferred: dict[int, float]) -> Findings:
    """A label that stands out a little (3), and what a filter and small changes lead to."""
    rng = np.random.default_rng(1)
    masks = np.exp(rng.normal(4.0, 0.3, 10))
    margins = rng.normal(0.0, 1.0, 10)
    masks[3], margins[3] = 17.0, 5.0
    raw = Raw(
        margins={n: [margins[n]] * 3 for n in LABELS},
        masks=dict(enumerate(masks)),
        patches=dict.fromkeys(LABELS, 0.0),
        inner=dict.fromkeys(LABELS, 0.0),
        clean_margin=4.0,
    )
    scores = combine(LABELS, raw, LABELS)
    even = dict.fromkeys(LABELS, -0.5)
    return Findings(
        scores,
        10,
        200,
        0.1,
        {},
        even | preferred,
        dict.fromkeys(LABELS, 0.0) | tinted,
        apart=lambda apart: combine(LABELS, raw, LABELS, apart=apart),
    )


def test_hints_of_one_label_are_a_finding_and_of_several_labels_none():
    alone = decide(told({}, {}))
    assert alone.verdict == "clean"
    one = decide(told({3: 0.8}, {3: 0.7}))
    assert (one.verdict, one.targets) == ("backdoored", [3])
    (test,) = [t for t in one.tests if t.name == verdict.JOINT]
    assert test.p_value is not None
    assert test.p_value / test.weight <= verdict.BACKDOORED
    assert any("for label 3 together" in reason for reason in one.reasons)
    several = decide(told({8: 0.8}, {5: 0.7}))
    assert several.verdict != "backdoored"
    assert several.targets == []


def test_the_shares_of_the_tests_are_one_error_rate():
    assert sum(verdict.WEIGHTS.values()) == pytest.approx(1.0)
