"""Labels that stand out together: power where they hide each other, and its size on clean ones."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pytest

from goodnet import tables
from goodnet.calibration import maxima
from goodnet.scores import Raw, Scores, combine
from goodnet.together import Scored, standing_together


def network(labels: int, targets: Collection[int], rng: np.random.Generator) -> Scored:
    """A network's labels, the targets with smaller masks and larger margins than the rest."""
    masks = dict(enumerate(np.exp(rng.normal(4.0, 0.3, labels))))
    margins = {n: [v] for n, v in enumerate(rng.normal(0.0, 1.0, labels))}
    patches = dict(enumerate(rng.normal(0.0, 1.0, labels)))
    for label in targets:
        masks[label], margins[label], patches[label] = 12.0, [6.0], 6.0
    raw = Raw(margins=margins, masks=masks, patches=patches, clean_margin=4.0)

    def scored(apart: Collection[int] = ()) -> Scores:
        return combine(list(range(labels)), raw, list(range(labels)), apart=apart)

    return scored


def test_three_targets_that_hide_each_other_are_the_set():
    scored = network(10, [1, 4, 7], np.random.default_rng(0))
    alone = scored().score
    number, together = standing_together(scored)
    assert sorted(together) == [1, 4, 7]
    assert number > float(np.max(alone)) + 1.0, "no label lies far from what they make usual"


def test_one_target_does_not_stand_out_in_company():
    rng = np.random.default_rng(1)
    one = [standing_together(network(10, [3], rng))[0] for _ in range(40)]
    none = [standing_together(network(10, [], rng))[0] for _ in range(40)]
    assert abs(np.median(one) - np.median(none)) < 0.5


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
    """The law of 40 clean networks says how rarely a further clean one comes so far."""
    rng = np.random.default_rng(4)
    known = maxima([standing_together(network(10, [], rng))[0] for _ in range(40)])
    assert known is not None
    p = [known.survival(standing_together(network(10, [], rng))[0]) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.1) <= 0.16
    assert np.mean(np.array(p) <= 0.01) <= 0.03
    planted = standing_together(network(10, [1, 4, 7], rng))[0]
    assert known.survival(planted) <= 0.001


def test_the_reference_models_have_a_number_and_few_come_far():
    models = [m for m in tables.shipped().models if m.together is not None]
    assert {m.family for m in models} == {"transformer", "other"}
    for family in ("transformer", "other"):
        alike = [m for m in models if m.family == family]
        values = np.array([m.together for m in alike], dtype=np.float64)
        assert len(values) >= 20
        left_out = [maxima(np.delete(values, i)) for i in range(len(values))]
        p = np.array([k.survival(v) for k, v in zip(left_out, values, strict=True) if k])
        assert np.mean(p <= 0.01) <= 0.05
        assert np.mean(p <= 0.1) <= 0.2
