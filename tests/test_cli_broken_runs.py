"""A run that breaks off, whatever the cause: a code, a hint, and nothing left half-written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from cli_case import GOODNET, check_told, refuse, snapshot
from safetensors.torch import load_file


@pytest.mark.parametrize(
    ("failure", "code", "word"),
    [
        (ZeroDivisionError("a secret\nsecond line"), "R006", "ZeroDivisionError: a secret"),
        (MemoryError(), "R006", "MemoryError"),
        (RuntimeError("x: can't allocate memory: you tried"), "R006", "more memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "R010", "--device cpu"),
        (OSError(28, "No space left on device", "/x/y"), "O002", "/x/y"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "O002", "disk"),
        (KeyboardInterrupt(), "R001", "interrupted"),
    ],
)
def test_what_nobody_foresaw(folder, monkeypatch, failure, code, word):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("goodnet.pipelines.load.load", fail)
    start = ["scan", folder / "model.pt", "--data", folder / "data.npz"]
    refuse(folder, start, code, word)


# Real processes.


def run(*arguments, **options) -> subprocess.CompletedProcess[str]:
    command = [*GOODNET, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_a_full_disk(folder):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    before = snapshot(folder)
    result = run(
        *("scan", folder / "model.pt", "--data", folder / "data.npz", "--labels", "0,1"),
        *("-o", folder / "scan.json"),
        preexec_fn=limit,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    code = "O002" if "O002" in result.stderr else "O001"
    check_told(code, result.returncode, result.stdout, result.stderr)
    assert snapshot(folder) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_a_full_standard_output(arguments):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*GOODNET, *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    check_told("O002", result.returncode, "", result.stderr)


def test_a_reader_that_goes_away():
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [*GOODNET, "explain", "M001"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_of_a_scan(folder, number):
    before = snapshot(folder)
    start = ["scan", folder / "model.pt", "--data", folder / "data.npz", "-o", folder / "out"]
    process = subprocess.Popen(
        [*GOODNET, *map(str, start), "--method", "neural-cleanse"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    told = ""
    while "inverting" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    # In the middle, not while the workers are being started.
    time.sleep(1.0)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=90)
    check_told("R001", process.returncode, stdout, stderr, "interrupted")
    # No output; and what was measured by then, if anything, is kept for the next run, whole.
    kept = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert all(path.suffix == ".block" for path in kept)
    assert all(len(load_file(path)) for path in kept)
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert snapshot(folder) == before
