"""The score of a label: what stands out does, what fails is kept out, nothing becomes NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from goodnet.scores import LEAN_MOST, Raw, combine, corroborated, lean_index, robust_index
from goodnet.uncalibrated import neural_cleanse


def raw(rng: np.random.Generator, classes: int) -> Raw:
    return Raw(
        margins={n: tuple(rng.normal(size=3)) for n in range(classes)},
        masks={n: float(np.exp(4 + 0.3 * rng.normal())) for n in range(classes)},
        noise={n: float(np.exp(3 + 0.1 * rng.normal())) for n in range(classes)},
        clean_margin=5.0,
    )


@pytest.mark.parametrize("classes", [10, 43, 200])
def test_a_label_that_stands_out_in_every_channel_leads_by_far(classes):
    numbers = raw(np.random.default_rng(classes), classes)
    numbers.margins[7] = (7.0, 7.0, 7.0)
    numbers.masks[7] = float(np.exp(4 - 0.3 * 7))
    labels = list(range(classes))
    scores = combine(labels, numbers, labels)
    order = np.argsort(-scores.score)
    assert order[0] == 7
    assert scores.score[7] > 1.5 * scores.score[order[1]]


def test_a_weak_spot_in_one_channel_alone_scores_far_less_than_agreement():
    """A label that noise drives a network to has a wide margin and an ordinary mask."""
    numbers = raw(np.random.default_rng(1), 12)
    numbers.margins[3] = (30.0, 30.0, 30.0)
    numbers.margins[7] = (6.0, 6.0, 6.0)
    numbers.masks[3], numbers.masks[7] = float(np.exp(4)), float(np.exp(4 - 0.3 * 6))
    scores = combine(range(12), numbers, range(12)).score
    assert scores[7] > 1.5 * scores[3]


def test_a_patch_speaks_for_a_label_that_no_faint_change_leads_to():
    """A Trojan's target has a small mask and an ordinary margin; a label that bright colours lead
    to has a patch and an ordinary mask."""
    numbers = raw(np.random.default_rng(2), 12)
    patches = {n: -2.0 + 0.1 * n for n in range(12)}
    numbers = replace(numbers, patches={**patches, 3: 20.0, 7: 8.0})
    numbers.masks[3], numbers.masks[7] = float(np.exp(4)), float(np.exp(4 - 0.3 * 5))
    rated = combine(range(12), numbers, range(12))
    assert rated.patch[7] == pytest.approx(8.0 / 5.0), "in clean margins"
    assert rated.score[7] > 2.5
    assert rated.score[7] > 1.5 * np.delete(rated.score, 7).max()


def test_failed_inversions_are_kept_out_of_the_statistics():
    labels = list(range(10))
    margins = {n: (float(n % 3),) for n in labels}
    sizes = {n: 50.0 + n for n in range(8)}  # 8 and 9 failed
    with_failures = combine(labels, Raw(margins, sizes), labels)
    few = {n: margins[n] for n in range(8)}
    without = combine(labels[:8], Raw(few, sizes), labels[:8])
    assert np.isnan(with_failures.anomaly_index[8:]).all()
    assert np.allclose(with_failures.anomaly_index[:8], without.anomaly_index)
    assert np.isfinite(with_failures.score).all()


def test_equal_masks_do_not_divide_by_zero():
    labels = list(range(6))
    scores = combine(labels, Raw(masks=dict.fromkeys(labels, 40.0)), labels)
    assert np.array_equal(scores.anomaly_index, np.zeros(6))
    assert neural_cleanse(scores).targets == []
    assert np.isfinite(scores.score).all()


def test_a_narrow_spread_of_few_labels_makes_no_outlier():
    values = np.array([1.0, 1.0, 1.0, 1.001, 1.0, 1.05])
    assert robust_index(values, np.ones(6, bool), floor=0.1)[-1] < 1.0


def test_controls_say_what_is_usual():
    """Leaders were chosen for their margins: held against each other none would stand out."""
    values = np.array([9.0, 9.0, 9.0, 9.0, 0.0, 1.0, 0.5, 0.2])
    usual = np.arange(8) >= 4
    assert robust_index(values, usual, floor=0.1)[0] > 5


def test_two_labels_have_no_index():
    assert np.isnan(robust_index(np.array([1.0, 2.0]), np.ones(2, bool), 0.1)).all()


def test_no_label_at_all_is_no_score():
    """The time was up before the masks: margins are known, and no label counts."""
    margins = dict.fromkeys(range(6), (1.0, 2.0, 3.0))
    scores = combine([], Raw(margins, clean_margin=5.0), [])
    assert scores.labels == []
    assert scores.score.shape == scores.margin_index.shape == (0,)


def test_other_evidence_counts_for_more_where_clean_images_lean_to_the_label():
    numbers = raw(np.random.default_rng(3), 10)
    labels = list(range(10))
    plain = combine(labels, numbers, labels).score
    best, worst = int(plain.argmax()), int(plain.argmin())
    assert plain[worst] == 0.0
    leaning = {n: -0.3 + 0.02 * n for n in labels}
    for label, expected in ((best, plain[best] * np.sqrt(1 + 2.0)), (worst, 0.0)):
        # Two units before the next one.
        heights = leaning | {label: max(v for n, v in leaning.items() if n != label) + 0.3}
        scores = combine(labels, replace(numbers, leaning=heights), labels)
        assert scores.score[label] == pytest.approx(expected)
        others = [n for n in labels if n != label]
        assert scores.score[others].tolist() == plain[others].tolist()


def test_what_the_network_itself_tells_is_added_to_the_score():
    numbers = raw(np.random.default_rng(3), 10)
    labels = list(range(10))
    plain = combine(labels, numbers, labels)
    assert not plain.inner_index.any()
    worst = int(plain.score.argmin())
    inner = dict.fromkeys(labels, -0.5) | {worst: 2.5, (worst + 1) % 10: 0.75}
    told = combine(labels, replace(numbers, inner=inner), labels)
    expected = plain.score.copy()
    expected[[worst, (worst + 1) % 10]] += [2.5, 0.75]
    assert told.score == pytest.approx(expected), "what speaks against a label takes nothing off"
    assert told.inner_index.tolist() == [inner[n] for n in labels]
    # Ten labels that were chosen of a network of many: it goes with the other evidence there.
    many = combine(
        labels, replace(numbers, inner=inner | dict.fromkeys(range(10, 600), 0.0)), labels
    )
    assert many.score.tolist() == plain.score.tolist()
    assert not many.inner_index.any()


def test_a_colour_filter_speaks_for_a_label_beside_what_else_does():
    numbers = raw(np.random.default_rng(5), 10)
    labels = list(range(10))
    plain = combine(labels, numbers, labels)
    assert not plain.tint_index.any()
    quiet, best = int(plain.score.argmin()), int(plain.score.argmax())
    tinted = dict.fromkeys(labels, 0.0) | {quiet: 1.1, best: 0.5}
    leaning = {n: -0.3 + 0.01 * n for n in labels} | {quiet: 0.0 - 0.21 + 0.15}
    scores = combine(labels, replace(numbers, tinted=tinted, leaning=leaning), labels)
    lead = lean_index(leaning)[quiet]
    assert 0.5 < lead < 4.0
    assert scores.score[quiet] == pytest.approx((plain.score[quiet] + 2.2) * np.sqrt(1 + lead))
    assert scores.score[best] == pytest.approx(plain.score[best] + 1.0)
    others = [n for n in labels if n not in (quiet, best)]
    assert scores.score[others].tolist() == plain.score[others].tolist()
    # The score of many labels has reference models that do not know of filters.
    many = raw(np.random.default_rng(6), 43)
    same = combine(range(43), replace(many, tinted=dict.fromkeys(range(43), 1.0)), range(43))
    assert same.score.tolist() == combine(range(43), many, range(43)).score.tolist()


def test_a_lead_is_before_all_labels_and_counts_for_so_much_only():
    assert lean_index({0: 0.1, 1: 0.4, 2: 0.4}) == {0: 0.0, 1: 0.0, 2: 0.0}
    assert lean_index({0: 0.1, 1: 9.0, 2: 0.4}) == {0: 0.0, 1: LEAN_MOST, 2: 0.0}
    assert lean_index({}) == {}
    assert lean_index({3: 1.0}) == {3: 0.0}
    # Of labels of which some were not measured, too.
    assert corroborated({0: 2.0, 1: 2.0}, {0: 0.1, 1: 0.4, 2: 0.1}) == {
        0: 2.0,
        1: pytest.approx(2.0 * np.sqrt(3.0)),
    }
    # A ranking's or many labels' score is as it was: their reference models do not know it.
    for classes in (43, 100):
        numbers = raw(np.random.default_rng(4), classes)
        labels = list(range(classes))
        heights = replace(
            numbers,
            leaning=dict.fromkeys(labels, 0.0) | {5: 3.0},
            inner=dict.fromkeys(labels, 0.0) | {5: 3.0},
        )
        assert np.array_equal(
            combine(labels, heights, labels).score, combine(labels, numbers, labels).score
        )
