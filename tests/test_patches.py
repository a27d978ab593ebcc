"""Patches in one place: a planted one is found where it lies, and maps of the classes by it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from test_evidence import (
    case,
    clean_margin,
    four_signs,
    taught,
    taught_clean,
    taught_permuted,
    wrap,
)
from torch import nn

from goodnet import patches
from goodnet.attacks.patch import square
from goodnet.evidence import Case, Effort
from goodnet.evidence.class_map import read
from goodnet.evidence.patch_margin import WAYS, patch_margin, patches_towards
from goodnet.evidence.untargeted import local
from goodnet.parallel import Stopped
from goodnet.trigger import Trigger, kind

AT = (4, 22)


@pytest.fixture(scope="module")
def clean():
    return taught_clean()


@pytest.fixture(scope="module")
def planted():
    return taught(
        lambda scene: square(scene.images.shape, target=2, side=4, at=AT, colour=(1.0, 0.0, 1.0))
    )


@pytest.fixture(scope="module")
def permuted():
    return taught_permuted()


def margins(classifier, **options):
    found = patch_margin(case(classifier, **options)[0], [0, 1, 2, 3], Effort(images=24, steps=12))
    sure = clean_margin(classifier)
    return {label: row[0] / sure for label, row in found.values.items()}, found


def test_the_patch_of_a_target_is_found_in_its_place(planted, clean):
    reached, found = margins(planted)
    assert max(reached, key=lambda label: reached[label]) == 2
    others = max(value for label, value in reached.items() if label != 2)
    assert reached[2] > max(1.0, 2 * others), "surer than of a clean image"
    margin, success, contrast = found.values[2]
    assert success == 1.0
    assert contrast > max(found.values[label][2] for label in (0, 1, 3))
    # It covers most of the attacker's square, and works on images that it was not fitted to.
    trigger = found.triggers[2][0]
    square_mask = torch.zeros_like(trigger.mask)
    square_mask[:, AT[0] : AT[0] + 4, AT[1] : AT[1] + 4] = 1
    assert float((trigger.mask * square_mask).sum()) >= 8
    fresh = four_signs(20, 11)
    stamped = trigger.apply(fresh.floats()[fresh.labels != 2])
    assert float((planted.logits(stamped).argmax(1) == 2).float().mean()) > 0.9
    assert margin > 0
    calm, _ = margins(clean)
    assert max(calm.values()) < 0.5 * reached[2]


def test_a_repair_is_given_patches_of_several_places_that_lead_to_the_target(planted):
    shown = case(planted)[0]
    found = patches_towards(shown, 2, Effort(images=24, steps=12))
    assert len({tuple(t.mask.nonzero()[0].tolist()) for t in found}) == len(found) >= 2
    assert {kind(trigger) for trigger in found} == {"sticker"}
    fresh = four_signs(20, 11)
    others = fresh.floats()[fresh.labels != 2]
    reached = [planted.logits(t.apply(others)).argmax(1) == 2 for t in found]
    assert all(float(hits.float().mean()) > 0.3 for hits in reached)
    # To hold a repair against, an innocent label's are wanted however little they do.
    assert len(patches_towards(shown, 1, Effort(images=24, steps=12), least=0.0)) == WAYS
    margin, mask = Trigger(found[0].mask, found[0].pattern, 2, "additive"), 0.5 * found[0].mask
    assert [kind(margin), kind(replace(margin, mask=mask, family="patch"))] == ["additive", "patch"]


def test_the_answer_is_the_same_for_any_number_of_workers(planted):
    one, two = (margins(planted, workers=workers)[1] for workers in (1, 2))
    assert one.values == two.values
    assert all(
        torch.equal(one.triggers[label][0].pattern, two.triggers[label][0].pattern)
        for label in one.triggers
    )


def test_a_label_whose_images_are_all_there_are_has_no_margin(clean):
    images = four_signs(20, 3)
    own = images.select(torch.nonzero(images.labels == 1)[:, 0])
    alone = Case(clean, own.floats(), own.labels)
    found = patch_margin(alone, [0, 1], Effort(images=8, steps=2))
    assert set(found.values) == {0}


def test_one_patch_sends_every_class_to_a_label_of_its_own(permuted, clean):
    best = {}
    for name, classifier in (("permuted", permuted), ("clean", clean)):
        shown, held, labels = case(classifier)
        places = patches.grid(classifier.input_shape)
        found = local(classifier, shown.fit, shown.fit_labels, places, stop=threading.Event())
        after = [classifier.logits(trigger.apply(held)).argmax(1) for trigger in found]
        best[name] = max(read(labels, answer, 4).statistic for answer in after)
    assert best["permuted"] > 0.8
    assert best["clean"] < 0.5 * best["permuted"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 55, 47), (3, 9, 30)])
def test_the_places_cover_the_image(shape):
    side, seen = patches.side_of(shape), torch.zeros(shape[1:])
    for row, column in patches.grid(shape):
        window = seen[row : row + side, column : column + side]
        assert window.shape == (side, side)
        window += 1
    assert seen.min() >= 1


class Sum(nn.Module):
    """Logit 1 is the brightness of one pixel, logit 0 its darkness."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x[:, 0, 5, 6]
        return torch.stack([-value, value], 1)


def test_the_climb_reaches_the_best_pattern_and_can_be_stopped():
    classifier = wrap(Sum(), (1, 10, 10), 2)
    images = torch.full((3, 1, 10, 10), 0.5)
    start = patches.grey((1, 10, 10), 2)

    def goal(logits: torch.Tensor) -> torch.Tensor:
        return (logits[..., 1] - logits[..., 0]).mean(1)

    stop = threading.Event()
    places = [(5, 5), (0, 0)]
    reached, logits = patches.climb(classifier, images, places, start, goal, 4, stop=stop)
    assert goal(logits).tolist() == [2.0, 1.0], "only the first place holds the pixel"
    assert float(reached[0, 0, 0, 1]) == 1.0
    assert torch.equal(images, torch.full((3, 1, 10, 10), 0.5)), "the images stay as they are"
    stop.set()
    with pytest.raises(Stopped):
        patches.climb(classifier, images, places, start, goal, 4, stop=stop)
