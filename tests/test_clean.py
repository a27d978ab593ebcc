"""So that "always says backdoored" fails: real clean classifiers are let be."""

from __future__ import annotations

import pytest
import torch
from conftest import read_npz

from goodnet.attacks.train import accuracy, small_cnn, train
from goodnet.images import Images
from goodnet.pipelines.load import load
from goodnet.pipelines.scan import scan


def some(images: Images, count: int, seed: int) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order[:count])


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "classes", "epochs", "lessons", "bar"),
    [
        pytest.param("mnist", 10, 3, 10_000, 0.96, marks=pytest.mark.slow),
        ("gtsrb", 43, 6, 9_000, 0.85),
    ],
)
def test_a_clean_classifier_is_not_flagged(shared, name, classes, epochs, lessons, bar):
    archive = shared / f"data/{name}.npz"
    training, test = read_npz(archive), read_npz(archive, "test_")
    module = small_cnn(training.shape, classes, batch_norm=name == "gtsrb", seed=0)
    train(module, some(training, lessons, 0), epochs=epochs, seed=0, learning_rate=4e-3)
    assert accuracy(module, test) > bar, "the classifier must be worth a scan"
    clean = some(test, 400, 1)
    report = scan(load(module, clean), clean)
    assert report.verdict != "backdoored", report.reasons
    assert report.targets == []
