"""A repair that costs too much accuracy: a part of the way is taken back, not the whole."""

from __future__ import annotations

import pytest
import torch

from goodnet.pipelines import jury as juries
from goodnet.pipelines.evaluate import evaluate
from goodnet.pipelines.load import load
from goodnet.pipelines.repair import repair
from goodnet.pipelines.reversing import Wanted, reverse
from goodnet.pipelines.walking import STEPS, enough
from goodnet.remedies import REMEDIES, Patient
from goodnet.remedies.line import between
from goodnet.render.words import treatment
from goodnet.reports import RepairReport


@pytest.fixture(scope="module")
def classifier(badnet):
    return load(badnet.module, badnet.clean)


def overdone(patient: Patient):
    """A remedy that works, and then goes on until the network has forgotten much."""
    cured = REMEDIES["last-layer"](patient)
    return between(patient.classifier, cured, OVER)


OVER = 12.0
"""Times the way of the remedy."""


@pytest.fixture(scope="module")
def patient(classifier, badnet):
    masks, triggers = reverse(Wanted([1]), classifier, badnet.clean, 3, 1, lambda *_: None)
    return Patient(classifier, badnet.clean.floats(), badnet.clean.labels, masks, triggers)


def test_no_trigger_works_from_the_share_on_and_some_does_before_it(classifier, badnet, patient):
    own = juries.empanel(classifier, badnet.clean, patient.triggers)
    cured = overdone(patient)
    least, middle = enough(own, classifier, cured, 0.02)
    assert middle == (least + 1) / 2

    def worst(share):
        found = juries.hear(own, between(classifier, cured, share)).attacks
        return max(shown.value for shown in found.values())

    assert worst(least) <= 0.02
    assert least == 1 / STEPS or worst(least - 1 / STEPS) > 0.02


def test_what_does_not_work_is_not_taken_back(classifier, badnet, patient):
    own = juries.empanel(classifier, badnet.clean, patient.triggers)
    assert enough(own, classifier, classifier.copy(), 0.02) == []


def test_a_repair_that_costs_too_much_is_handed_over_in_part(
    classifier, badnet, badnet_report, monkeypatch
):
    monkeypatch.setattr("goodnet.pipelines.repair.REMEDIES", {"overdone": overdone})
    monkeypatch.setattr("goodnet.pipelines.repair.FIRST", ("overdone",))
    found = repair(classifier, badnet.clean, badnet_report)
    before = evaluate(classifier, badnet.test, badnet.poisoned)
    after = evaluate(found.classifier, badnet.test, badnet.poisoned)
    whole, *parts = found.report.trials
    assert whole.share == 1.0
    assert not whole.accepted
    assert before.clean_accuracy.value - whole.clean_accuracy.value > 0.05
    (taken,) = [trial for trial in parts if trial.accepted]
    assert 0 < taken.share < 1
    assert treatment(taken) == f"{taken.share:.0%} of overdone"
    assert after.clean_accuracy.value >= before.clean_accuracy.value - 0.03
    assert before.attack_success.value > 0.9
    assert after.attack_success.value < 0.05
    again = RepairReport.model_validate_json(found.report.model_dump_json())
    assert [trial.share for trial in again.trials] == [trial.share for trial in found.report.trials]


def test_a_remedy_that_is_asked_for_by_name_is_not_taken_back(
    classifier, badnet, badnet_report, monkeypatch
):
    monkeypatch.setattr("goodnet.pipelines.repair.REMEDIES", {"overdone": overdone})
    found = repair(classifier, badnet.clean, badnet_report, remedy="overdone")
    assert [trial.share for trial in found.report.trials] == [1.0]


def test_the_line_begins_and_ends_at_its_networks_and_changes_neither(classifier, patient):
    cured = REMEDIES["last-layer"](patient)
    kept = [{k: v.clone() for k, v in c.module.state_dict().items()} for c in (classifier, cured)]
    for share, wanted in [(0.0, kept[0]), (1.0, kept[1])]:
        there = between(classifier, cured, share).module.state_dict()
        assert all(torch.allclose(there[name], wanted[name], atol=1e-6) for name in wanted)
    now = [classifier.module.state_dict(), cured.module.state_dict()]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(kept, now, strict=True) for k in a)
