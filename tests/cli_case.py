"""A small model, its images, and what every test of the command line asks."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from typer.testing import CliRunner

from goodnet.cli import app

SIDE, CLASSES = 12, 10
GOODNET = [sys.executable, "-m", "goodnet"]


class Rows(nn.Module):
    """Class k is a bright row k: right on every image without training.

    Args:
        outputs: number of classes.
        backdoor: whether a bright last pixel, which is dark in all images, means class 3.
    """

    def __init__(self, outputs: int = CLASSES, backdoor: bool = False) -> None:
        super().__init__()
        self.last = nn.Linear(SIDE * SIDE, outputs)
        weight = torch.zeros(outputs, SIDE, SIDE)
        for label in range(outputs):
            weight[label, label] = 2.0
        if backdoor:
            weight[3, -1, -1] = 100.0
        with torch.no_grad():
            self.last.weight.copy_(weight.flatten(1))
            self.last.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.mean(1).flatten(1))


def save_model(path: Path, module: nn.Module) -> Path:
    torch.jit.script(module.eval()).save(path)
    return path


def bright_rows(count: int = 100, classes: int = CLASSES, side: int = SIDE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (count, 3, side, side), dtype=np.uint8)
    labels = np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        image[:, label] += 180
    images[:, :, -1, -1] = 0
    return images, labels


def save_data(path: Path, images, labels) -> Path:
    np.savez(path, images=images, labels=labels)
    return path


def snapshot(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_told(code: str, exit_code: int, stdout: str, stderr: str, *words: str) -> None:
    assert exit_code == 2, stderr
    assert stdout == ""
    assert f"error[{code}]: " in stderr
    assert "  help: " in stderr
    assert f"  more: goodnet explain {code}" in stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr


def refuse(folder: Path, arguments: list, code: str, *words: str) -> None:
    before = snapshot(folder)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    check_told(code, result.exit_code, result.stdout, result.stderr, *words)
    assert snapshot(folder) == before
