"""Keras files that are broken, hostile or of no use: one line each, nothing run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("keras")
import keras
from keras import layers as L  # noqa: N812 - its usual name
from keras_models import code_of, load

from goodnet.errors import GoodnetError
from goodnet.formats import keras_files
from goodnet.formats.keras_files import (
    load_h5,
)
from goodnet.formats.keras_live import load_live


def _stored(model: keras.Model, path: Path, change: object = None) -> Path:
    model.save(path)
    if change is not None:
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)  # type: ignore[operator]
            file.attrs["model_config"] = json.dumps(config)
    return path


def simple() -> keras.Model:
    return keras.Sequential([L.Input((6, 5, 3)), L.Flatten(), L.Dense(4, activation="softmax")])


def test_many_texts_of_any_length_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    simple().save(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("more", data=np.zeros(2**20, np.float32))
        weights = file["model_weights"]
        del weights.attrs["layer_names"]
        # Each could be the same text of megabytes: only the file's length bounds it.
        weights.attrs["layer_names"] = ["flatten"] * 400
    assert code_of(path) == "M003"


def test_python_code_is_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def harm(x: object) -> object:
        trace.write_text("ran")
        return x

    model = keras.Sequential([L.Input((6, 5, 3)), L.Lambda(harm), L.Flatten(), L.Dense(4)])
    for suffix in (".h5", ".keras"):
        model.save(tmp_path / f"m{suffix}")
    trace.unlink()
    assert code_of(tmp_path / "m.h5") == "M005"
    assert code_of(tmp_path / "m.keras") == "M005"
    with pytest.raises(GoodnetError, match="M005"):
        load_live(model)
    assert not trace.exists()
    named = {"module": "evil", "class_name": "function", "config": "f", "registered_name": "f"}

    def change(config: dict) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = named

    assert code_of(_stored(simple(), tmp_path / "n.h5", change)) == "M005"


def test_unknown_layers_and_other_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    unknown = keras.Sequential(
        [L.Input((6, 5, 3)), L.Conv2DTranspose(2, 3, name="up"), L.Flatten()]
    )
    unknown.add(L.Dense(3))
    unknown.save(path)
    with pytest.raises(GoodnetError) as caught:
        load_h5(path)
    assert caught.value.code == "M006"
    assert "'up' (Conv2DTranspose)" in caught.value.message
    single = keras.Sequential([L.Input((6, 5, 3)), L.Flatten(), L.Dense(1)])
    table = keras.Sequential([L.Input((6,)), L.Dense(3)])
    maps = keras.Sequential([L.Input((6, 5, 3)), L.Conv2D(3, 1)])
    image = keras.Input((6, 5, 3))
    two = keras.Model(image, [L.Dense(3)(L.Flatten()(image)), L.Dense(2)(L.Flatten()(image))])
    for model in (single, table, maps, two):
        model.save(path)
        assert code_of(path) == "M009"
    with pytest.raises(GoodnetError, match="M011"):
        load_live(object())


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = {s: _stored_bytes(simple(), tmp_path / f"whole{s}") for s in (".h5", ".keras")}
    generator = np.random.default_rng(0)
    for suffix, content in whole.items():
        cases = [b"", b"x", generator.bytes(5000), content[: len(content) // 2], content[:100]]
        for case in cases:
            path = tmp_path / f"bad{suffix}"
            path.write_bytes(case)
            assert code_of(path) == "M003"
        assert code_of(tmp_path / f"none{suffix}") == "M001"
        (tmp_path / f"folder{suffix}").mkdir()
        assert code_of(tmp_path / f"folder{suffix}") == "M002"


def _stored_bytes(model: keras.Model, path: Path) -> bytes:
    model.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_flipped_bytes_never_give_a_traceback(suffix: str, tmp_path: Path) -> None:
    content = _stored_bytes(simple(), tmp_path / f"whole{suffix}")
    generator = np.random.default_rng(1)
    path = tmp_path / f"bad{suffix}"
    refused = 0
    for _ in range(15):
        broken = bytearray(content)
        for place in generator.integers(0, len(content), 20):
            broken[place] = int(generator.integers(0, 256))
        path.write_bytes(broken)
        error = None
        try:
            load(path)
        except GoodnetError as caught:
            error = caught
        refused += error is not None
        assert error is None or "\n" not in error.message
    assert refused > 2


def test_malformed_settings_are_one_line(tmp_path: Path) -> None:
    def rewrite(**settings: object) -> object:
        return lambda config: config["config"]["layers"][-1]["config"].update(settings)

    wrong = [
        rewrite(units=10**12),
        rewrite(units=-1),
        rewrite(units="many"),
        rewrite(units=None),
        rewrite(units=[4]),
        lambda config: config.update(config=None),
        lambda config: config["config"].update(layers=None),
        lambda config: config["config"].update(layers=[]),
        lambda config: config["config"]["layers"].append({"class_name": "Dense"}),
        lambda config: config["config"]["layers"].append("Dense"),
        lambda config: config["config"]["layers"][0]["config"].update(
            batch_shape=[None, 10**6, 10**6, 3]
        ),
        lambda config: config["config"]["layers"][0]["config"].update(
            batch_shape=[None, float("inf"), 5, 3]
        ),
        lambda config: config["config"]["layers"].insert(
            1,
            {"class_name": "UpSampling2D", "config": {"name": "u", "trainable": 1, "size": 60000}},
        ),
        lambda config: config["config"]["layers"].insert(
            1,
            {"class_name": "ZeroPadding2D", "config": {"name": "u", "dtype": 1, "padding": 65000}},
        ),
    ]
    for change in wrong:
        assert code_of(_stored(simple(), tmp_path / "m.h5", change)) == "M003"
    opening = '{"class_name": "Sequential", "config": {"name": "s", "layers": ['
    path = _stored(simple(), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        for depth in (30, 400, 100_000):
            del file.attrs["model_config"]
            file.attrs["model_config"] = opening * depth + "]}}" * depth
            file.flush()
            assert code_of(path) == "M003"


@pytest.mark.parametrize("kept", [keras_files.KEPT_BYTES, 0])
def test_hostile_hdf5_is_refused(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_files, "KEPT_BYTES", kept)
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.zeros((90, 4), np.float32)
    model = simple()
    name = model.layers[-1].name
    kernel = f"model_weights/{name}/{model.name}/{name}/kernel"
    layout = h5py.VirtualLayout((90, 4), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "data", (90, 4))

    def replace(make: object) -> str:
        path = _stored(model, tmp_path / "m.h5")
        with h5py.File(path, "r+") as file:
            assert kernel in file
            del file[kernel]
            file["other"] = np.zeros((90, 4), np.float32)
            make(file)  # type: ignore[operator]
        return code_of(path)

    huge = (1 << 20, 1 << 20)
    assert (
        replace(lambda f: f.__setitem__(kernel, h5py.ExternalLink(str(secret), "data"))) == "M003"
    )
    assert replace(lambda f: f.__setitem__(kernel, h5py.SoftLink("/other"))) == "M003"
    assert replace(lambda f: f.create_virtual_dataset(kernel, layout)) == "M003"
    assert replace(lambda f: f.create_dataset(kernel, huge, "f4", chunks=(64, 64))) == "M003"
    assert replace(lambda f: f.create_dataset(kernel, (90, 4), "S4")) == "M003"
    assert replace(lambda f: None) == "M003"
    assert replace(lambda f: f.__setitem__(kernel, np.zeros((90, 5), "f4"))) == "M003"
    assert replace(lambda f: f.__setitem__(kernel, np.full((90, 4), np.nan, "f4"))) == "M012"


def _graph(name: str, layers: list[dict], output: str) -> dict:
    start = {
        "class_name": "InputLayer",
        "name": "in",
        "config": {"name": "in", "batch_input_shape": [None, 6, 5, 3]},
        "inbound_nodes": [],
    }
    return {
        "class_name": "Functional",
        "name": name,
        "config": {
            "name": name,
            "layers": [start, *layers],
            "input_layers": [["in", 0, 0]],
            "output_layers": [[output, 0, 0]],
        },
    }


def _calls(taken: list[str]) -> list:
    return [[[name, 0, 0, {}]] for name in taken]


def _written(config: dict, path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.3.1"
        file.create_group("model_weights")
    return path


def test_models_that_double_at_every_level_are_refused(tmp_path: Path) -> None:
    """A few lines of JSON that stand for 10 to the power of 14 layers."""
    inner = _graph("m0", [], "in")
    for level in range(1, 15):
        inner["inbound_nodes"] = _calls(["in"] * 10)
        inner = _graph(f"m{level}", [inner], f"m{level - 1}")
    with pytest.raises(GoodnetError, match="more than") as caught:
        load(_written(inner, tmp_path / "m.h5"))
    assert caught.value.code == "M003"


def test_layers_may_stand_in_any_order(tmp_path: Path) -> None:
    """The last one first, a thousand deep: in a moment, and not in a thousand rounds."""
    count = 1000
    layers = [
        {
            "class_name": "Activation",
            "name": f"a{index}",
            "config": {"name": f"a{index}", "trainable": True, "activation": "linear"},
            "inbound_nodes": _calls([f"a{index - 1}" if index else "in"]),
        }
        for index in range(count)
    ]
    flat = {
        "class_name": "Flatten",
        "name": "flat",
        "config": {"name": "flat", "trainable": True},
        "inbound_nodes": _calls([f"a{count - 1}"]),
    }
    network = load(_written(_graph("m", [flat, *layers[::-1]], "flat"), tmp_path / "m.h5"))
    images = np.random.default_rng(0).random((2, 3, 6, 5), np.float32)
    answers = network.module(torch.from_numpy(images)).numpy()
    assert np.allclose(answers, images.transpose(0, 2, 3, 1).reshape(2, -1))


def test_one_array_under_millions_of_names_is_refused(tmp_path: Path) -> None:
    path = _stored(simple(), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        weights = file["model_weights"]
        layer = weights[simple_name := next(n for n in weights if len(weights[n]))]
        (found,) = layer.values()
        kernel = found if isinstance(found, h5py.Dataset) else next(iter(_datasets(found)))
        layer["k"] = kernel
        del layer.attrs["weight_names"]
        layer.attrs["weight_names"] = np.array([b"k"] * 5000)
        for index in range(500):
            weights[f"l{index}"] = layer
        del weights.attrs["layer_names"]
        weights.attrs["layer_names"] = [simple_name, *(f"l{index}" for index in range(500))]
    with pytest.raises(GoodnetError, match="more than") as caught:
        load(path)
    assert caught.value.code == "M003"


def _datasets(group: h5py.Group) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    group.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def test_zip_bombs_and_doubles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    simple().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", members["config.json"])
        archive.writestr("model.weights.h5", bytes(50_000_000))
    assert code_of(path) == "M003"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", members["model.weights.h5"])
        archive.writestr("config.json", members["config.json"])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("config.json", members["config.json"])
    assert code_of(path) == "M003"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", members["config.json"])
    assert code_of(path) == "M003"
