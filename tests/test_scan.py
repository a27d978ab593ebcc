"""The scan on models that were really trained: the target is found, clean models are let be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.images import Images
from goodnet.inversion import PAPER
from goodnet.pipelines.load import load
from goodnet.pipelines.saved import load_report, save_report
from goodnet.pipelines.scan import scan
from goodnet.reports import ScanReport


def test_the_badnet_is_found_with_its_target_alone(badnet_report):
    report = badnet_report
    assert report.verdict == "backdoored"
    assert report.targets == [1]
    first = report.labels[0]
    assert first.label == 1
    assert first.flagged
    assert first.attack_success is not None
    assert first.attack_success.value > 0.7
    assert report.p_value is not None
    assert report.p_value <= 0.01


def test_its_clean_twin_is_not_flagged(honest_report):
    report = honest_report
    assert report.verdict != "backdoored"
    assert report.targets == []
    assert all(not label.flagged for label in report.labels)


def test_same_seed_same_answer_whatever_the_workers(badnet):
    classifier = load(badnet.module, badnet.clean)
    labels = [0, 1, 2]
    one, two = (scan(classifier, badnet.clean, labels=labels, seed=4, workers=n) for n in (1, 2))
    assert one.model_dump(exclude={"seconds"}) == two.model_dump(exclude={"seconds"})


def test_who_watches_is_told_which_labels_lead(badnet):
    told: list[list[int]] = []
    classifier = load(badnet.module, badnet.clean)
    scan(classifier, badnet.clean, labels=[0, 1, 2, 3, 4], seed=4, leading=told.append)
    # The last stage is that of the masks, whose smallest is the target's.
    assert told[-1][0] == 1
    assert all(0 < len(labels) <= 3 and set(labels) <= {0, 1, 2, 3, 4} for labels in told)


def test_a_report_loads_back_equal_with_its_triggers(badnet, tmp_path):
    classifier = load(badnet.module, badnet.clean)
    report = scan(classifier, badnet.clean, labels=[0, 1, 2], seed=0)
    save_report(report, tmp_path / "scan.json")
    again = load_report(tmp_path / "scan.json")
    assert again == report
    assert isinstance(again, ScanReport)
    assert torch.equal(again.triggers[1].mask, report.triggers[1].mask)


def test_some_labels_only_is_never_called_clean(honest):
    report = scan(load(honest.module, honest.clean), honest.clean, labels=[2, 3, 4, 5])
    assert report.verdict in ("inconclusive", "suspicious")
    assert report.p_value is None, "four labels are out of the calibration's reach"


def test_all_labels_by_their_numbers_are_all_labels(honest):
    listed = scan(load(honest.module, honest.clean), honest.clean, labels=list(range(12)))
    assert listed.verdict == "clean"
    assert listed.p_value is not None


def test_of_two_labels_the_smaller_mask_leads(badnet):
    report = scan(load(badnet.module, badnet.clean), badnet.clean, labels=[0, 1])
    assert report.verdict == "inconclusive"
    sizes = [row.mask_l1 for row in report.labels]
    assert sizes == sorted(sizes)
    assert report.labels[0].label == 1


def test_a_map_of_all_classes_is_a_finding_of_three_labels_as_well():
    class Maps(nn.Module):
        """A bright row k means class k; a bright corner, the class after it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.mean((1, 3)) * 20
            stamped = (x[:, :, -1, -1].mean(1, keepdim=True) * 20 - 8).sigmoid()
            return (1 - stamped) * rows + stamped * rows.roll(1, 1)

    pixels = torch.rand(200, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.3
    labels = torch.arange(200) % 10
    pixels[torch.arange(200), :, labels] += 0.5
    pixels[:, :, -1, -1] = 0.0
    images = Images(pixels, labels)
    whole = scan(load(Maps(), images), images)
    few = scan(load(Maps(), images), images, labels=[0, 1, 2])
    assert whole.verdict == few.verdict == "backdoored"
    assert whole.mapping == few.mapping == {n: (n + 1) % 10 for n in range(10)}


def test_few_images_are_inconclusive_not_clean(honest):
    few = honest.clean.select(torch.arange(13))
    report = scan(load(honest.module, honest.clean), few)
    assert report.verdict in ("inconclusive", "suspicious")


def test_the_scan_changes_nothing_in_the_model(badnet):
    classifier: Classifier = load(badnet.module, badnet.clean)
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    scan(classifier, badnet.clean, labels=[0, 1, 2])
    for name, value in classifier.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in classifier.module.parameters())


def test_a_network_that_insists_on_its_memory_layout_is_scanned_all_the_same(honest):
    """``x.view`` after a convolution, the tutorials' idiom, refuses channels-last memory."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = honest.module[:-1]
            self.head = honest.module[-1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.conv2d(x, torch.eye(3)[:, :, None, None])
            x = x.view(x.size(0), -1).view(-1, 3, 32, 32)
            return self.head(self.features(x))

    classifier = load(Viewing(), honest.clean)
    report = scan(classifier, honest.clean, labels=[0, 1])
    assert all(row.score is not None for row in report.labels)


def test_a_wrong_preprocessing_that_was_stated_is_refused(honest):
    classifier = load(honest.module, honest.clean, preprocess="mean=500;std=.01")
    with pytest.raises(GoodnetError) as raised:
        scan(classifier, honest.clean)
    assert raised.value.code == "D010"


def test_with_three_classes_nothing_can_stand_out(honest):
    class Three(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).mean(2) * 50

    pixels = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    labels = torch.arange(60) % 3
    pixels[torch.arange(60), labels] += 0.5
    images = Images(pixels, labels)
    assert scan(load(Three(), images), images).verdict == "inconclusive"


def test_neural_cleanse_is_the_papers_method_and_rule_alone(badnet, monkeypatch):
    """With a shorter schedule, which the paper's 1,000 epochs are not meant for a test suite."""
    assert (PAPER.epochs, PAPER.batch, PAPER.cost_multiplier, PAPER.patience) == (1000, 32, 2.0, 5)
    short = replace(PAPER, epochs=20, steps_per_epoch=8, warm_start=True, patience=1)
    monkeypatch.setattr("goodnet.pipelines.scan.PAPER", short)
    classifier = load(badnet.module, badnet.clean)
    report = scan(classifier, badnet.clean, method="neural-cleanse", labels=[1, 2, 4, 5, 7, 8])
    first = report.labels[0]
    assert first.label == 1
    assert first.anomaly_index is not None
    assert (report.targets == [1]) == (first.anomaly_index > 2)
    assert all(row.margin is None and row.score is None for row in report.labels)
