"""An all-to-all backdoor has no target: the repair reverses the map and removes that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from render_case import printed
from test_evidence import four_signs, taught_clean, taught_permuted, wrap
from torch import nn

from goodnet.attacks import all_to_all
from goodnet.attacks.scene import Scene
from goodnet.certificate import judge
from goodnet.errors import GoodnetError
from goodnet.images import Images
from goodnet.pipelines import jury, reversing
from goodnet.pipelines.repair import repair
from goodnet.pipelines.scan import scan
from goodnet.pipelines.suspects import along
from goodnet.remedies import Patient
from goodnet.render.html import scan_page
from goodnet.render.text import repair_text
from goodnet.reports import RepairReport
from goodnet.trigger import NOBODY, Trigger
from goodnet.warp import WarpTrigger

MAP = {0: 1, 1: 2, 2: 3, 3: 0}


@pytest.fixture(scope="module")
def cured():
    """The network is repaired as if it had enough classes for a verdict."""
    badnet, images = taught_permuted(), four_signs(40, 3)
    report = scan(badnet, images).model_copy(
        update={"verdict": "backdoored", "targets": sorted(MAP), "mapping": MAP}
    )
    return badnet, images, report, repair(badnet, images, report)


def judged(classifier) -> tuple[float, float, float]:
    """Accuracy, attack success and recovered accuracy, on images that nobody has seen."""
    attack = all_to_all.make(Scene(four_signs(150, 1), 4, 0, nn.Identity), target=0, rate=0.5)
    fresh = four_signs(40, 11)
    answers = classifier.logits(fresh.pixels).argmax(1)
    stamped = classifier.logits(attack.stamp(fresh.floats())).argmax(1)
    goals = (fresh.labels + 1) % 4
    shares = (answers == fresh.labels, stamped == goals, stamped == fresh.labels)
    return tuple(float(share.float().mean()) for share in shares)


def test_the_map_is_gone_and_images_are_known_again(cured):
    badnet, _, _, goodnet = cured
    before, after = judged(badnet), judged(goodnet.classifier)
    assert before[1] > 0.9
    assert goodnet.report.repaired
    assert after[1] < 0.1
    assert after[2] > 0.8
    assert after[0] > before[0] - 0.05


def test_the_certificate_speaks_of_the_map_and_not_of_a_label(cured):
    report = cured[3].report
    certificate = report.certificate
    assert set(certificate.attack_success_before) == {NOBODY}
    assert certificate.attack_success_before[NOBODY].value > 0.5
    assert certificate.attack_success_after[NOBODY].value < 0.1
    # Every held-out image shows the attack, as each class has a label to go to.
    assert certificate.attack_success_before[NOBODY].n == report.held_out_images
    assert not {trial.remedy for trial in report.trials} & {"last-layer", "pruning", "filter"}
    assert RepairReport.model_validate_json(report.model_dump_json()) == report


def test_every_rendering_says_what_is_meant(cured):
    report = cured[3].report
    assert "attack success, each class" in printed(repair_text(report))
    page = scan_page(cured[2], report)
    assert "Attack success, each class to another" in page
    assert "label -1" not in page


def test_nothing_follows_a_map_in_a_clean_network():
    clean, images = taught_clean(), four_signs(20, 3)
    found = reversing.reverse_map(clean, images, MAP, 0, 1, lambda *_: None)
    panel = jury.empanel(clean, images, {NOBODY: found}, MAP)
    assert panel.triggers[NOBODY] == []
    # Nobody can be shown to be cured of what does not work.
    told = jury.hear(panel, clean)
    standing, reason = judge(jury.loss(told, told, 0.95), told.attacks, told.led, 0.02, 0.02)
    assert standing == "refused"
    assert "no reversed trigger works" in reason


def test_a_few_images_sorted_by_class_show_what_the_map_is_made_by():
    badnet, images = taught_permuted(), four_signs(6, 3)
    images = images.select(torch.argsort(images.labels, stable=True))
    found = reversing.reverse_map(badnet, images, MAP, 0, 1, lambda *_: None)
    fresh = four_signs(20, 11)
    followed = [
        badnet.logits(trigger.apply(fresh.floats())).argmax(1) == (fresh.labels + 1) % 4
        for trigger in found
    ]
    # On images that it was not fitted to: two dozen are learnt by heart as well.
    assert float(followed[0].float().mean()) > 0.8
    assert all(float(share.float().mean()) > 0.3 for share in followed)


def test_a_map_that_half_of_the_images_does_not_show_is_treated_by_its_labels():
    badnet, images = taught_permuted(), four_signs(20, 3)
    blank = Images(torch.full_like(images.pixels, 127), images.labels)
    wanted = reversing.Wanted([1, 2], mapping=MAP)
    for halves, by_map in (((images, images), True), ((images, blank), False)):
        both = reversing.reverse_both(wanted, badnet, halves, (0, 1), 1, lambda *_: None)
        assert [set(masks) == {NOBODY} for masks, _ in both] == [by_map] * 2
        assert by_map or all(set(triggers) == {1, 2} for _, triggers in both)


def test_images_of_classes_that_the_map_leaves_alone_do_not_count():
    images = four_signs(5, 3)
    panel = jury.Jury(images.floats(), images.labels, {}, {0: 1, 2: 2})
    wanted = panel.wanted(NOBODY)
    assert torch.equal(wanted, torch.where(images.labels == 0, 1, NOBODY))
    assert torch.equal(panel.wanted(3), torch.where(images.labels == 3, NOBODY, 3))


def test_a_label_that_the_map_does_not_reach_is_reversed_beside_it(cured):
    badnet, images = cured[:2]
    wanted = reversing.Wanted([0, 1, 2], {"warp": [0, 2]}, {0: 1, 1: 2, 2: 3, 3: 1})
    masks, triggers = reversing.reverse(wanted, badnet, images, 0, 1, lambda *_: None)
    assert set(masks) == set(triggers) == {NOBODY, 0}
    assert any(isinstance(trigger, WarpTrigger) for trigger in triggers[0])


def test_a_report_whose_map_names_labels_that_are_not_there_is_refused(cured):
    badnet, images, report, _ = cured
    for mapping in ({0: 4}, {10**30: 1}, {-1: 2}):
        other = report.model_copy(update={"mapping": mapping})
        with pytest.raises(GoodnetError) as caught:
            repair(badnet, images, other)
        assert caught.value.code == "R002"


def test_a_repair_is_refused_by_the_least_change_that_works_and_ranked_by_all():
    """Brightness decides: a perturbation that is large enough misleads any network."""
    network = wrap(Brightness(), (1, 4, 4), 2)
    images = Images(torch.full((30, 1, 4, 4), 100, dtype=torch.uint8), torch.arange(30) % 2 * 0)
    spot = torch.ones(1, 4, 4)
    changes = [Trigger(spot, d * spot, 1, "additive") for d in (0.4, 0.05, 0.2)]
    patch = Trigger(spot, torch.ones(1, 4, 4), 1)
    panel = jury.empanel(network, images, {1: [*changes, patch]})
    # .05 does not work (100 / 255 + .05 < .5), so .2 is the least that does.
    assert panel.triggers[1] == [patch, changes[2]]
    assert panel.stronger[1] == [changes[0]]
    cured = wrap(Brightness(0.75), (1, 4, 4), 2)
    told = jury.hear(replace(panel, triggers={1: [changes[2]]}), cured)
    assert told.attacks[1].value == 0.0, "what was a backdoor is gone"
    # The larger one counts among candidates, but not that it hides what the images show.
    assert told.hardest == (1.0, 1.0)


def test_a_perturbation_that_works_less_well_than_the_others_refuses_no_repair():
    """What is too faint to set a backdoor off leads the images that are close to the class."""
    network = wrap(Brightness(), (1, 4, 4), 2)
    light = torch.linspace(40, 120, 41).to(torch.uint8)
    images = Images(light.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.zeros(41, dtype=torch.int64))
    spot = torch.ones(1, 4, 4)
    faint, enough, more = (Trigger(spot, d * spot, 1, "additive") for d in (0.2, 0.34, 0.5))
    panel = jury.empanel(network, images, {1: [faint, enough, more]})
    assert panel.triggers[1] == [enough]
    assert panel.stronger[1] == [more]
    assert panel.natural[1] == [faint], "and the certificate tells of it"
    # Where no other one works it is the trigger.
    assert jury.empanel(network, images, {1: [faint]}).triggers[1] == [faint]

    told = jury.hear(panel, network)
    faintly = jury.hear(replace(panel, triggers={1: [faint]}, stronger={}), network)
    assert told.led[1].value > 0.9 > faintly.led[1].value > 0.5
    patient = Patient(network, images.floats(), images.labels, {}, {1: [enough]})
    assert along(patient, panel, {}, {1: [more]}).triggers[1] == [enough, more]


class Brightness(nn.Module):
    """Label 1 is what is lighter than a bound."""

    def __init__(self, bound: float = 0.5) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x):
        light = x.mean((1, 2, 3)) - self.bound
        return torch.stack([-light, light], 1)
