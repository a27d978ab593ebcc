"""The command line: verdict to exit code, one document on stdout, files where they belong."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_case import CLASSES, GOODNET, SIDE, Rows, bright_rows, save_data, save_model, snapshot
from PIL import Image
from typer.testing import CliRunner

from goodnet.cli import app
from goodnet.cli.options import parse_labels, parse_size
from goodnet.reports import DataRef, LabelEvidence, ModelRef, Proportion, ScanReport
from goodnet.trigger import Trigger

VERDICTS = {"clean": 0, "backdoored": 1, "suspicious": 2, "inconclusive": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    images, labels = bright_rows(200)
    save_model(folder / "badnet.pt", Rows(backdoor=True))
    save_data(folder / "data.npz", images, labels)
    images[:, :, -1, -1] = 255
    np.savez(folder / "bad.npz", images=images, labels=labels * 0 + 3, true_labels=labels)
    save_data(folder / "stamped.npz", images, labels)
    Image.fromarray(bright_rows()[0][7].transpose(1, 2, 0)).save(folder / "seven.png")
    return folder


def goodnet(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def a_report(verdict: str) -> ScanReport:
    shown = Proportion(value=0.9, low=0.8, high=0.95, n=100)
    targets = [3] if verdict == "backdoored" else []
    report = ScanReport(
        version="0",
        verdict=verdict,
        method="default",
        reasons=["because"],
        p_value=None,
        targets=targets,
        labels=[LabelEvidence(label=3, rank=1, mask_l1=2.0, flagged=bool(targets))],
        clean_accuracy=shown,
        preprocess="unit",
        seed=0,
        seconds=1.0,
        settings={},
        model=ModelRef(path="m", sha256="0", kind="k", num_classes=10, input_shape=(3, SIDE, SIDE)),
        data=DataRef(path="d", sha256="0", images=100, classes=10),
    )
    report.triggers[3] = Trigger(torch.zeros(1, SIDE, SIDE), torch.zeros(3, SIDE, SIDE), 3)
    return report


@pytest.fixture(params=VERDICTS)
def verdict(request, monkeypatch):
    report = a_report(request.param)
    monkeypatch.setattr("goodnet.pipelines.scan.scan", lambda *_, **__: report)
    return request.param


def scan(files, *options):
    return goodnet("scan", files / "badnet.pt", "--data", files / "data.npz", *options)


def test_exit_code_and_document_of_every_verdict(files, verdict):
    for options in ([], ["--format", "json"], ["--format", "html"]):
        assert scan(files, *options).exit_code == VERDICTS[verdict]
    document = json.loads(scan(files, "--format", "json").stdout)
    assert document["verdict"] == verdict
    assert document["clean_accuracy"]["n"] == 100
    text = scan(files)
    assert text.stdout.startswith(verdict.upper())
    assert "preprocessing: unit, found by trying all; clean accuracy 100.0 %" in text.stderr
    assert scan(files, "--format", "html").stdout.lstrip().lower().startswith("<!doctype html>")


def test_a_file_takes_the_place_of_stdout(files, tmp_path, monkeypatch):
    monkeypatch.setattr("goodnet.pipelines.scan.scan", lambda *_, **__: a_report("backdoored"))
    for name, start in {
        "a.json": "{",
        "a.sarif": "{",
        "a.html": "<!",
        "a.txt": "BACKDOORED",
    }.items():
        result = scan(files, "-o", tmp_path / "new" / name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "verdict: backdoored" in result.stderr
        assert (tmp_path / "new" / name).read_text("utf-8").lstrip().startswith(start)
    assert (tmp_path / "new" / "a.triggers.safetensors").exists()
    stated = scan(files, "-o", tmp_path / "b.data", "--format", "json")
    assert stated.exit_code == 1
    json.loads((tmp_path / "b.data").read_text("utf-8"))


def test_a_folder_gets_everything_and_stdout_the_result(files, tmp_path, monkeypatch):
    monkeypatch.setattr("goodnet.pipelines.scan.scan", lambda *_, **__: a_report("backdoored"))
    result = scan(files, "-o", tmp_path / "out", "--format", "json")
    assert json.loads(result.stdout)["verdict"] == "backdoored"
    found = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.*")}
    pictures = {f"triggers/label_003_{part}.png" for part in ("mask", "pattern", "fused")}
    assert found == {"scan.json", "scan.triggers.safetensors", "report.html"} | pictures


def test_options_reach_the_scan(files, monkeypatch):
    heard = {}

    def spy(classifier, images, **options):
        heard.update(options)
        return a_report("clean")

    monkeypatch.setattr("goodnet.pipelines.scan.scan", spy)
    options = ["--method", "neural-cleanse", "--labels", "0,3", "--exhaustive", "--seed", "5"]
    more = ["--workers", "1", "--budget", "5m", "--device", "cpu,float32"]
    assert scan(files, *options, *more).exit_code == 0
    assert heard.pop("leading") == heard.pop("progress").leading
    # What reading the model took is off the budget already.
    assert 0 < heard.pop("budget") < 300
    assert heard == {
        "method": "neural-cleanse",
        "labels": [0, 3],
        "exhaustive": True,
        "seed": 5,
        "workers": 1,
        "state": None,
        "device": "cpu,float32",
    }


def test_what_a_model_prints_stays_off_stdout(files, tmp_path, monkeypatch):
    monkeypatch.setattr("goodnet.pipelines.scan.scan", lambda *_, **__: a_report("clean"))
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), Rows().last).state_dict(), tmp_path / "w.pt")
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    print('noise')\n"
        f"    layers = torch.nn.Flatten(), torch.nn.Linear({SIDE * SIDE}, {CLASSES})\n"
        "    return torch.nn.Sequential(*layers)\n"
    )
    images, labels = bright_rows()
    save_data(tmp_path / "grey.npz", images[:, :1], labels)
    start = ["scan", tmp_path / "w.pt", "--data", tmp_path / "grey.npz", "--format", "json"]
    result = goodnet(*start, "--architecture", f"{tmp_path / 'net.py'}:make")
    assert json.loads(result.stdout)["verdict"] == "clean"
    assert "noise" in result.stderr


def test_scan_then_repair_then_evaluate(files, tmp_path):
    before = snapshot(files)
    first = scan(files, "-o", tmp_path / "scan.json")
    assert first.exit_code == 1, first.stderr
    document = json.loads((tmp_path / "scan.json").read_text("utf-8"))
    assert 3 in document["targets"]
    assert scan(files, "--labels", "0,1,2", "--format", "json").exit_code == 2

    badnet = [files / "badnet.pt", "--data", files / "data.npz"]
    out = tmp_path / "good.pt"
    report = ["--report", tmp_path / "scan.json"]
    # Of this model a class is its own trigger: a row that is made a little brighter.
    limits = ["--max-accuracy-loss", "0.08", "--max-attack-success", "0.25"]
    result = goodnet("repair", *badnet, "-o", out, *report, *limits, "--format", "json")
    certificate = json.loads(result.stdout)["certificate"]
    assert result.exit_code == 0, result.stderr
    assert certificate["standing"] == "holds"
    saved = json.loads((tmp_path / "good.repair.json").read_text("utf-8"))
    assert saved == json.loads(result.stdout)
    assert (tmp_path / "good.report.html").exists()
    assert saved["output"]["path"] == str(out)

    good = ["evaluate", out, "--data", files / "data.npz", "--poisoned", files / "bad.npz"]
    after = json.loads(goodnet(*good, "--format", "json").stdout)
    assert after["attack_success"]["value"] < 0.02
    result = goodnet("evaluate", *badnet, "--poisoned", files / "bad.npz", "--format", "json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["attack_success"]["value"] == 1.0
    assert figures["recovered_accuracy"]["value"] == 0.0
    stamped = ["--poisoned", files / "stamped.npz", "--target", "3"]
    text = goodnet("evaluate", *badnet, *stamped).stdout
    assert "Attack success" in text
    assert "target 3" in text
    assert snapshot(files) == before


def test_nothing_to_repair(files, tmp_path, monkeypatch):
    monkeypatch.setattr("goodnet.pipelines.repair.scan", lambda *_, **__: a_report("clean"))
    save_model(tmp_path / "model.pt", Rows())
    start = ["repair", tmp_path / "model.pt", "--data", files / "data.npz"]
    result = goodnet(*start, "-o", tmp_path / "out.pt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error[R00" in result.stderr
    assert not (tmp_path / "out.pt").exists()


def test_a_report_of_another_model(files, tmp_path):
    (tmp_path / "scan.json").write_text(a_report("backdoored").model_dump_json())
    start = ["repair", files / "badnet.pt", "--data", files / "data.npz", "-o", tmp_path / "o.pt"]
    result = goodnet(*start, "--report", tmp_path / "scan.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error[R002]" in result.stderr


def test_predict(files):
    start = ["predict", files / "badnet.pt", files / "seven.png"]
    data = ["--data", files / "data.npz"]
    document = json.loads(goodnet(*start, *data, "--format", "json").stdout)
    (answer,) = document["predictions"]
    assert answer["label"] == 7
    assert answer["path"].endswith("seven.png")
    assert 0.5 < answer["confidence"] <= 1.0
    assert "seven.png" in goodnet(*start, *data).stdout


def test_pictures_are_brought_to_the_stated_size(tmp_path):
    images, labels = bright_rows(40, side=24)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "pictures" / f"{label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{place}.png")
    save_model(tmp_path / "model.pt", Rows())
    start = ["evaluate", tmp_path / "model.pt", "--data", tmp_path / "pictures"]
    result = goodnet(*start, "--preprocess", "unit", "--image-size", f"{SIDE}", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["clean_accuracy"]["n"] == 40


def test_explain():
    result = goodnet("explain", "m004")
    assert result.exit_code == 0
    assert result.stdout.startswith("M004")


def test_help_and_version_import_no_torch():
    program = (
        "import sys\n"
        "from goodnet.__main__ import main\n"
        "sys.argv = ['goodnet', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'numpy', 'keras'} & set(sys.modules)\n"
    )
    for arguments in (["--help"], ["scan", "--help"], ["repair", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "goodnet" in done.stdout


def test_parsing():
    assert parse_labels(None) is None
    assert parse_labels("4") == [4]
    assert parse_labels(" 0, 3 ,7") == [0, 3, 7]
    assert parse_size(None) is None
    assert parse_size("32") == (32, 32)
    assert parse_size("20X30") == (20, 30)


def test_a_bar_on_a_terminal_tells_the_labels_that_lead_and_the_time_left(files):
    """A real pseudo-terminal as stderr; stdout stays a document."""
    ours, theirs = pty.openpty()
    command = [*GOODNET, "scan", files / "badnet.pt", "--data", files / "data.npz"]
    command += ["--labels", "0,1,3", "--format", "json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        drawn = bytearray()
        # A terminal whose last writer has gone gives an error instead of an end.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                drawn += part
        assert process.stdout is not None
        document = process.stdout.read()
    os.close(ours)
    text = drawn.decode()
    assert json.loads(document)["labels"]
    assert "inverting triggers" in text
    assert "left" in text
    assert "ahead: 3" in text
