"""Whatever goes in: a code, a line, a hint and exit code 2; and no file is touched."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cli_case import (
    SIDE,
    Rows,
    bright_rows,
    refuse,
    save_data,
    save_model,
)
from safetensors.torch import save_file
from typer.testing import CliRunner

from goodnet.cli import app

# Model files.


def missing(path):
    pass


def a_folder(path):
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes(np.random.default_rng(1).bytes(5000))


def half(path):
    save_model(path, Rows())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def weights_only(path):
    torch.save(Rows().state_dict(), path)


def one_output(path):
    save_model(path, Rows(outputs=1))


def nan_weights(path):
    module = Rows()
    module.last.weight.data.fill_(float("nan"))
    save_model(path, module)


def half_hdf5(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(9000)
    path.write_bytes(path.read_bytes()[:3000])


def lambda_layer(path):
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"name": "i", "batch_input_shape": [None, SIDE, SIDE, 3]},
                },
                {
                    "class_name": "Lambda",
                    "config": {"name": "evil", "function": ["4wEAAAA=", None, None]},
                },
            ],
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.3.1"
        file.create_group("model_weights")


@pytest.mark.parametrize("verb", ["scan", "repair"])
@pytest.mark.parametrize(
    ("name", "make", "code", "word"),
    [
        ("none.pt", missing, "M001", "none.pt"),
        ("folder.pt", a_folder, "M002", "folder.pt"),
        ("empty.h5", empty, "M003", "empty"),
        ("empty.pt2", empty, "M003", "empty"),
        ("noise.pt", noise, "M003", "noise.pt"),
        ("noise.h5", noise, "M003", "noise.h5"),
        ("half.pt", half, "M003", "half.pt"),
        ("half.h5", half_hdf5, "M003", "damaged"),
        ("weights.pt", weights_only, "M007", "weights only"),
        ("evil.h5", lambda_layer, "M005", "Python code"),
        ("one.pt", one_output, "M009", "single score"),
        ("nan.pt", nan_weights, "M012", "NaN"),
    ],
)
def test_a_model_that_cannot_be_used(folder, verb, name, make, code, word):
    make(folder / name)
    output = ["-o", folder / f"out{Path(name).suffix}"] if verb == "repair" else []
    arguments = [verb, folder / name, "--data", folder / "data.npz", *output]
    refuse(folder, [*arguments, "--format", "json"], code, word)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pt", "evil.h5", "evil.keras"])
def test_a_pickle_is_not_run(folder, name):
    marker = folder / "marker"
    if name == "evil.pt":
        torch.save({"weights": Bomb(marker)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    refuse(folder, ["scan", folder / name, "--data", folder / "data.npz"], "M004", "mkdir")
    assert not marker.exists()


def test_weights_of_another_network(folder, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    save_file({"last.weight": torch.zeros(2, 3)}, folder / "w.safetensors")
    (folder / "net.py").write_text("import torch\ndef make(): return torch.nn.Linear(4, 2)\n")
    data = ["--data", folder / "data.npz"]
    arguments = ["scan", folder / "w.safetensors", *data, "--architecture"]
    refuse(folder, [*arguments, folder / "net.py:no"], "M008", "no function no")
    refuse(folder, [*arguments, folder / "none.py:make"], "M008", "none.py")
    refuse(folder, [*arguments, f"{folder / 'net.py'}:make"], "M008")


# Images.


def other_size(path):
    save_data(path, *bright_rows(side=16))


def one_class(path):
    images, labels = bright_rows()
    save_data(path, images, labels * 0 + 1)


def too_many_classes(path):
    images, labels = bright_rows()
    save_data(path, images, labels + 1)


def negative_labels(path):
    images, labels = bright_rows()
    save_data(path, images, labels - 1)


def nan_pixels(path):
    images, labels = bright_rows()
    images = images / np.float32(255)
    images[3, 0, 0, 0] = np.nan
    save_data(path, images, labels)


def few(path):
    save_data(path, *bright_rows(9))


def wrong_labels(path):
    images, labels = bright_rows()
    save_data(path, images, np.random.default_rng(2).permutation(labels))


def too_few_labels(path):
    images, labels = bright_rows()
    save_data(path, images, labels[:-1])


def no_labels(path):
    np.savez(path, images=bright_rows()[0])


def half_archive(path):
    save_data(path, *bright_rows())
    path.write_bytes(path.read_bytes()[:20_000])


def objects(path):
    save_data(path, np.array([{}, {}], dtype=object), [0, 1])


def no_pictures(path):
    (path / "cats").mkdir(parents=True)


def broken_picture(path):
    (path / "cats").mkdir(parents=True)
    (path / "cats" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


@pytest.mark.parametrize(
    ("name", "make", "code", "word"),
    [
        ("none.npz", missing, "D001", "none.npz"),
        ("folder", no_pictures, "D002", "folder"),
        ("pictures", broken_picture, "D013", "a.png"),
        ("empty.npz", empty, "D003", "empty.npz"),
        ("empty.h5", empty, "D003", "empty.h5"),
        ("noise.npz", noise, "D003", "noise.npz"),
        ("noise.h5", noise, "D003", "noise.h5"),
        ("half.npz", half_archive, "D003", "half.npz"),
        ("half.h5", half_hdf5, "D003", "half.h5"),
        ("objects.npz", objects, "D002", "objects"),
        ("nolabels.npz", no_labels, "D004", "labels"),
        ("short.npz", too_few_labels, "D012", "99"),
        ("nan.npz", nan_pixels, "D006", "NaN"),
        ("size.npz", other_size, "M010", "3x16x16"),
        ("many.npz", too_many_classes, "D007", "10"),
        ("below.npz", negative_labels, "D007", "-1"),
        ("one.npz", one_class, "D008", "label 1"),
        ("few.npz", few, "D009", "9 images"),
        ("wrong.npz", wrong_labels, "D010", "guessing"),
    ],
)
def test_images_that_cannot_be_used(folder, name, make, code, word):
    make(folder / name)
    refuse(folder, ["scan", folder / "model.pt", "--data", folder / name], code, word)


# Options and outputs.


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--labels", "0,x"], "R003", "--labels"),
        (["--labels", "0,99"], "R003", "99"),
        (["--preprocess", "bites"], "D011", "bites"),
        (["--image-size", "0x3"], "R003", "0x3"),
        (["-o", "{folder}/x.doc"], "R003", "x.doc"),
        (["-o", "{folder}/model.pt", "--format", "json"], "O003", "model.pt"),
        (["-o", "{folder}/data.npz/x.json"], "O001", "x.json"),
        (["-o", "{folder}/data.npz/sub/dir"], "O001", "scan.json"),
        (["-o", "/proc/x.json"], "O001", "x.json"),
        (["-o", "{folder}/" + "n" * 300 + ".json"], "O001", "too long"),
    ],
)
def test_scan_options_that_cannot_be_used(folder, options, code, word):
    options = [option.format(folder=folder) for option in options]
    start = ["scan", folder / "model.pt", "--data", folder / "data.npz"]
    refuse(folder, [*start, *options], code, word)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["-o", "{folder}/model.pt"], "O003", "model.pt"),
        (["-o", "{folder}/sub/../model.pt"], "O003", "model.pt"),
        (["-o", "{folder}/link.pt"], "O003", "link.pt"),
        (["-o", "{folder}/data.npz"], "O003", "data.npz"),
        (["-o", "{folder}/sub"], "O004", "sub"),
        (["-o", "{folder}/out.h5"], "O004", "out.pt"),
        (["-o", "{folder}/data.npz/out.pt"], "O001", "out.pt"),
        (["-o", "{folder}/out.pt", "--report", "{folder}/none.json"], "R002", "none.json"),
        (["-o", "{folder}/out.pt", "--report", "{folder}/data.npz"], "R002", "data.npz"),
        (["-o", "{folder}/out.pt", "--report", "{folder}/out.repair.json"], "O003", "repair"),
    ],
)
def test_repair_options_that_cannot_be_used(folder, options, code, word):
    (folder / "sub").mkdir()
    (folder / "link.pt").symlink_to("model.pt")
    options = [option.format(folder=folder) for option in options]
    start = ["repair", folder / "model.pt", "--data", folder / "data.npz"]
    refuse(folder, [*start, *options], code, word)


def test_the_other_verbs(folder):
    model = folder / "model.pt"
    data = ["--data", folder / "data.npz"]
    refuse(folder, ["evaluate", model, *data, "--target", "1"], "R003", "--poisoned")
    poisoned = ["--poisoned", folder / "data.npz"]
    refuse(folder, ["evaluate", model, *data, *poisoned, "--target", "77"], "R003", "77")
    refuse(folder, ["evaluate", model, *data, "--poisoned", folder / "none"], "D001", "none")
    refuse(folder, ["predict", model, *data, folder / "none.png"], "D001", "none.png")
    refuse(folder, ["predict", model, *data, folder / "data.npz"], "D013", "data.npz")
    refuse(folder, ["predict", model, folder / "none.png"], "M010", "size")
    refuse(folder, ["demo", "-o", folder / "data.npz"], "O001", "data.npz")
    refuse(folder, ["explain", "X999"], "R003", "X999")


@pytest.mark.parametrize(
    "arguments",
    [["scna"], ["scan"], ["scan", "m", "--nonsense"], ["scan", "m", "--data", "d", "--seed", "x"]],
)
def test_usage_errors_end_with_2_as_well(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


def test_the_triggers_beside_a_report_are_outputs_and_inputs_too(folder):
    """They lie where nobody has named them: no file of the user's may be lost to them."""
    precious = folder / "mine.triggers.safetensors"
    precious.write_bytes(b"weights")
    start = ["scan", precious, "--architecture", "net.py:make", "--data", folder / "data.npz"]
    refuse(folder, [*start, "-o", folder / "mine.json"], "O003", "mine.triggers.safetensors")
    (folder / "mine.json").write_text("{}")
    start = ["repair", folder / "model.pt", "--data", folder / "data.npz"]
    start += ["--report", folder / "mine.json", "-o", precious]
    refuse(folder, start, "O003", "mine.triggers.safetensors")
