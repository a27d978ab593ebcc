"""Files with a filter run in plain Keras and PyTorch, where there is no goodnet."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("keras")
import keras
import keras_models as small
from filter_case import KERAS, TORCH, filtered_file, outside, patient_of
from keras import layers as L  # noqa: N812 - its usual name

from goodnet.attacks.train import small_cnn
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.formats import read_model
from goodnet.formats.network import FILTER
from goodnet.images import Images
from goodnet.pipelines.load import load
from goodnet.remedies.filter import filtered
from goodnet.trigger import Trigger

# Untrained networks: what they answer to noise counts as right, and a stripe as a trigger.
COUNT = 24


def noise(shape: tuple[int, int, int], seed: int = 1) -> torch.Tensor:
    return torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(seed))


def labelled(classifier: Classifier, pixels: torch.Tensor) -> Images:
    return Images((pixels * 255).round().byte(), classifier.logits(pixels).argmax(1))


def stripe(shape: tuple[int, int, int]) -> dict[int, list[Trigger]]:
    mask = torch.zeros(1, *shape[1:])
    mask[0, :2] = 1.0
    return {1: [Trigger(mask, torch.ones(shape), 1)]}


def given_filter(path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """The file with a filter, images, and the logits that it should answer with."""
    classifier = load(path)
    shape = classifier.input_shape
    images = labelled(classifier, noise(shape))
    target = filtered_file(path, images, stripe(shape))
    again = load(target)
    pixels = noise(shape, 2)
    assert again.filtered
    assert again.outputs == classifier.outputs + 1 == classifier.num_classes + 1
    return target, pixels, again.logits(pixels)


def keras_file(folder: Path, name: str, suffix: str, *, compiled: bool = False) -> Path:
    model = small.make(name)
    if compiled:
        # With an optimiser whose state has the shape of the old layer.
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(small.images(model), np.zeros(6), verbose=0)
    path = folder / f"{name}{suffix}"
    model.save(path)
    return path


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_keras_runs_the_files(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    made = [
        keras_file(tmp_path, "convolutions", ".keras", compiled=True),
        keras_file(tmp_path, "transfer", ".h5", compiled=True),
        keras_file(tmp_path, "shared", ".keras"),
        keras_file(tmp_path, "pools", ".h5"),
        keras_file(tmp_path, "gray", ".keras"),
    ]
    cases, wanted = {}, {}
    for path in made:
        target, pixels, logits = given_filter(path)
        cases[target] = pixels.permute(0, 2, 3, 1).numpy()
        if path.stem == "gray":
            cases[target], wanted[target] = pixels[:, 0].numpy(), logits
        else:
            wanted[target] = logits.softmax(1)
    for path, answer in outside(KERAS, backend, cases).items():
        assert answer.shape == (COUNT, small.CLASSES + 1)
        assert np.abs(answer - wanted[path].numpy()).max() < 1e-4, path.name
        if "gray" not in path.name:
            assert np.allclose(answer.sum(1), 1, atol=1e-5), path.name


class Averaged(nn.Module):
    """Ends in a 1x1 convolution and a softmax over its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.last(self.first(x).relu()).mean((2, 3)).softmax(1)


def exported(path: Path, network: nn.Module, *, fixed: bool = False) -> Path:
    batch = None if fixed else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    example = (torch.rand(COUNT, 3, 12, 10),)
    torch.export.save(torch.export.export(network.eval(), example, dynamic_shapes=batch), path)
    return path


def test_pytorch_runs_the_files(tmp_path):
    torch.manual_seed(0)
    made = [
        exported(tmp_path / "a.pt2", small_cnn((3, 12, 10), 5)),
        exported(tmp_path / "b.pt2", small_cnn((3, 12, 10), 5, batch_norm=True), fixed=True),
        exported(tmp_path / "c.pt2", Averaged()),
    ]
    cases, wanted = {}, {}
    for path in made:
        target, pixels, logits = given_filter(path)
        cases[target] = pixels.numpy()
        wanted[target] = logits.softmax(1) if path.stem == "c" else logits
    for path, answer in outside(TORCH, "torch", cases).items():
        assert answer.shape == (COUNT, 6)
        assert np.abs(answer - wanted[path].numpy()).max() < 1e-4, path.name


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_keras_file_is_else_the_original(suffix, tmp_path):
    path = keras_file(tmp_path, "shared", suffix)
    before = path.read_bytes()
    target, _, _ = given_filter(path)
    assert path.read_bytes() == before
    old, new = (datasets(p) for p in (path, target))
    assert set(old) == set(new)
    different = [name for name in old if not np.array_equal(old[name], new[name])]
    assert len(different) == 2
    for name in different:
        assert new[name].shape == (*old[name].shape[:-1], 6)
        # The rows of all classes but the target.
        assert np.array_equal(np.delete(new[name], [1, 5], -1), np.delete(old[name], 1, -1))
    model = keras.models.load_model(target, compile=False)
    assert model.name.endswith(FILTER)
    model.save(tmp_path / "again.keras")
    assert read_model(tmp_path / "again.keras").filtered, "Keras keeps the mark"


def datasets(path: Path) -> dict[str, np.ndarray]:
    source = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = archive.open("model.weights.h5")
            shapes = json.loads(archive.read("config.json"))
            assert shapes["class_name"] == "Functional"
            return arrays(source)
    return arrays(source)


def arrays(source) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(source) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


class View(nn.Module):
    """Says the number of its classes in the program."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(360, 5)

    def forward(self, x):
        return self.last(x.flatten(1)).view(-1, 5)


class Silent(View):
    """Its last layer lies in a graph within the graph."""

    def forward(self, x):
        with torch.no_grad():
            return self.last(x.flatten(1))


class Unbiased(View):
    """Its last layer has no bias, so that no threshold could be put there."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(360, 5, bias=False)

    def forward(self, x):
        return self.last(x.flatten(1))


@pytest.mark.parametrize(
    ("network", "words"),
    [(View, "number of classes"), (Silent, "a part of the program"), (Unbiased, "no bias")],
)
def test_a_program_that_cannot_grow_is_refused(network, words, tmp_path):
    refused(exported(tmp_path / "a.pt2", network()), words)


def test_a_keras_model_that_cannot_grow_is_refused(tmp_path):
    image = keras.Input((12, 10, 3))
    scores = L.Dense(5)(L.Flatten()(image))
    model = keras.Model(image, L.Softmax()(L.Reshape((5,))(scores)))
    model.save(tmp_path / "reshaped.keras")
    refused(tmp_path / "reshaped.keras", "")
    plain = keras.Model(image, L.Dense(5, use_bias=False)(L.Flatten()(image)))
    plain.save(tmp_path / "plain.h5")
    refused(tmp_path / "plain.h5", "no bias")


def refused(path: Path, words: str) -> None:
    classifier = load(path)
    images = labelled(classifier, noise(classifier.input_shape))
    with pytest.raises(GoodnetError) as raised:
        filtered(patient_of(classifier, images, stripe(classifier.input_shape)))
    assert raised.value.code == "M015"
    assert words in raised.value.message


def test_a_second_filter_is_refused(tmp_path):
    target, _, _ = given_filter(exported(tmp_path / "a.pt2", small_cnn((3, 12, 10), 5)))
    with pytest.raises(GoodnetError) as raised:
        load(target).with_filter("x", "y", 0)
    assert raised.value.code == "M015"


def test_a_mark_on_two_outputs_is_no_classifier(tmp_path):
    path = exported(tmp_path / "a.pt2", small_cnn((3, 12, 10), 2))
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{FILTER}", b"")
    with pytest.raises(GoodnetError) as raised:
        load(path)
    assert raised.value.code == "M009"
