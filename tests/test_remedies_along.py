"""Labels that the scan suspected and did not name are treated along, where that costs nothing."""

from __future__ import annotations

import pytest
import torch

from goodnet.pipelines.load import load
from goodnet.pipelines.repair import repair
from goodnet.render.words import treatment
from goodnet.reports import RepairReport

SUSPECT = 7


@pytest.fixture(scope="module")
def report(badnet_report):
    """The scan of the BadNet, with one label under suspicion beside the target."""
    labels = [
        entry
        if entry.flagged
        else entry.model_copy(update={"p_value": 0.004 if entry.label == SUSPECT else 0.8})
        for entry in badnet_report.labels
    ]
    return badnet_report.model_copy(update={"labels": labels})


def rows_changed(before, after) -> set[int]:
    pairs = [(before[name], after[name]) for name in before if before[name].shape[0] == 12]
    return {row for old, new in pairs for row in range(12) if not torch.equal(old[row], new[row])}


def test_a_suspect_is_treated_along_or_left_and_the_report_says_which(badnet, report):
    classifier = load(badnet.module, badnet.clean)
    cured = repair(classifier, badnet.clean, report, remedy="last-layer")
    assert cured.report.repaired
    assert cured.report.targets == [1]
    alone, along = cured.report.trials
    assert (alone.also, along.also) == ([], [SUSPECT])
    assert treatment(along) == f"last-layer, also {SUSPECT}"
    # It has a share of the error of its own, so that it does not certify one by luck; there is one
    # more, for what a fresh scan of the result may name.
    shares = [1 - trial.accuracy_loss.confidence for trial in cured.report.trials]
    assert shares == pytest.approx([0.04, 0.005])
    changed = rows_changed(classifier.module.state_dict(), cured.classifier.module.state_dict())
    assert changed == {1, *cured.report.also}
    assert along.accepted == (cured.report.also == [SUSPECT])
    if along.accepted:
        assert along.clean_accuracy.value >= alone.clean_accuracy.value
    assert RepairReport.model_validate_json(cured.report.model_dump_json()) == cured.report


def test_a_remedy_without_triggers_has_nothing_to_treat_along(badnet, report):
    classifier = load(badnet.module, badnet.clean)
    limits = {"max_accuracy_loss": 0.5, "max_attack_success": 1.0}
    cured = repair(classifier, badnet.clean, report, remedy="fine-tuning", **limits)
    assert [trial.also for trial in cured.report.trials] == [[]]
    assert cured.report.trials[0].accuracy_loss.confidence == pytest.approx(0.95)
