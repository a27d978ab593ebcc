"""Which family a network is of, in every format, and what its scores are held against by it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from goodnet import tables
from goodnet.attacks.networks import build
from goodnet.calibration import maxima
from goodnet.classifier import Classifier, Preprocess
from goodnet.family import family
from goodnet.findings import Findings
from goodnet.formats import adopt, read_model
from goodnet.scores import Scores
from goodnet.verdict import decide

torch.set_num_threads(1)
SHAPE = (3, 16, 16)
IMAGE = torch.rand(2, *SHAPE)
KINDS = {"cnn": "other", "resnet": "other", "separable": "other", "vit": "transformer"}


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


class Attending(nn.Module):
    """Convolutions, then attention as Keras and older code have it: products and a softmax."""

    def __init__(self, convolutions: int, attentions: int) -> None:
        super().__init__()
        sides = [3] + [8] * convolutions
        self.stem = nn.Sequential(
            *(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sides))
        )
        self.maps = nn.ModuleList(nn.Linear(8, 24) for _ in range(attentions))
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for part in self.maps:
            query, key, value = part(self.norm(x)).chunk(3, -1)
            x = x + (query @ key.transpose(1, 2)).softmax(-1) @ value
        return self.last(x.mean(1)).softmax(-1)


@pytest.mark.parametrize(
    ("convolutions", "attentions", "kind"),
    [(1, 2, "transformer"), (2, 2, "transformer"), (3, 2, "other"), (1, 0, "other")],
)
def test_some_attention_in_a_convolutional_network_makes_no_transformer(
    convolutions, attentions, kind
):
    """Nor does a norm or the softmax of its answers: there are no references of such networks."""
    model = adopt(Attending(convolutions, attentions).eval())
    assert family(Classifier(model, Preprocess("unit"), SHAPE, 10), IMAGE) == kind


def scored(values) -> Findings:
    values = np.asarray(values, dtype=np.float64)
    nothing, nought = np.full(len(values), np.nan), np.zeros(len(values))
    rows = [values, nothing, values, values, *[nothing] * 3, *[nought] * 3, values]
    scores = Scores(list(range(len(values))), *(row.copy() for row in rows))
    return Findings(scores, len(values), 100, 0.1, {}, dict.fromkeys(range(len(values)), -0.5))


def test_a_score_counts_for_as_much_as_it_is_rare_in_its_family():
    found = scored([0.1, 0.4, 0.2, 0.0, 0.8, 0.6, 0.3, 0.5, 0.2, 4.0])
    transformer, other = (decide(replace(found, family=kind)) for kind in ("transformer", "other"))
    assert transformer.targets == [9]
    assert other.verdict != "backdoored", "clean ones come to this"
    assert transformer.p_value < 0.2 * other.p_value
    assert "transformers" in transformer.calibration
    assert "without attention" in other.calibration


def test_of_dozens_of_classes_families_are_not_told_apart():
    values = np.linspace(0.0, 1.5, 43)
    values[7] = 5.0
    found = scored(values)
    told = decide(replace(found, family="transformer"))
    assert told.p_value == decide(found).p_value
    assert told.calibration == decide(found).calibration
    assert "transformers" not in told.calibration


@pytest.mark.parametrize("kind", ["transformer", "other"])
def test_clean_models_are_called_as_rarely_as_stated_in_each_family(kind):
    """Each held against the others of its family, itself left out."""
    few = [m for m in tables.shipped().models if m.num_classes <= 20 and m.highest is not None]
    mine = [m for m in few if m.family == kind]
    p = []
    for model in mine:
        others = [m for m in mine if m is not model]
        known = maxima([m.highest for m in others], [m.num_classes for m in others])
        p.append(known.survival(model.highest, model.num_classes))
    assert np.mean(np.array(p) <= 0.01) <= 0.03
    assert 0.02 <= np.mean(np.array(p) <= 0.1) <= 0.18
    assert 0.35 <= np.mean(np.array(p) <= 0.5) <= 0.65


def test_of_both_families_together_transformers_would_hardly_ever_be_suspicious():
    """What the families are for."""
    few = [m for m in tables.shipped().models if m.num_classes <= 20 and m.highest is not None]
    known = maxima([m.highest for m in few], [m.num_classes for m in few])
    p = [known.survival(m.highest, m.num_classes) for m in few if m.family == "transformer"]
    assert np.mean(np.array(p) <= 0.5) < 0.35
