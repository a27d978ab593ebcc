"""Programs in model files that never come to an end: told, and not waited for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_case import SIDE, bright_rows, check_told, save_data, save_model, snapshot
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.patience import awaited

IMPATIENT = """
import sys, threading, time
from goodnet import patience
from goodnet.__main__ import main

def watch():
    while not patience.left_behind():
        time.sleep(0.05)
    print("inside the model", file=sys.stderr, flush=True)

patience.PATIENCE = {}
threading.Thread(target=watch, daemon=True).start()
main()
"""


class EndlessAnswer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() >= 0.0):
            x = x + 1.0
        return x.flatten(1)[:, :10]


class LongWork(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ones(3000, 3000)
        for _ in range(300):
            y = y @ y / 3000.0
        return x.flatten(1)[:, :10] + y.sum()


def begun(folder, model, seconds, name="model.pt"):
    if name.endswith(".pt2"):
        shown = (torch.rand(2, 3, SIDE, SIDE),)
        torch.export.save(torch.export.export(model.eval(), shown), folder / name)
    else:
        save_model(folder / name, model)
    save_data(folder / "data.npz", *bright_rows())
    program = [sys.executable, "-c", IMPATIENT.format(seconds)]
    return subprocess.Popen(
        [*program, "scan", str(folder / name), "--data", str(folder / "data.npz")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_program_that_does_not_end_is_told_and_left(tmp_path):
    process = begun(tmp_path, EndlessAnswer(), 2)
    before = snapshot(tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    check_told("M016", process.returncode, stdout, stderr, "has not come to an end")
    assert snapshot(tmp_path) == before


def test_a_program_that_is_tried_while_it_is_read_is_left_as_well(tmp_path):
    # Exported for two images, so that the reader finds out whether it takes another number.
    process = begun(tmp_path, LongWork(), 2, "model.pt2")
    stdout, stderr = process.communicate(timeout=120)
    check_told("M016", process.returncode, stdout, stderr, "reading the model")


def test_ctrl_c_is_heard_while_a_program_does_not_end(tmp_path):
    process = begun(tmp_path, EndlessAnswer(), 600)
    assert process.stderr.readline() == "inside the model\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    check_told("R001", process.returncode, stdout, stderr, "interrupted")


def test_a_fleet_has_an_answer_for_it(tmp_path):
    model = save_model(tmp_path / "model.pt", EndlessAnswer())
    data = save_data(tmp_path / "data.npz", *bright_rows())
    program = (
        "import sys, goodnet.patience as p; p.PATIENCE = 2\n"
        "from goodnet.pipelines.fleet_local import Job, Task, _child\n"
        "name, data, folder = sys.argv[1:]\n"
        "_child(Task(Job('a', 'a.json', name, data, '', '')), folder + '/answer.json', folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), str(data), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "answer.json").read_text())["error_code"] == "M016"


def test_what_foreign_code_answers_or_raises_is_handed_on():
    assert awaited(lambda: 3, "the model") == 3
    with pytest.raises(ZeroDivisionError):
        awaited(lambda: 1 // 0, "the model")
    with pytest.raises(GoodnetError, match="has not come to an end after 0 seconds"):
        awaited(lambda: time.sleep(1), "the model", 0.01)
