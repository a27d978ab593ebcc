"""The repair on models that were really trained: the attack is gone, the rest stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from goodnet.errors import GoodnetError
from goodnet.pipelines.evaluate import evaluate
from goodnet.pipelines.load import load
from goodnet.pipelines.repair import repair
from goodnet.remedies.unlearning import PAPER


@pytest.fixture(scope="module")
def found(badnet, badnet_report):
    return load(badnet.module, badnet.clean), badnet_report


@pytest.mark.parametrize("remedy", ["auto", "last-layer"])
def test_the_attack_is_gone_and_the_accuracy_stays(badnet, found, remedy):
    classifier, report = found
    before = evaluate(classifier, badnet.test, badnet.poisoned)
    cured = repair(classifier, badnet.clean, report, remedy=remedy, max_accuracy_loss=0.05)
    after = evaluate(cured.classifier, badnet.test, badnet.poisoned)
    assert before.attack_success.value > 0.9
    assert cured.report.certificate.holds, cured.report.trials
    assert after.attack_success.value < 0.05
    assert after.clean_accuracy.value >= before.clean_accuracy.value - 0.03


def test_thorough_unlearning_disarms_the_sticker(badnet, found):
    """With 86 images to learn from; what it may cost is said by the limits."""
    classifier, report = found
    limits = {"max_accuracy_loss": 0.2, "max_attack_success": 0.4}
    cured = repair(classifier, badnet.clean, report, remedy="unlearning-thorough", **limits)
    after = evaluate(cured.classifier, badnet.test, badnet.poisoned)
    assert cured.report.repaired, cured.report.trials
    assert after.attack_success.value < 0.1
    assert after.clean_accuracy.value > 0.8


def test_last_layer_changes_only_the_targets_row_of_a_copy(badnet, found):
    classifier, report = found
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    cured = repair(classifier, badnet.clean, report, remedy="last-layer")
    assert all(torch.equal(v, before[n]) for n, v in classifier.module.state_dict().items())
    after = cured.classifier.module.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(before[name].shape[0] == 12 for name in changed)
    for name in changed:
        rows = [n for n in range(12) if not torch.equal(before[name][n], after[name][n])]
        assert rows == [1]


def test_the_papers_unlearning_uses_a_tenth_of_the_images_once(badnet, found):
    classifier, report = found
    settings = PAPER
    assert (settings.epochs, settings.data_share, settings.stamped_share) == (1, 0.1, 0.2)
    cured = repair(classifier, badnet.clean, report, remedy="unlearning")
    assert [trial.remedy for trial in cured.report.trials] == ["unlearning"]


def test_a_sabotaged_remedy_is_refused(badnet, found, monkeypatch):
    """A "repair" that ruins the model, and one that does nothing, get no certificate."""
    classifier, report = found

    def ruin(patient):
        copy = patient.classifier.copy()
        with torch.no_grad():
            for parameter in copy.module.parameters():
                parameter.zero_()
        return copy

    table = {"ruin": ruin, "nothing": lambda patient: patient.classifier.copy()}
    monkeypatch.setattr("goodnet.pipelines.repair.REMEDIES", table)
    result = repair(classifier, badnet.clean, report)
    assert not result.report.repaired
    assert result.classifier is classifier
    assert "accuracy" in result.report.trials[0].reason
    assert "stamped" in result.report.trials[1].reason


def test_a_clean_model_is_left_alone(honest, honest_report):
    with pytest.raises(GoodnetError) as raised:
        repair(load(honest.module, honest.clean), honest.clean, honest_report)
    assert raised.value.code == "R004"


def test_a_report_of_another_model_is_refused(found, honest):
    _, report = found
    with pytest.raises(GoodnetError) as raised:
        repair(load(honest.module, honest.clean), honest.clean, report)
    assert raised.value.code == "R002"


def test_images_that_repair_never_judge(badnet):
    from goodnet.pipelines.repair import _split

    numbered = replace(badnet.clean, true_labels=torch.arange(len(badnet.clean)))
    mine, theirs = _split(numbered, seed=3)
    assert not set(mine.true_labels.tolist()) & set(theirs.true_labels.tolist())
    assert len(mine) + len(theirs) == len(badnet.clean)
    assert set(mine.labels.tolist()) == set(theirs.labels.tolist()) == set(range(12))
