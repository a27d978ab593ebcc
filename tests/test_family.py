"""Which family a network is of, in every format, and what its scores are held against by it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from goodnet import tables
from goodnet.attacks.networks import build
from goodnet.calibration import maxima
from goodnet.classifier import Classifier, Preprocess
from goodnet.family import family
from goodnet.findings import Findings
from goodnet.formats import adopt, read_model
from goodnet.scores import Scores
from goodnet.verdict import decide

os.environ.setdefault("KERAS_BACKEND", "torch")

torch.set_num_threads(1)
SHAPE = (3, 16, 16)
IMAGE = torch.rand(1, *SHAPE)
KINDS = {"cnn": "plain", "resnet": "plain", "separable": "depthwise", "vit": "layer norm"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
@pytest.mark.parametrize("form", ["live", "pt2", "torchscript"])
def test_a_network_is_told_by_its_operations(name, kind, form, tmp_path):
    network = build(name, SHAPE, 10).eval()
    if form == "live":
        module = adopt(network)
    elif form == "pt2":
        torch.export.save(torch.export.export(network, (IMAGE,)), tmp_path / "m.pt2")
        module = read_model(tmp_path / "m.pt2")
    else:
        torch.jit.trace(network, IMAGE).save(tmp_path / "m.pt")
        module = read_model(tmp_path / "m.pt")
    assert family(Classifier(module, Preprocess("unit"), SHAPE, 10), IMAGE) == kind


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("DepthwiseConv2D", "depthwise"),
        ("SeparableConv2D", "depthwise"),
        ("LayerNormalization", "layer norm"),
        ("BatchNormalization", "plain"),
        ("Conv2D", "plain"),
    ],
)
def test_layers_of_keras_are_told_as_well(layer, kind, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    options = {"kernel_size": 3} if "Conv" in layer else {}
    options |= {"filters": 6} if layer in ("SeparableConv2D", "Conv2D") else {}
    made = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            getattr(keras.layers, layer)(**options),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    made.save(tmp_path / "m.keras")
    model = Classifier(read_model(tmp_path / "m.keras"), Preprocess("unit"), SHAPE, 10)
    assert family(model, IMAGE) == kind


def scored(values) -> Findings:
    values = np.asarray(values, dtype=np.float64)
    nothing, nought = np.full(len(values), np.nan), np.zeros(len(values))
    rows = [values, nothing, values, values, *[nothing] * 3, *[nought] * 3, values]
    scores = Scores(list(range(len(values))), *(row.copy() for row in rows))
    return Findings(scores, len(values), 100, 0.1, {}, dict.fromkeys(range(len(values)), -0.5))


def test_a_score_counts_for_as_much_as_it_is_rare_in_its_family():
    found = scored([0.1, 0.4, 0.2, 0.0, 0.8, 0.6, 0.3, 0.5, 0.2, 4.6])
    answers = {
        kind: decide(replace(found, family=kind)) for kind in ("layer norm", "plain", "depthwise")
    }
    p = [answer.p_value for answer in answers.values()]
    assert p == sorted(p)
    assert p[0] < 0.2 * p[2]
    assert answers["layer norm"].targets == [9]
    assert answers["depthwise"].verdict != "backdoored", "clean ones come to this"
    assert "layer norm" in answers["layer norm"].calibration


def test_of_dozens_of_classes_families_are_not_told_apart():
    values = np.linspace(0.0, 1.5, 43)
    values[7] = 5.0
    found = scored(values)
    assert decide(replace(found, family="depthwise")).p_value == decide(found).p_value


def test_clean_models_that_the_reference_has_not_seen_are_called_as_rarely_as_stated():
    """Each held against the others of its family, itself left out."""
    few = [m for m in tables.shipped().models if m.num_classes <= 20 and m.highest is not None]
    p = []
    for model in few:
        others = [m for m in few if m.family == model.family and m is not model]
        known = maxima([m.highest for m in others], [m.num_classes for m in others])
        p.append(known.survival(model.highest, model.num_classes))
    assert np.mean(np.array(p) <= 0.01) <= 0.03
    assert 0.03 <= np.mean(np.array(p) <= 0.1) <= 0.18
    assert 0.35 <= np.mean(np.array(p) <= 0.5) <= 0.65
