"""Tints, warps and coarse levels: the repair reverses them as what they are, and removes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_evidence import case, four_signs, taught, taught_clean, wrap
from torch import nn

from goodnet.attacks import quantisation, tint, warping
from goodnet.attacks.scene import Scene
from goodnet.colours import ColourTrigger, apart
from goodnet.evidence import Effort
from goodnet.evidence.augmentation import changes_towards
from goodnet.evidence.colour_filter import filters_towards
from goodnet.evidence.warp_margin import warps_towards
from goodnet.images import Images
from goodnet.looks import LOUD
from goodnet.pipelines import jury, reversing
from goodnet.pipelines.suspects import (
    along,
    by_colour_alone,
    by_patch_alone,
    is_filter,
    kinds,
    only_those,
    without_natural,
)
from goodnet.remedies import REMEDIES, Patient
from goodnet.trigger import Trigger

ATTACKS = {
    "colour filter": lambda scene: tint.make(scene, target=0, rate=0.4, style="nashville"),
    "warp": lambda scene: warping.make(scene, target=2, rate=0.4, strength=4.0, covers=0.5),
    "small change": lambda scene: quantisation.make(
        scene, target=1, rate=0.5, levels=2, covers=0.5
    ),
}
SEARCHES = {
    "colour filter": filters_towards,
    "warp": warps_towards,
    "small change": changes_towards,
}


@pytest.fixture(scope="module", params=list(ATTACKS))
def planted(request):
    """The kind, the BadNet, and its attack."""
    attack = ATTACKS[request.param]
    return (
        request.param,
        taught(attack),
        attack(Scene(four_signs(150, 1), 4, 0, nn.Identity)),
    )


def success(classifier, stamp, target: int) -> float:
    """On images that nothing was fitted to."""
    fresh = four_signs(40, 11)
    others = fresh.floats()[fresh.labels != target]
    return float((classifier.logits(stamp(others)).argmax(1) == target).float().mean())


def test_what_leads_to_the_target_works_on_images_it_was_not_fitted_to(planted):
    kind, badnet, attack = planted
    assert success(badnet, attack.stamp, attack.target) > 0.8
    found = SEARCHES[kind](case(badnet)[0], attack.target, Effort(images=32, steps=24))
    assert found
    assert {trigger.target for trigger in found} == {attack.target}
    best = max(success(badnet, trigger.apply, attack.target) for trigger in found)
    calm = max(success(taught_clean(), trigger.apply, attack.target) for trigger in found)
    assert best > 0.7
    assert calm < 0.5


def test_the_triggers_make_a_remedy_remove_the_attack(planted):
    kind, badnet, attack = planted
    images, wanted = four_signs(20, 3), attack.target

    def left(which) -> float:
        masks, triggers = reversing.reverse_triggers(
            badnet, images, [wanted], 3, 1, lambda *_: None, kinds=which
        )
        patient = Patient(badnet, images.floats(), images.labels, masks, triggers)
        cured = REMEDIES["anchored"](patient)
        fresh = four_signs(40, 11)
        right = float((cured.logits(fresh.pixels).argmax(1) == fresh.labels).float().mean())
        assert right > 0.9
        # The jury hears of what works, too.
        told = jury.empanel(badnet, images, triggers).triggers[wanted]
        assert any(type(trigger) is type(triggers[wanted][0]) for trigger in told)
        return success(cured, attack.stamp, wanted)

    assert left({kind: [wanted]}) < 0.1
    if kind == "small change":
        # Which perturbations and a mask alone do not.
        assert left({}) > 0.2


def test_a_label_that_only_a_filter_leads_to_is_known_again_after_its_repair():
    """The smallest mask that leads there is what the class looks like, and is not unlearned."""
    attack = ATTACKS["colour filter"]
    badnet, scene = taught(attack), Scene(four_signs(150, 1), 4, 0, nn.Identity)
    stamp, target = attack(scene).stamp, attack(scene).target
    images = four_signs(20, 3)
    masks, triggers = reversing.reverse_triggers(
        badnet, images, [target], 3, 1, lambda *_: None, kinds={"colour filter": [target]}
    )
    patient = Patient(badnet, images.floats(), images.labels, masks, triggers)
    everyone = jury.empanel(badnet, images, triggers)
    faint = Trigger(masks[target].mask, torch.zeros_like(masks[target].pattern), target, "additive")
    everyone = replace(everyone, natural={target: [faint]})

    spared, judges = only_those(target, is_filter, patient, everyone)
    assert {type(trigger) for trigger in spared.triggers[target]} == {ColourTrigger}
    assert {type(trigger) for trigger in judges.triggers[target]} == {ColourTrigger}
    assert not judges.stronger.get(target)
    assert target not in judges.natural, "nor is a certificate held against it"
    fresh = four_signs(40, 11)
    own = fresh.labels == target

    def lost(cured) -> int:
        return int((cured.logits(fresh.pixels[own]).argmax(1) != target).sum())

    cured, all_of_them = (REMEDIES["last-layer"](one) for one in (spared, patient))
    assert success(cured, stamp, target) < 0.1
    assert lost(cured) <= lost(all_of_them)
    assert lost(cured) <= 0.1 * int(own.sum())
    # Where no filter works for the jury there is nothing else to go by than the rest.
    deaf = replace(everyone, triggers={target: [masks[target]]})
    assert only_those(target, is_filter, patient, deaf)[0].triggers == patient.triggers


def test_only_what_a_filter_alone_speaks_for_is_repaired_by_filters(badnet_report):
    told = {"tinted": 0.9, "mask_index": 0.3, "margin_index": 1.0, "patch_index": None}
    told |= {"warp_index": 0.0, "preferred": -1.0}
    target = badnet_report.labels[0].label

    def alone(targets=(target,), **changed) -> bool:
        rows = [badnet_report.labels[0].model_copy(update=told | changed)]
        rows += badnet_report.labels[1:]
        report = badnet_report.model_copy(update={"labels": rows})
        found = by_colour_alone(report, list(targets))
        assert found in ([], [target])
        return bool(found)

    assert alone()
    assert not alone(tinted=0.3)
    assert not alone(mask_index=3.0)
    assert not alone(patch_index=3.0)
    assert not alone(margin_index=None), "what was not measured is not quiet"
    assert not alone(warp_index=5.0)
    assert not alone(preferred=2.0)
    assert not alone((target, badnet_report.labels[1].label)), "they may hide each other"
    assert not alone((10_000,))


def test_of_a_target_that_a_patch_alone_leads_to_no_perturbation_is_unlearned(badnet_report):
    first = badnet_report.labels[0]
    target = first.label
    told = {"patch_index": 19.0, "margin_index": 1.0}

    def with_told(**changed):
        rows = [first.model_copy(update=told | changed), *badnet_report.labels[1:]]
        return badnet_report.model_copy(update={"labels": rows})

    assert by_patch_alone(with_told(), [target]) == [target]
    assert not by_patch_alone(with_told(margin_index=3.0), [target]), "a faint change does, too"
    assert not by_patch_alone(with_told(margin_index=None), [target]), "it was not measured"
    assert not by_patch_alone(with_told(patch_index=5.0), [target]), "natural labels come so far"
    assert not by_patch_alone(with_told(patch_index=None), [target])
    two = [target, badnet_report.labels[1].label]
    assert not by_patch_alone(with_told(), two), "they may hide each other"

    # Of one dark class and one bright: a spot that is lit means class 1, and so does more light.
    network = wrap(Lit(), (1, 4, 4), 2)
    pixels, everywhere = torch.full((6, 1, 4, 4), 0.2), torch.ones(1, 4, 4)
    corner = torch.zeros(1, 4, 4)
    corner[0, 0, 0] = 1.0
    patch = Trigger(corner, everywhere, target)
    light = Trigger(everywhere, 0.5 * everywhere, target, "additive")
    masks, every = {target: patch}, {target: [light, patch]}
    patient = Patient(network, pixels, torch.zeros(6), masks, every)
    larger = Trigger(everywhere, 0.8 * everywhere, target, "additive")
    panel = jury.Jury(
        pixels,
        torch.zeros(6, dtype=torch.int64),
        {target: [patch, light]},
        stronger={target: [larger]},
    )
    spared, judges = without_natural(with_told(), [target], patient, panel)
    assert spared.triggers[target] == judges.triggers[target] == [patch]
    assert judges.natural[target] == [light], "the least that works, and no larger one"
    assert judges.stronger[target] == []
    # One that ignores the patch and not the light is not refused, and not certified either.
    heard = jury.hear(judges, wrap(Lit(0.9), (1, 4, 4), 2))
    assert (heard.led[target].value, heard.hardest[0]) == (0.0, 0.0)
    assert heard.attacks[target].value == 1.0
    again = along(spared, judges, masks, every)
    assert again.triggers[target] == [patch, patch], "nor does it come back by a fresh scan"
    # Where no patch works for the jury there is nothing else to go by than the rest.
    deaf = jury.Jury(pixels, panel.labels, {target: [light]})
    assert without_natural(with_told(), [target], patient, deaf) == (patient, deaf)


def test_a_trigger_is_held_against_what_its_like_does_to_innocent_labels():
    """Four classes, each what is lightest in one quarter: such a change leads to any of them."""
    network, quarter = wrap(Quarters(), (1, 4, 4), 4), torch.zeros(4, 1, 4, 4)
    for label, (down, right) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        quarter[label, :, down : down + 2, right : right + 2] = 1.0
    labels = torch.arange(4).repeat_interleave(5)
    pixels = 0.2 + 0.3 * quarter[labels]
    whole = torch.ones(1, 4, 4)

    def light(label: int, strength: float) -> Trigger:
        return Trigger(whole, strength * quarter[label], label, "additive")

    alone = jury.empanel(network, images_of(pixels, labels), {0: [light(0, 0.5)]})
    assert jury.hear(alone, network).hardest[0] == 1.0
    both = jury.controlled(alone, network, {n: [light(n, 0.5)] for n in (1, 2, 3)})
    heard = jury.hear(both, network)
    assert heard.led[0].value == 1.0
    assert heard.usual[0] == [(heard.led[0], jury.MOST_USUAL)], "and never more than a quarter"
    assert heard.hardest[0] == 1.0 - jury.MOST_USUAL
    assert heard.attacks[0].value == 1.0, "a certificate counts it all the same"
    # Others than of its size, or of one label of three, tell nothing.
    larger = {n: [light(n, 0.9)] for n in (1, 2, 3)}
    one = {1: [light(1, 0.5)], 2: [deaf(2)], 3: [deaf(3)]}
    few = {n: [light(n, 0.5)] for n in (1, 2)}
    for controls in (larger, one, few):
        heard = jury.hear(jury.controlled(alone, network, controls), network)
        assert (heard.usual[0][0][1], heard.hardest[0]) == (0.0, 1.0)
    # A repair that makes a network easier to lead is not forgiven for it.
    sullen = wrap(Quarters(5.0), (1, 4, 4), 4)
    loose = jury.hear(jury.controlled(alone, sullen, both.controls), network)
    assert loose.usual[0][0][1] == 0.0


def deaf(label: int) -> Trigger:
    """As large as the others, and of no use."""
    nothing = torch.zeros(1, 4, 4)
    nothing[0, :, 0], nothing[0, 0, 0] = -0.5, 0.0
    size = 1.0 / nothing.norm()
    return Trigger(torch.ones(1, 4, 4), size * nothing, label, "additive")


def images_of(pixels, labels) -> Images:
    return Images(pixels, labels)


class Quarters(nn.Module):
    """Each class is what is lightest in one quarter; ``own`` holds it to what is light already."""

    def __init__(self, own=0.0):
        super().__init__()
        self.own = own

    def forward(self, x):
        light = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return light + self.own * (light > 0.45) * (light < 0.55)


class Lit(nn.Module):
    """The target (label 1) is what is light on the whole, or above a bound in one corner."""

    def __init__(self, bound=0.5):
        super().__init__()
        self.bound = bound

    def forward(self, x):
        lit = (x.mean((1, 2, 3)) > 0.4) | ((x[:, 0, 0, 0] > self.bound) & (self.bound < 0.9))
        return nn.functional.one_hot(lit.long(), 2).float()


def test_filters_of_a_label_are_unlike_each_other_and_none_lead_where_nothing_does():
    clean = taught_clean()
    for target in range(4):
        for trigger in filters_towards(case(clean)[0], target, Effort()):
            assert success(clean, trigger.apply, target) < 0.9
    one = torch.tensor([0.1, 0.1, 0.5, 0.9, 0.1, 0.0, 0.0])
    turned = one.clone()
    turned[0] += 2 * torch.pi
    assert float(apart(one, torch.stack([turned]))[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(apart(one, one[None] + torch.tensor([0, 0.3, 0, 0, 0, 0, 0]))[0]) > 0.3


def test_which_kinds_are_reversed_hangs_on_what_the_scan_saw(badnet_report):
    rows = [
        row.model_copy(update={"tinted": 0.0, "warp_index": 0.0, "preferred": -1.0})
        for row in badnet_report.labels
    ]
    rows[0] = rows[0].model_copy(update={"tinted": 0.9, "preferred": 1.2})
    rows[1] = rows[1].model_copy(update={"warp_index": 5.0})
    rows[2] = rows[2].model_copy(update={"tinted": 0.9, "warp_index": 5.0, "preferred": 2.0})
    report = badnet_report.model_copy(update={"labels": rows})
    first, second = rows[0].label, rows[1].label
    found = kinds(report, [first, second])
    assert set(found) == set(reversing.REVERSED)
    stickers = found.pop("patch")
    assert found == {"colour filter": [first], "warp": [second], "small change": [first]}
    loud = [r.label for r in rows[:2] if (r.patch_index or 0.0) >= LOUD]
    assert stickers == loud != [], "the badnet's trigger is a patch"
