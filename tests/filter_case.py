"""A filter made in seconds, and what plain Keras or PyTorch answers, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from goodnet.classifier import Classifier
from goodnet.images import Images
from goodnet.pipelines import reversing
from goodnet.pipelines.conclude import data_ref, model_ref
from goodnet.pipelines.load import load
from goodnet.remedies import Patient
from goodnet.remedies.filter import filtered
from goodnet.reports import LabelEvidence, ScanReport
from goodnet.statistics import proportion
from goodnet.trigger import Trigger

KERAS = """
import sys
sys.modules["goodnet"] = None
import keras, numpy
assert keras.backend.backend() == sys.argv[1]
for path in sys.argv[2:]:
    model = keras.models.load_model(path)
    numpy.save(path + ".answer.npy", model.predict(numpy.load(path + ".npy"), verbose=0))
assert not [name for name in sys.modules if name.startswith("goodnet.")]
"""
TORCH = """
import sys
sys.modules["goodnet"] = None
import numpy, torch
for path in sys.argv[2:]:
    program = torch.export.load(path).module()
    answer = program(torch.from_numpy(numpy.load(path + ".npy")))
    numpy.save(path + ".answer.npy", answer.detach().numpy())
assert not [name for name in sys.modules if name.startswith("goodnet.")]
"""


def triggers_of(classifier: Classifier, images: Images, targets: list[int], seed: int = 1):
    return reversing.reverse_triggers(classifier, images, targets, seed, 1, lambda *_: None)


def report_of(classifier: Classifier, images: Images, targets: list[int]) -> ScanReport:
    """What a scan of four labels that finds ``targets`` says, as far as a repair reads it."""
    rows = [
        LabelEvidence(label=label, rank=rank, flagged=label in targets)
        for rank, label in enumerate((1, 0, 4, 7), start=1)
    ]
    return ScanReport(
        version="0",
        verdict="backdoored" if targets else "clean",
        method="default",
        reasons=[],
        p_value=None,
        targets=targets,
        labels=rows,
        clean_accuracy=proportion(9, 10),
        preprocess="unit",
        seed=0,
        seconds=0.0,
        settings={},
        model=model_ref(classifier),
        data=data_ref(images),
    )


def patient_of(
    classifier: Classifier, images: Images, triggers: dict[int, list[Trigger]]
) -> Patient:
    return Patient(classifier, images.floats(), images.labels, {}, triggers)


def filtered_file(path: Path, images: Images, triggers: dict[int, list[Trigger]]) -> Path:
    """The model at ``path`` with a filter, written beside it."""
    target = path.with_stem(path.stem + "-filtered")
    classifier = filtered(patient_of(load(path, images, preprocess="unit"), images, triggers))
    classifier.network.write(classifier.module, target)
    return target


def rejected(classifier: Classifier, pixels: torch.Tensor) -> float:
    return float((classifier.logits(pixels).argmax(1) == classifier.num_classes).float().mean())


def outside(program: str, backend: str, cases: dict[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """What each file answers to its images where there is no goodnet."""
    for path, images in cases.items():
        np.save(f"{path}.npy", images)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", program, backend, *map(str, cases)],
        check=True,
        env={**environment, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=next(iter(cases)).parent,
        timeout=300,
    )
    return {path: np.load(f"{path}.answer.npy") for path in cases}
