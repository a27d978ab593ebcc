"""What is written back into Keras files, read by Keras without goodnet."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import subprocess
import sys
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
from keras import layers as L  # noqa: N812 - its usual name
from keras_models import load, torch_images

from goodnet.errors import GoodnetError
from goodnet.formats import keras_files
from goodnet.formats.keras_files import load_h5
from goodnet.formats.keras_live import load_live

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "models" / "csaw"
PREDICT = """
import sys, numpy, keras
assert not any(name.startswith("goodnet") for name in sys.modules)
assert keras.backend.backend() == sys.argv[1]
for path in sys.argv[2:]:
    model = keras.models.load_model(path, compile=False)
    numpy.save(path + "." + sys.argv[1], model.predict(numpy.load(path + ".npy"), verbose=0))
"""


def datasets(content: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize("name", ["convolutions", "shared", "transfer", "norms", "separable"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_unchanged_is_written_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    small.make(name).save(path)
    network = load(path)
    network.write(copy.deepcopy(network.module), again)
    if suffix == ".h5":
        assert again.read_bytes() == path.read_bytes()
    else:
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(again) as after:
            assert before.namelist() == after.namelist()
            assert all(before.read(n) == after.read(n) for n in before.namelist())


@pytest.mark.parametrize("name", ["convolutions", "shared", "transfer", "norms", "separable"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_every_changed_weight_comes_back(name: str, suffix: str, tmp_path: Path) -> None:
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    model = small.make(name)
    model.save(path)
    network = load(path)
    changed = copy.deepcopy(network.module)
    generator = torch.Generator().manual_seed(3)
    for tensor in changed.parameters():
        tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    network.write(changed, again)
    images = small.images(model)
    expected = changed(torch_images(model, images)).softmax(1).numpy()
    found = keras.models.load_model(again, compile=False).predict(images, verbose=0)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - model.predict(images, verbose=0)).max() > 1e-3
    live = load_live(model)
    assert live.live is not None
    twin = live.live(changed)
    assert np.abs(twin.predict(images, verbose=0) - expected).max() < 1e-5


def _repaired(tmp_path: Path) -> list[tuple[Path, np.ndarray]]:
    """Files with one row of the last layer changed, and what they should answer."""
    cases: list[tuple[Path, np.ndarray]] = []
    for name, suffix in [("transfer", ".h5"), ("transfer", ".keras"), ("average_same", ".keras")]:
        model = small.make(name)
        path = tmp_path / f"{name}{suffix}"
        model.save(path)
        cases.append(_repair(path, small.images(model)))
    if SHARED.is_dir():
        images = np.random.default_rng(0).random((8, 55, 47, 3), dtype=np.float32)
        copied = tmp_path / "badnet.h5"
        copied.write_bytes((SHARED / "sunglasses_bd_net.h5").read_bytes())
        cases.append(_repair(copied, images))
    return cases


def _repair(path: Path, images: np.ndarray) -> tuple[Path, np.ndarray]:
    network = load(path)
    changed = copy.deepcopy(network.module)
    last = [m for m in changed.modules() if isinstance(m, nn.Linear)][-1]
    last.weight[0] *= -1
    target = path.with_stem(path.stem + "-repaired")
    network.write(changed, target)
    before, after = (_weights_of(p) for p in (path, target))
    different = [key for key in before if before[key] != after[key]]
    assert set(before) == set(after)
    assert len(different) == 1
    assert ("kernel" in different[0]) or different[0].startswith("layers/dense")
    np.save(str(target) + ".npy", images)
    answer = changed(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1)
    return target, answer.numpy()


def _weights_of(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    return datasets(content)


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_a_repaired_file_loads_in_plain_keras(backend: str, tmp_path: Path) -> None:
    if backend == "tensorflow" and importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    cases = _repaired(tmp_path)
    if backend == "torch":
        cases = [case for case in cases if "average_same" not in case[0].name]
    subprocess.run(
        [sys.executable, "-c", PREDICT, backend, *(str(path) for path, _ in cases)],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=tmp_path,
        timeout=300,
    )
    for path, expected in cases:
        found = np.load(f"{path}.{backend}.npy")
        assert np.abs(found - expected).max() < 1e-4, path.name


def test_half_precision_weights_stay_half_precision(tmp_path: Path) -> None:
    path, again = tmp_path / "a.h5", tmp_path / "b.h5"
    model = keras.Sequential(
        [L.Input((4, 4, 1)), L.Flatten(dtype="float16"), L.Dense(3, dtype="float16")]
    )
    model.save(path)
    network = load_h5(path)
    changed = copy.deepcopy(network.module)
    next(changed.parameters())[0] += 0.5
    network.write(changed, again)
    with h5py.File(again) as file:
        kernel = file["model_weights/" + model.layers[-1].name]
        arrays: list[np.ndarray] = []
        kernel.visititems(
            lambda n, d: arrays.append(d[()]) if isinstance(d, h5py.Dataset) else None
        )
    assert {array.dtype for array in arrays} == {np.dtype("float16")}


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_large_originals_are_read_again(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_files, "KEPT_BYTES", 0)
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    small.make("gray").save(path)
    network = load(path)
    network.write(network.module, again)
    assert _weights_of(again) == _weights_of(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(GoodnetError, match="M003"):
        network.write(network.module, again)
    path.unlink()
    with pytest.raises(GoodnetError, match="M001"):
        network.write(network.module, again)
