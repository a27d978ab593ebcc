"""The filter on BadNets: stamped images are rejected, clean ones not, and the report says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cli_case import CLASSES, SIDE, Rows, bright_rows, save_data, save_model
from filter_case import filtered_file, patient_of, rejected, report_of, triggers_of
from torch import nn
from typer.testing import CliRunner

from goodnet.attacks.signs import draw_signs
from goodnet.cli import app
from goodnet.errors import GoodnetError
from goodnet.head import find_head
from goodnet.images import Images
from goodnet.pipelines import jury
from goodnet.pipelines.attack import write_model
from goodnet.pipelines.evaluate import evaluate
from goodnet.pipelines.load import load, save
from goodnet.pipelines.repair import _names, repair
from goodnet.pipelines.scan import scan
from goodnet.remedies import REMEDIES
from goodnet.remedies.filter import _threshold, filtered
from goodnet.render.words import filter_sentence
from goodnet.reports import RepairReport
from goodnet.trigger import Trigger

pytest.importorskip("keras")


class Inner(nn.Module):
    """What ``write_model`` takes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.fixture(scope="module")
def model(badnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("filter") / "badnet.keras"
    write_model(Inner(badnet.module), badnet.clean.shape, path)
    return path


@pytest.fixture(scope="module")
def clean():
    """Enough to show limits of 7 %."""
    return draw_signs(40, seed=21)


@pytest.fixture(scope="module")
def cured(clean, model):
    """The BadNet from its file, repaired by the filter."""
    classifier = load(model, clean)
    limits = {"max_accuracy_loss": 0.07, "max_attack_success": 0.07, "max_false_alarms": 0.012}
    report = report_of(classifier, clean, [1])
    return repair(classifier, clean, report, remedy="filter", **limits)


def test_stamped_images_are_rejected_and_clean_ones_are_not(badnet, model, cured, tmp_path):
    save(cured.classifier, tmp_path / "goodnet.keras")
    again = load(tmp_path / "goodnet.keras", badnet.clean)
    assert (again.num_classes, again.outputs, again.filtered) == (12, 13, True)
    before = evaluate(load(model, badnet.clean), badnet.test, badnet.poisoned)
    after = evaluate(again, badnet.test, badnet.poisoned)
    assert before.clean_rejected is None
    assert before.poisoned_rejected is None
    # The attacker's own sticker, not a reversed one.
    assert before.attack_success.value > 0.9
    assert after.attack_success.value < 0.02
    assert after.poisoned_rejected.value >= 0.95
    assert after.clean_rejected.value <= 0.03
    assert after.clean_accuracy.value >= before.clean_accuracy.value - 0.03


def test_the_certificate_holds_and_tells_what_the_filter_does(cured):
    report, found = cured.report, cured.report.filter
    assert report.repaired, report.trials
    assert found.label == 12
    assert found.aim == 0.012
    assert found.repair_alarms.n == report.repair_images
    assert found.repair_alarms.value <= 0.02
    assert found.alarms.n == report.held_out_images
    assert found.alarms.low <= found.alarms.value <= found.alarms.high
    assert found.rejected[1].value > 0.5
    assert found.own_images == {1: 20}
    assert "without a clean image" not in filter_sentence(found)
    unseen = found.model_copy(update={"own_images": {1: 0}})
    assert "without a clean image of label 1" in filter_sentence(unseen)
    assert report.certificate.holds, report.certificate
    assert report.certificate.accuracy_loss.high <= 0.07
    assert report.certificate.fresh.verdict != "backdoored"
    assert RepairReport.model_validate_json(report.model_dump_json()).filter == found


def test_the_first_outputs_are_those_of_the_repaired_last_layer(badnet, cured):
    images = badnet.test.floats()[:40]
    bare = cured.classifier.classes_only()
    logits = cured.classifier.logits(images)
    assert logits.shape == (40, 13)
    assert torch.equal(bare.logits(images), logits[:, :12])
    assert (bare.num_classes, bare.filtered) == (12, False)
    assert bare.classes_only() is bare


def test_a_clean_model_is_left_alone(model, clean):
    classifier = load(model, clean)
    with pytest.raises(GoodnetError) as raised:
        repair(classifier, clean, report_of(classifier, clean, []), remedy="filter")
    assert raised.value.code == "R004"


def test_few_images_make_it_careful(badnet, model, tmp_path):
    """Of 72 images six show the target: the threshold rests on those that it was not fitted to."""
    mine, theirs = jury.split(badnet.clean, 0)
    made = {}
    for suffix in (".keras", ".h5", ".pt2"):
        path = tmp_path / f"badnet{suffix}"
        write_model(Inner(badnet.module), badnet.clean.shape, path)
        classifier = load(path, mine)
        if not made:
            _, triggers = triggers_of(classifier, mine, [1])
        made[suffix] = load(filtered_file(path, mine, triggers), mine)
    for again in made.values():
        assert (again.num_classes, again.filtered) == (12, True)
        assert rejected(again, badnet.test.floats()) <= 0.03
        assert rejected(again, theirs.floats()) <= 0.03
        stamped = badnet.poisoned.floats()[badnet.poisoned.true_labels != 1]
        assert rejected(again, stamped) >= 0.85
    answers = [again.logits(badnet.test.pixels).argmax(1) for again in made.values()]
    assert all(float((answer == answers[0]).float().mean()) > 0.99 for answer in answers)


def test_who_bears_more_false_alarms_gets_a_lower_threshold(badnet, model):
    mine, _ = jury.split(badnet.clean, 0)
    classifier = load(model, mine)
    _, triggers = triggers_of(classifier, mine, [1])
    patient = patient_of(classifier, mine, triggers)
    thresholds = []
    for share in (0.01, 0.5):
        network = filtered(replace(patient, false_alarms=share))
        thresholds.append(-float(find_head(network, mine.floats()[:4]).bias[-1]))
    assert thresholds[1] < thresholds[0]


def test_the_default_does_not_try_it():
    first, later = _names("auto", 0.02, 0.02)
    assert "filter" in REMEDIES
    assert "filter" not in [*first, *later]


# Of a model that needs no training: a bright pixel in a corner means class 3, another one class 5.


@pytest.fixture
def rows(tmp_path):
    pixels, labels = bright_rows(200)
    pixels[:, :, -1, 0] = 0
    images = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    network = Rows(backdoor=True)
    with torch.no_grad():
        network.last.weight.view(CLASSES, SIDE, SIDE)[5, -1, 0] = 100.0
    path = tmp_path / "rows.pt2"
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(
        network, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path)
    return path, images


def corner(target: int, column: int) -> Trigger:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[0, -1, column] = 1.0
    return Trigger(mask, torch.ones(3, SIDE, SIDE), target)


def test_one_more_output_serves_two_targets(rows):
    path, images = rows
    mine, theirs = jury.split(images, 0)
    stamps = {3: corner(3, -1), 5: corner(5, 0)}
    classifier = load(path, mine, preprocess="unit")
    for target, stamp in stamps.items():
        assert (classifier.logits(stamp.apply(theirs.floats())).argmax(1) == target).all()
    triggers = {target: [stamp] for target, stamp in stamps.items()}
    cured = filtered(patient_of(classifier, mine, triggers))
    assert rejected(cured, theirs.floats()) == 0
    for target, stamp in stamps.items():
        # The target's own images are answered rightly, stamp or no stamp.
        assert rejected(cured, stamp.apply(theirs.floats()[theirs.labels != target])) == 1


def test_a_scan_does_not_take_the_files_word_for_it(rows):
    path, images = rows
    cured = load(filtered_file(path, images, {3: [corner(3, -1)], 5: [corner(5, 0)]}), images)
    report = scan(cured, images, labels=[0, 7], workers=1)
    assert max(entry.label for entry in report.labels) < CLASSES
    assert report.verdict == "inconclusive"
    assert "said to be a filter's" in report.reasons[-1]
    with pytest.raises(GoodnetError) as raised:
        scan(cured, images, labels=[CLASSES])
    assert raised.value.code == "R003"


def test_labels_that_name_the_filter_are_refused(rows):
    path, images = rows
    target = filtered_file(path, images, {3: [corner(3, -1)]})
    wrong = replace(images, labels=images.labels + 1)
    with pytest.raises(GoodnetError) as raised:
        load(target, wrong, preprocess="unit")
    assert raised.value.code == "D007"


def test_evaluate_and_predict_know_of_it(rows, tmp_path, monkeypatch):
    from PIL import Image

    path, images = rows
    target = filtered_file(path, images, {3: [corner(3, -1)]})
    stamped = (corner(3, -1).apply(images.floats()) * 255).round().byte().numpy()
    clean = save_data(tmp_path / "clean.npz", images.pixels.numpy(), images.labels.numpy())
    poisoned = save_data(tmp_path / "poisoned.npz", stamped, images.labels.numpy() * 0 + 3)
    for name, pixels in (("a.png", images.pixels[4].numpy()), ("b.png", stamped[4])):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / name)
    common = [str(target), "--data", str(clean)]
    asked = ["evaluate", *common, "--poisoned", str(poisoned)]
    told = CliRunner().invoke(app, [*asked, "--format", "json"])
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert figures["model"]["num_classes"] == CLASSES
    assert figures["clean_rejected"]["value"] == 0
    assert figures["clean_accuracy"]["value"] == 1
    assert figures["poisoned_rejected"]["value"] == 1
    assert figures["attack_success"]["value"] == 0
    assert "Poisoned, rejected" in CliRunner().invoke(app, asked).stdout
    # Short names, so that every picture has one line.
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["predict", str(target), "a.png", "b.png", *common[1:]])
    assert told.exit_code == 0, told.output
    first, second = told.stdout.splitlines()
    assert " 4" in first
    assert "backdoored input" not in first
    assert f" {CLASSES}" in second
    assert "backdoored input" in second


def test_who_cannot_have_one_is_told_before_any_work(badnet, rows, tmp_path):
    path, images = rows
    target = filtered_file(path, images, {3: [corner(3, -1)]})
    script = save_model(tmp_path / "rows.pt", Rows())
    cases = [
        (load(badnet.module, badnet.clean), badnet.clean, "filter", "torch-live"),
        (load(script, images, preprocess="unit"), images, "filter", "torchscript"),
        (load(target, images, preprocess="unit"), images, "auto", "already"),
    ]
    for classifier, given, remedy, words in cases:
        with pytest.raises(GoodnetError) as raised:
            repair(classifier, given, remedy=remedy)
        assert raised.value.code == "M015"
        assert words in raised.value.message


@pytest.mark.parametrize(("share", "place"), [(0.0, 0), (0.01, 0), (0.02, 1), (0.05, 4), (1.0, 98)])
def test_the_threshold_lets_so_many_clean_images_by(share, place):
    margins = torch.arange(99.0)
    assert _threshold(margins, 0.0, share) == 98 - place
    assert _threshold(margins - 200, 8.0, share) == 4.0
