"""Names and texts from files, whatever bytes they are: told, and neither obeyed nor fatal."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from cli_case import SIDE, Rows, bright_rows, refuse, save_data, save_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import a_report
from typer.testing import CliRunner

from goodnet.cli import app
from goodnet.pipelines.saved import load_report, save_report


def ended(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def class_folders(place, names):
    """Five pictures for each class."""
    images, labels = bright_rows()
    for name, label in zip(names, range(len(names)), strict=True):
        folder = place / os.fsdecode(name)
        folder.mkdir(parents=True)
        for n, image in enumerate(images[labels == label][:5]):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{n}.png")


def test_json_on_a_terminal_steers_it_no_more_than_a_table(tmp_path):
    model = save_model(tmp_path / "model.pt", Rows())
    names = [f"{label} \x9b2J\u202e".encode() for label in range(10)]
    class_folders(tmp_path / "data", names)
    result = ended(
        "scan", model, "-d", tmp_path / "data", "--image-size", f"{SIDE}x{SIDE}", "--format", "json"
    )
    assert result.exit_code == 0, result.stderr
    assert not [c for c in result.stdout if not c.isprintable() and c != "\n"]
    assert json.loads(result.stdout)["class_names"][3] == "3 \x9b2J\u202e"


def test_names_that_are_no_utf8(tmp_path):
    wild = save_model(tmp_path / "model.pt", Rows()).rename(tmp_path / os.fsdecode(b"mod\xff.pt"))
    class_folders(tmp_path / "data", [b"caf\xe9 %d" % label for label in range(10)])
    start = ["scan", wild, "-d", tmp_path / "data", "--image-size", f"{SIDE}x{SIDE}"]
    result = ended(*start, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "error" not in result.stderr
    report = load_report(tmp_path / "out" / "scan.json")
    assert report.class_names[4] == "caf\\udce9 4"
    assert report.model.path.endswith("mod\\udcff.pt")


def test_a_header_that_counts_in_words(tmp_path):
    save_data(tmp_path / "data.npz", *bright_rows())
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, [4]]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refuse(tmp_path, ["scan", path, "-d", tmp_path / "data.npz"], "M003", "damaged")


def test_a_name_that_no_file_can_have(tmp_path):
    save_data(tmp_path / "data.npz", *bright_rows())
    model = save_model(tmp_path / "model.pt", Rows())
    long = tmp_path / ("m" * 300 + ".pt")
    refuse(tmp_path, ["scan", long, "-d", tmp_path / "data.npz"], "M001", "too long")
    start = ["predict", model, "-d", tmp_path / "data.npz"]
    refuse(tmp_path, [*start, tmp_path / ("p" * 300 + ".png")], "D001", "too long")


def test_triggers_that_do_not_fit_the_report(tmp_path):
    path = tmp_path / "scan.json"
    save_report(a_report("backdoored"), path)
    beside = tmp_path / "scan.triggers.safetensors"
    good = load_file(beside)
    pattern = next(name for name in good if name.endswith("pattern"))
    mask = pattern.replace("pattern", "mask")
    changes = [
        {pattern: torch.zeros(3, 2, 2)},
        {pattern: torch.full_like(good[pattern], torch.nan)},
        {mask: good[mask].double()},
    ]
    save_model(tmp_path / "model.pt", Rows())
    save_data(tmp_path / "data.npz", *bright_rows())
    for change in changes:
        save_file({**good, **change}, beside)
        start = ["repair", tmp_path / "model.pt", "-d", tmp_path / "data.npz", "--report", path]
        refuse(tmp_path, [*start, "-o", tmp_path / "out.pt"], "R002", "scan.triggers.safetensors")


def test_a_second_scan_leaves_no_pictures_of_the_first(tmp_path):
    save_data(tmp_path / "data.npz", *bright_rows())
    model = save_model(tmp_path / "model.pt", Rows(backdoor=True))
    start = ["scan", model, "-d", tmp_path / "data.npz", "-o", tmp_path / "out", "--labels"]
    ended(*start, "0,1,2,3")
    (tmp_path / "out" / "triggers" / "label_mine.png").write_bytes(b"kept")
    first = {path.name for path in (tmp_path / "out" / "triggers").iterdir()}
    ended(*start, "5,6,7,8")
    second = {path.name for path in (tmp_path / "out" / "triggers").iterdir()}
    assert "label_003_mask.png" in first
    assert not [name for name in second if name.startswith("label_003")]
    assert "label_mine.png" in second


def test_the_demo_replaces_nothing_but_a_demo(tmp_path):
    np.savez(tmp_path / "test.npz", images=np.zeros(3))
    refuse(tmp_path, ["demo", "-o", tmp_path], "O001", "test.npz")
    (tmp_path / "test.npz").unlink()
    (tmp_path / "badnet.pt2").mkdir()
    refuse(tmp_path, ["demo", "-o", tmp_path], "O001", "badnet.pt2")
