"""A repair goes on where a fresh scan names labels; shifted copies tell what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.evidence import Evidence
from goodnet.images import Images
from goodnet.parallel import silent
from goodnet.pipelines import jury as juries
from goodnet.pipelines.candidates import Limits, better_than_none
from goodnet.pipelines.conclude import Measured
from goodnet.pipelines.load import load
from goodnet.pipelines.reversing import Wanted, reverse
from goodnet.pipelines.scan import without_rows
from goodnet.pipelines.suspects import along
from goodnet.pipelines.trying import MORE, Trials, try_all
from goodnet.remedies import REMEDIES, Patient
from goodnet.remedies.surroundings import SHIFT, shifted
from goodnet.render.words import treatment
from goodnet.reports import FreshScan
from goodnet.statistics import proportion

TARGET, OTHER = 1, 6


@pytest.fixture(scope="module")
def split(badnet):
    return juries.split(badnet.clean, 0)


@pytest.fixture(scope="module")
def reversed_twice(badnet, split):
    """For the patient and for the jury."""
    classifier = load(badnet.module, badnet.clean)
    means = (None, silent)
    return [reverse(Wanted([TARGET]), classifier, part, 1, *means) for part in split]


def fresh(targets) -> FreshScan:
    return FreshScan(
        verdict="backdoored" if targets else "clean",
        p_value=0.001 if targets else 0.7,
        targets=targets,
        labels=12,
        masks_before={},
        masks_after={},
        seconds=0.0,
    )


NAME = "last-layer-firm"
"""A row that is held against perturbations: there is no patch among these triggers, and by the
others alone the milder one leaves a third of the attack, for which the jury refuses it."""


USUAL = Limits(0.05, 0.05)


def tried(
    badnet, split, reversed_twice, told, limits=USUAL, controlled=lambda of: of
) -> tuple[Trials, object]:
    """A repair by the row alone, whose fresh scans name, one after the other, what is ``told``."""
    classifier = load(badnet.module, badnet.clean)
    mine, theirs = split
    (masks, triggers), (_, others) = reversed_twice
    patient = Patient(classifier, mine.floats(), mine.labels, masks, triggers)
    jury = juries.empanel(classifier, theirs, others)
    answers = iter(told)

    def widened(of, labels, network):
        return along(of, jury, *reverse(Wanted(list(labels)), network, mine, 4, None, silent))

    trials = Trials(
        patient,
        REMEDIES,
        jury,
        juries.hear(jury, classifier),
        limits,
        [TARGET],
        lambda _: fresh(next(answers)),
        widened,
        controlled,
        silent,
    )
    return trials, try_all(trials, [NAME], [], [])


def rows_changed(one, other) -> set[int]:
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    heads = [(a, b) for a, b in pairs if a.shape[0] == 12]
    return {row for a, b in heads for row in range(12) if not torch.equal(a[row], b[row])}


def accuracy(classifier, images: Images) -> float:
    return float((classifier.logits(images.pixels).argmax(1) == images.labels).float().mean())


def test_what_a_fresh_scan_names_is_treated_by_triggers_of_the_result(
    badnet, split, reversed_twice
):
    trials, best = tried(badnet, split, reversed_twice, [[TARGET, OTHER], []])
    first, second = trials.made
    assert best is second
    assert first.standing == "refused"
    assert "names label 1 again" in first.reason
    assert (second.again, second.also) == ((TARGET,), (OTHER,))
    assert treatment(second.trial(True, trials.before)) == f"{NAME}, 1 again, also 6"
    # More triggers of the target than the first time, and some of the other label.
    assert len(second.patient.triggers[TARGET]) > len(first.patient.triggers[TARGET])
    assert rows_changed(second.classifier, trials.patient.classifier) == {TARGET, OTHER}
    assert TARGET in rows_changed(second.classifier, first.classifier)
    assert accuracy(second.classifier, badnet.poisoned) < 0.05
    before = accuracy(trials.patient.classifier, badnet.test)
    assert accuracy(second.classifier, badnet.test) >= before - 0.03
    # Each attempt has a share of the error of its own.
    shares = [1 - candidate.confidence for candidate in trials.made]
    assert sum(shares) <= 0.05


def test_it_ends_when_scans_go_on_to_name_labels(badnet, split, reversed_twice):
    trials, best = tried(badnet, split, reversed_twice, [[TARGET]] * (MORE + 1))
    assert best is None, "a repair whose last scan names the target is none"
    assert [c.again for c in trials.made] == [(), (TARGET,), (TARGET,)]
    assert {c.standing for c in trials.made} == {"refused"}


def test_a_result_that_leaves_a_named_label_alone_stands_behind_one_that_treats_it(
    badnet, split, reversed_twice
):
    """However good it looks to the jury, which knows nothing of that label."""
    trials, best = tried(badnet, split, reversed_twice, [[OTHER], []])
    first, second = trials.made
    assert best is second
    assert (first.missed, second.missed) == ((OTHER,), ())
    assert second.also == (OTHER,)
    first.findings = replace(first.findings, steady=1.0)
    assert first.merit(trials.before, trials.limits) < second.merit(trials.before, trials.limits)


def test_the_best_that_breaks_a_limit_is_made_once_more_as_well(badnet, split, reversed_twice):
    impossible = Limits(-0.2, 0.05)
    trials, best = tried(badnet, split, reversed_twice, [[OTHER], []], impossible)
    first, second = trials.made
    assert {first.standing, second.standing} == {"refused"}
    assert best is second, "the first leaves a label alone that a fresh scan of it named"
    assert second.also == (OTHER,)
    assert rows_changed(second.classifier, trials.patient.classifier) == {TARGET, OTHER}


def test_what_breaks_a_limit_by_a_little_is_better_than_none(badnet, split, reversed_twice):
    trials, _ = tried(badnet, split, reversed_twice, [[]])
    known = trials.made[0]

    def told(attack, lost, standing="refused"):
        kept = trials.before.accuracy
        accuracy = proportion(round((kept.value - lost) * kept.n), kept.n)
        seen = replace(known.findings, hardest=(attack, 0.5), accuracy=accuracy)
        return replace(known, findings=seen, standing=standing)

    def taken(*candidates):
        return better_than_none(candidates, trials.before, trials.limits)

    good, worse = told(0.05, 0.03), told(0.2, 0.03)
    assert taken(worse, good) == [good, worse]
    firm = replace(good, remedy="last-layer-firm")
    assert taken(worse, firm) == [firm, worse], "what it costs shows as well"
    assert not taken(told(0.4, 0.0)), "the backdoor is still there"
    trials.limits = Limits(0.25, 0.5)
    assert taken(told(0.4, 0.2)), "the user allows for it"
    trials.limits = USUAL
    assert not taken(told(0.0, 0.2)), "it has forgotten a fifth of what it knew"
    unmade = replace(good, findings=trials.before)
    assert not taken(unmade), "nothing was done to it"
    assert (good.trial(False, trials.before).made, unmade.trial(False, trials.before).made) == (
        True,
        False,
    )
    unshown = replace(good.findings, attacks={TARGET: proportion(0, 0)})
    assert not taken(replace(good, findings=unshown)), "no trigger works: nothing is known"


def test_the_second_best_is_no_repair_where_a_fresh_scan_still_names_the_target(
    badnet, split, reversed_twice
):
    impossible = Limits(-0.2, 0.05)
    for told, written in (([[]], True), ([[TARGET]] * (MORE + 1), False)):
        trials, best = tried(badnet, split, reversed_twice, told, impossible)
        assert (best is not None) == written
        assert {made.standing for made in trials.made} == {"refused"}


def test_a_result_that_cannot_be_scanned_is_no_second_best(badnet, split, reversed_twice):
    def unreadable():
        raise GoodnetError("D010", "the model answers with NaN", "none")
        yield

    trials, best = tried(badnet, split, reversed_twice, unreadable(), Limits(-0.2, 0.05))
    assert best is None
    (made,) = trials.made
    assert (made.standing, made.reason) == ("refused", "the model answers with NaN")


def test_nor_does_a_jury_that_knows_more_revive_it(badnet, split, reversed_twice):
    def unreadable():
        raise GoodnetError("M012", "the model answers with NaN", "none")
        yield

    def controlled(of):
        return replace(of, allowed={})

    trials, best = tried(badnet, split, reversed_twice, unreadable(), Limits(0.2, 0.2), controlled)
    assert best is None
    assert trials.held
    (made,) = trials.made
    assert (made.standing, made.reason) == ("refused", "the model answers with NaN")


class ByHeart(nn.Module):
    """Knows some pictures by heart, and nothing of any other one."""

    def __init__(self, images: Images) -> None:
        super().__init__()
        self.register_buffer("known", images.floats().flatten(1))
        self.register_buffer("answers", nn.functional.one_hot(images.labels, 12).float())

    def forward(self, x):
        flat = x.flatten(1)
        far = torch.cdist(flat, self.known, compute_mode="donot_use_mm_for_euclid_dist")
        same = (far < 1e-3).float()
        return 5 * same @ self.answers + 1e-3 * flat[:, :12]


def test_shifted_copies_tell_what_the_images_themselves_do_not(badnet, split):
    _, theirs = split
    jury = juries.Jury(theirs.floats(), theirs.labels, {})
    learnt = juries.hear(jury, load(badnet.module, badnet.clean))
    known = juries.hear(jury, load(ByHeart(theirs), badnet.clean, preprocess="unit"))
    assert known.accuracy.value == 1.0 >= learnt.accuracy.value
    assert known.steady < 0.4 < learnt.steady
    again = juries.hear(jury, load(badnet.module, badnet.clean))
    assert again.steady == learnt.steady, "the copies are the same for every network"


def test_an_image_is_shifted_by_a_sixteenth_at_most_and_nothing_is_lost():
    images = torch.rand(40, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    moved = shifted(images, torch.Generator().manual_seed(2))
    assert torch.equal(moved.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    seen = set()
    for image, other in zip(images, moved, strict=True):
        ways = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if torch.equal(other, torch.roll(image, (down, right), (1, 2)))
        ]
        assert len(ways) == 1
        seen.update(ways)
    assert SHIFT == 1 / 16
    assert len(seen) > 15


def test_a_row_that_a_remedy_made_tells_nothing_of_the_training():
    measured = Measured(
        [0, 1],
        [0, 1],
        {},
        Evidence(),
        Evidence(),
        signatures={0: (1.0, 2.0), 1: (3.0, 4.0)},
        driven={0: 1.0, 1: 2.0},
        leaning={0: 0.1, 1: 0.2},
    )
    without = without_rows(measured, [1])
    assert without.signatures == {0: (1.0, 2.0)}
    assert without.driven == {0: 1.0}
    assert without.leaning == measured.leaning
