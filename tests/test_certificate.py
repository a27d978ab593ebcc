"""The certificate: right in size by simulation, and no more than the images can tell."""

from __future__ import annotations

import numpy as np
import pytest

from goodnet.certificate import ERROR, confidences, judge, judge_fresh
from goodnet.reports import FreshScan
from goodnet.statistics import accuracy_loss, one_sided, proportion


@pytest.mark.parametrize(
    ("n", "lost", "gained"),
    [(40, 0.05, 0.0), (40, 0.02, 0.02), (200, 0.03, 0.01), (200, 0.4, 0.38), (1000, 0.02, 0.0)],
)
def test_the_bounds_of_a_loss_hold_as_often_as_they_say(n, lost, gained):
    generator = np.random.default_rng(n)
    draws = generator.multinomial(n, [lost, gained, 1 - lost - gained], size=1500)
    found = [accuracy_loss(int(a), int(b), n, 0.95) for a, b, _ in draws]
    truth = lost - gained
    assert np.mean([f.high >= truth for f in found]) >= 0.94
    assert np.mean([f.low <= truth for f in found]) >= 0.94


def test_pairs_tell_more_than_two_accuracies():
    """97 % and 96 % of 1,000 images: alone they overlap widely, image by image they do not."""
    loss = accuracy_loss(10, 0, 1000, 0.95)
    assert loss.low > 0
    assert loss.high < 0.02
    before, after = proportion(970, 1000), proportion(960, 1000)
    assert before.low < after.value < before.high


def test_what_changed_cannot_be_more_than_there_was():
    with pytest.raises(ValueError, match="changed"):
        accuracy_loss(3, 3, 5)


@pytest.mark.parametrize(("first", "others"), [(1, 0), (2, 0), (2, 2), (1, 5)])
def test_the_remedies_share_the_error(first, others):
    spent = [1 - confidence for confidence in confidences(first, others)]
    assert len(spent) == first + others
    assert sum(spent) == pytest.approx(ERROR)
    assert max(spent) == spent[0]


@pytest.mark.parametrize(
    ("n", "lost", "gained", "hits", "standing"),
    [
        (40, 0, 0, 0, "not certifiable"),
        (40, 1, 0, 1, "not certifiable"),
        (40, 3, 0, 0, "refused"),
        (40, 0, 0, 3, "refused"),
        (240, 0, 0, 0, "holds"),
        (240, 0, 0, 2, "not certifiable"),
        (4000, 60, 20, 40, "holds"),
        (4000, 200, 20, 0, "refused"),
        (4000, 0, 0, 120, "refused"),
    ],
)
def test_the_standing_follows_from_what_the_images_can_tell(n, lost, gained, hits, standing):
    loss = accuracy_loss(lost, gained, n, 0.95)
    attacks = {3: proportion(0, n), 7: proportion(hits, n)}
    found, reason = judge(loss, attacks, attacks, 0.02, 0.02)
    assert found == standing, reason
    if hits and standing == "refused":
        assert "label 7" in reason


def test_a_bad_repair_is_rarely_certified():
    """5 % of stamped images still obey, or 5 % of accuracy is lost: twice and a half the limit."""
    generator = np.random.default_rng(1)
    for lost, obeys in ((0.05, 0.0), (0.0, 0.05), (0.021, 0.0), (0.0, 0.021)):
        held = 0
        for _ in range(1000):
            a, b = generator.binomial(300, lost), generator.binomial(300, obeys)
            loss = accuracy_loss(int(a), 0, 300, 0.95)
            attacks = {0: proportion(int(b), 300)}
            held += judge(loss, attacks, attacks, 0.02, 0.02)[0] == "holds"
        assert held / 1000 <= 0.06


def test_where_no_trigger_works_nothing_is_shown():
    loss = accuracy_loss(0, 0, 500, 0.95)
    for attacks in ({0: proportion(0, 0)}, {0: proportion(0, 500), 1: proportion(0, 0)}):
        assert judge(loss, attacks, attacks, 0.02, 0.02)[0] == "refused"


def test_what_goes_to_the_target_unstamped_as_well_is_no_reason_to_refuse_and_no_proof():
    """A model that is right on .6 takes a tenth of the images for the target by itself."""
    loss = accuracy_loss(0, 0, 450, 0.95)
    seen = {3: proportion(50, 450)}
    assert judge(loss, seen, seen, 0.02, 0.02)[0] == "refused"
    found, reason = judge(loss, seen, {3: proportion(2, 450)}, 0.02, 0.02)
    assert found == "not certifiable"
    assert "attack success" in reason


def test_what_such_changes_do_to_innocent_labels_is_no_reason_to_refuse_and_no_proof():
    """A perturbation leads a twentieth of the images of a small clean network anywhere."""
    loss = accuracy_loss(0, 0, 450, 0.95)
    seen = {3: proportion(40, 450)}
    assert judge(loss, seen, seen, 0.02, 0.02, {3: [(seen[3], 0.05)]})[0] == "refused"
    found, reason = judge(loss, seen, seen, 0.02, 0.02, {3: [(seen[3], 0.09)]})
    assert found == "not certifiable"
    assert "8.9% of images still become label 3" in reason
    assert "without a backdoor" in reason
    other = {5: [(seen[3], 0.5)]}
    assert judge(loss, seen, seen, 0.02, 0.02, other)[0] == "refused", "of another label"
    # One that leads more, and no more than is usual, does not hide one that does.
    both = {3: [(seen[3], 0.09), (proportion(28, 450), 0.0)]}
    assert judge(loss, seen, seen, 0.02, 0.02, both)[0] == "refused"


def test_the_worst_is_told_whichever_came_first():
    loss = accuracy_loss(0, 0, 450, 0.95)
    faint, clear, other = proportion(30, 450), proportion(110, 450), proportion(60, 450)
    pairs = {3: [(faint, 0.0), (clear, 0.0)], 5: [(other, 0.0)]}
    seen = {3: clear, 5: other}
    standing, reason = judge(loss, seen, seen, 0.02, 0.02, pairs)
    assert standing == "refused"
    assert "24.4% of images still become label 3" in reason


def fresh(verdict, targets):
    return FreshScan(
        verdict=verdict,
        p_value=None,
        targets=targets,
        labels=10,
        masks_before={0: 3.0},
        masks_after={0: 30.0},
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("verdict", "targets", "standing"),
    [
        ("clean", [], "holds"),
        ("suspicious", [], "holds"),
        ("inconclusive", [], "holds"),
        ("backdoored", [0], "refused"),
        ("backdoored", [0, 5], "refused"),
        ("backdoored", [], "refused"),
        ("backdoored", [5], "not certifiable"),
    ],
)
def test_a_fresh_scan_can_only_take_away(verdict, targets, standing):
    assert judge_fresh("holds", "", fresh(verdict, targets), [0])[0] == standing


def test_one_sided_bounds_are_sharper_than_two_sided():
    shown = proportion(2, 100)
    low, high = one_sided(2, 100, 0.95)
    assert shown.low < low < 0.02 < high < shown.high
