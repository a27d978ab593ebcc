"""Which family a network is of, in every format."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from goodnet.attacks.networks import build
from goodnet.classifier import Classifier, Preprocess
from goodnet.family import family
from goodnet.formats import adopt, read_model

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
