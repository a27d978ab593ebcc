"""Keras files against real Keras: what the translated networks compute."""

from __future__ import annotations

import copy
import json
import os
import threading
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("keras")
import keras
import keras_models as small
from keras import layers as L  # noqa: N812 - its usual name
from keras_models import load, torch_images

from goodnet.errors import GoodnetError
from goodnet.formats import keras_hdf5
from goodnet.formats.keras_files import (
    is_weights_only,
    load_h5,
    load_h5_weights,
    load_keras,
    read_legacy_weights,
)
from goodnet.formats.keras_layers import TABLE
from goodnet.formats.keras_live import load_h5_weights_into_torch, load_live
from goodnet.formats.network import Network

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "models" / "csaw"
# Keras itself cannot save RandomBrightness as HDF5, and pads this average wrongly on torch.
NO_H5 = {"augmentation"}
ONLY_TENSORFLOW = {"average_same"}
ON_TORCH = sorted(set(small.MODELS) - ONLY_TENSORFLOW)
SIGMOID = {"flatten_first"}


def assert_same(name: str, network: Network, model: keras.Model) -> None:
    images = small.images(model)
    expected = model.predict(images, verbose=0)
    assert expected.std(axis=0).max() > 0.003, "the outputs hardly differ: the test is blind"
    logits = network.module(torch_images(model, images))
    end = {"gray": lambda z: z}.get(name, torch.sigmoid if name in SIGMOID else _softmax)
    assert np.abs(end(logits).numpy() - expected).max() < 1e-5
    if name not in ("gray", *SIGMOID):
        assert not torch.allclose(logits.sum(1), torch.ones(len(logits))), "softmax still there"


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


@pytest.mark.parametrize("name", ON_TORCH)
def test_every_layer_computes_what_keras_computes(name: str, tmp_path: Path) -> None:
    model = small.make(name)
    for suffix in {".h5", ".keras"} - ({".h5"} if name in NO_H5 else set()):
        path = tmp_path / f"model{suffix}"
        model.save(path)
        network = load(path)
        assert_same(name, network, model)
        assert network.suffix == suffix
        assert network.num_classes == small.CLASSES
        shape = model.input_shape[1:]
        if name not in ("gray", "channels_first", "flatten_first"):
            assert network.input_shape == (shape[2], shape[0], shape[1])
        assert not any(p.requires_grad for p in network.module.parameters())
        assert not network.module.training
    live = load_live(model)
    assert_same(name, live, model)
    assert (live.kind, live.suffix) == ("keras-live", "")


def test_the_small_models_use_the_whole_table() -> None:
    used: set[str] = set()

    def walk(tree: object) -> None:
        if isinstance(tree, dict):
            used.add(str(tree.get("class_name")))
            for value in tree.values():
                walk(value)
        elif isinstance(tree, list):
            for value in tree:
                walk(value)

    for make in small.MODELS.values():
        walk(json.loads(make().to_json()))
    # Other spellings of the same, and layers that only Keras 1 and 2 had.
    old = {"Convolution2D", "SeparableConvolution2D", "SyncBatchNormalization", "ThresholdedReLU"}
    old |= {"BatchNormalizationV1", "BatchNormalizationV2", "RandomHeight", "RandomWidth"}
    missing = {name for name in TABLE if "." not in name} - used - old
    assert not missing


@pytest.mark.parametrize("name", ["merges", "transfer", "norms"])
def test_gradients_reach_the_image_and_threads_and_copies_agree(name: str) -> None:
    model = small.make(name)
    network = load_live(model)
    images = torch_images(model, small.images(model)).clone().requires_grad_()
    network.module(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    expected = network.module(images.detach())
    results: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(network.module(images.detach())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.append(copy.deepcopy(network.module)(images.detach()))
    assert len(results) == 5
    assert all(torch.allclose(result, expected, atol=1e-6) for result in results)


@pytest.mark.parametrize("how", ["legacy", "native", "renamed"])
@pytest.mark.parametrize("name", ["transfer", "convolutions", "norms"])
def test_weights_with_their_architecture_equal_the_whole(
    name: str, how: str, tmp_path: Path
) -> None:
    model = small.make(name)
    path = tmp_path / ("w.weights.h5" if how == "native" else "w.h5")
    if how == "native":
        model.save_weights(path)
    else:
        whole = tmp_path / "whole.h5"
        model.save(whole)
        with h5py.File(whole) as file, h5py.File(path, "w") as bare:
            for key, item in file["model_weights"].items():
                file.copy(item, bare, name=key)
            for key, value in file["model_weights"].attrs.items():
                bare.attrs[key] = value
    assert is_weights_only(path)
    with pytest.raises(GoodnetError, match="M007"):
        load_h5(path)
    architecture = model
    if how == "renamed":
        architecture = small.MODELS[name]()
    network = load_h5_weights(path, architecture)
    assert network.kind == "keras-weights"
    assert_same(name, network, model)
    target = tmp_path / "out.h5"
    network.write(network.module, target)
    assert target.read_bytes() == path.read_bytes()
    with pytest.raises(GoodnetError, match="M008"):
        load_h5_weights(path, small.MODELS["gray"]())


def test_a_torch_module_is_filled_from_keras_weights(tmp_path: Path) -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3)
            self.d = nn.Linear(42 * 4, small.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(x).relu().permute(0, 2, 3, 1).flatten(1))

    model = keras.Sequential(
        [L.Input((9, 8, 3)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(5)]
    )
    path = tmp_path / "m.h5"
    model.save(path)
    network = load_h5_weights_into_torch(path, Twin())
    images = small.images(model)
    logits = network.module(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.abs(logits.numpy() - model.predict(images, verbose=0)).max() < 1e-5
    changed = copy.deepcopy(network.module)
    changed.inner.d.weight[1] += 1
    network.write(changed, tmp_path / "n.h5")
    found = keras.models.load_model(tmp_path / "n.h5", compile=False).predict(images, verbose=0)
    again = changed(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - again).max() < 1e-4
    with pytest.raises(GoodnetError, match="M008"):
        load_h5_weights_into_torch(path, nn.Linear(2, 2))


def test_names_and_order_give_nested_weights_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trainable in (False, True):
        model = small.transfer(trainable)
        small.shake(model)
        model.save(tmp_path / "m.h5")
        assert_same("transfer", load_h5(tmp_path / "m.h5"), model)
        with monkeypatch.context() as patch:
            patch.setattr(keras_hdf5, "_by_name", lambda layer, arrays: {})
            assert_same("transfer", load_h5(tmp_path / "m.h5"), model)


def test_older_dialects_of_keras(tmp_path: Path) -> None:
    """Keras 1 and 2 wrote lists for calls, alpha for slopes, and a bare list for Sequential."""
    model = keras.Sequential(
        [L.Input((9, 8, 3)), L.Conv2D(4, 3, name="c"), L.LeakyReLU(0.1, name="l"), L.Flatten()]
    )
    model.add(L.Dense(5, activation="hard_sigmoid", name="d"))
    model.add(L.Dense(5, activation="softmax", name="e"))
    small.shake(model)
    path = tmp_path / "m.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = b"1.2.2"
        conv = {"name": "c", "nb_filter": 4, "nb_row": 3, "nb_col": 3, "border_mode": "valid"}
        conv |= {"subsample": [1, 1], "bias": True, "dim_ordering": "tf", "activation": "linear"}
        layers = [
            {
                "class_name": "Convolution2D",
                "config": {**conv, "batch_input_shape": [None, 9, 8, 3]},
            },
            {"class_name": "LeakyReLU", "config": {"name": "l", "alpha": 0.1, "trainable": True}},
            {"class_name": "Flatten", "config": {"name": "f", "trainable": True}},
            {
                "class_name": "Dense",
                "config": {"name": "d", "output_dim": 5, "activation": "hard_sigmoid"},
            },
            {
                "class_name": "Dense",
                "config": {"name": "e", "output_dim": 5, "activation": "softmax"},
            },
        ]
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
    network = load_h5(path)
    images = small.images(model)
    keras2 = keras.Model(model.inputs, model.get_layer("d").output)
    keras2.get_layer("d").activation = lambda x: keras.ops.clip(0.2 * x + 0.5, 0, 1)
    hidden = keras2.predict(images, verbose=0)
    kernel, bias = model.get_layer("e").get_weights()
    logits = network.module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(logits - (hidden @ kernel + bias)).max() < 1e-5


APPLICATIONS = {
    "mobilenet_v2": lambda: keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=5
    ),
    "efficientnet_b0": lambda: keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None, classes=5
    ),
    "densenet121": lambda: keras.applications.DenseNet121(
        input_shape=(32, 32, 3), weights=None, classes=5
    ),
    "resnet50": lambda: keras.applications.ResNet50(
        input_shape=(32, 32, 3), weights=None, classes=5
    ),
    "vgg16_open": lambda: keras.applications.VGG16(
        include_top=False, input_shape=(None, None, 3), weights=None, pooling="avg"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_applications(name: str, tmp_path: Path) -> None:
    model = APPLICATIONS[name]()
    images = np.random.default_rng(1).random((3, 40, 32, 3), dtype=np.float32)
    images = images[:, : model.input_shape[1] or 40] * 255
    generator = np.random.default_rng(2)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.8, 1.2, tuple(variable.shape)))
    expected = model.predict(images, verbose=0)
    path = tmp_path / "m.keras"
    model.save(path)
    logits = load_keras(path).module(torch.from_numpy(images).permute(0, 3, 1, 2))
    found = logits if name == "vgg16_open" else logits.softmax(1)
    assert np.abs(found.numpy() - expected).max() < 1e-4


@pytest.mark.real
@pytest.mark.parametrize("name", ["sunglasses", "anonymous_1"])
def test_the_real_badnets(name: str, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the real BadNets are not at {SHARED}")
    path = SHARED / f"{name}_bd_net.h5"
    model = keras.models.load_model(path, compile=False)
    network = load_h5(path)
    assert network.input_shape == (3, 55, 47)
    assert network.num_classes == 1283
    images = small.images(model, 16)
    tensor = torch_images(model, images)
    expected = model.predict(images, verbose=0)
    logits = network.module(tensor)
    assert np.abs(logits.softmax(1).numpy() - expected).max() < 1e-4
    weights = SHARED / f"{name}_bd_weights.h5"
    assert is_weights_only(weights)
    assert not is_weights_only(path)
    other = load_h5_weights(weights, keras.models.clone_model(model))
    assert torch.allclose(other.module(tensor), logits, atol=1e-5)
    layers = dict(read_legacy_weights(weights))
    assert [n for n, _ in layers["output"]] == ["output/kernel:0", "output/bias:0"]
    assert layers["output"][0][1].shape == (160, 1283)
