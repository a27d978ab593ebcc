"""Attack success and recovered accuracy, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats.network import Network
from goodnet.images import Images
from goodnet.pipelines.evaluate import evaluate, predict


class ByBrightness(nn.Module):
    """Answers with the first pixel's value times 100: the class is painted in the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wanted = (x[:, 0, 0, 0] * 100).round().long()
        return nn.functional.one_hot(wanted, 5).float()


def painted(classes: list[int], labels: list[int], true: list[int] | None = None) -> Images:
    pixels = torch.tensor(classes).float()[:, None, None, None] / 100
    return Images(
        pixels.expand(-1, 3, 4, 4).contiguous(),
        torch.tensor(labels),
        None if true is None else torch.tensor(true),
    )


@pytest.fixture
def classifier() -> Classifier:
    network = Network(ByBrightness(), (3, 4, 4), 5, "test", "", lambda *_: None)
    return Classifier(network, Preprocess("unit"), (3, 4, 4), 5)


def test_figures_and_exact_intervals(classifier):
    clean = painted([0, 1, 2, 3], [0, 1, 2, 4])
    # Answers 2 2 2 1 3; the attacker wants 2; one image is of class 2, one is of unknown class.
    poisoned = painted([2, 2, 2, 1, 3], [2] * 5, [0, 2, -1, 1, 0])
    result = evaluate(classifier, clean, poisoned)
    assert result.clean_accuracy.value == 0.75
    assert (result.attack_success.value, result.attack_success.n) == (0.5, 4)
    assert result.recovered_accuracy.n == 3
    assert result.recovered_accuracy.value == pytest.approx(1 / 3)
    exact = binomtest(3, 4).proportion_ci(method="exact")
    assert result.clean_accuracy.low == pytest.approx(exact.low)
    assert result.clean_accuracy.high == pytest.approx(exact.high)


def test_poisoned_classes_are_found_by_their_names(classifier):
    clean = replace(painted([0, 1, 2], [0, 1, 2]), class_names=("danger", "stop", "yield"))
    # One folder of pictures that all become a "yield", numbered by itself.
    poisoned = replace(painted([2, 2, 1], [0, 0, 0]), class_names=("yield",))
    result = evaluate(classifier, clean, poisoned)
    assert result.attack_success.value == pytest.approx(2 / 3)
    true = replace(painted([0, 2, 2], [0, 0, 1]), class_names=("danger", "yield"))
    result = evaluate(classifier, clean, true, target=1)
    assert result.recovered_accuracy.value == pytest.approx(2 / 3)
    with pytest.raises(GoodnetError, match="bicycle") as caught:
        evaluate(classifier, clean, replace(poisoned, class_names=("bicycle",)))
    assert caught.value.code == "D007"
    with pytest.raises(GoodnetError, match="yield"):
        evaluate(classifier, replace(clean, class_names=None), poisoned)


class Overflows(ByBrightness):
    """Of images of class 0 it makes no number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return torch.where(logits[:, :1] == 1, torch.nan, logits)


def test_no_number_is_no_answer(classifier):
    broken = replace(classifier, network=replace(classifier.network, module=Overflows()))
    clean = painted([0, 1, 2, 3], [0, 1, 2, 3])
    poisoned = painted([0, 0, 1], [0, 0, 0])
    result = evaluate(broken, clean, poisoned)
    assert result.clean_accuracy.value == 0.75
    assert result.attack_success.value == 0
    with pytest.raises(GoodnetError) as caught:
        predict(broken, clean)
    assert caught.value.code == "M012"


def test_a_target_for_labels_that_are_true(classifier):
    clean = painted([0, 1], [0, 1])
    poisoned = painted([2, 2, 1, 2], [0, 1, 1, 2])
    result = evaluate(classifier, clean, poisoned, target=2)
    assert (result.attack_success.value, result.attack_success.n) == (pytest.approx(2 / 3), 3)
    assert result.recovered_accuracy.value == pytest.approx(1 / 3)


def test_a_target_outside_the_classes(classifier):
    with pytest.raises(GoodnetError) as raised:
        evaluate(classifier, painted([0, 1], [0, 1]), painted([0], [0]), target=9)
    assert raised.value.code == "R003"


def test_prediction_needs_no_labels(classifier):
    labels, confidences = predict(classifier, painted([3, 1], [-1, -1]))
    assert labels.tolist() == [3, 1]
    assert ((confidences > 0.2) & (confidences <= 1)).all()
