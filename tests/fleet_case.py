"""A model with so many labels that a fleet measures it in three shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from cli_case import save_data, save_model
from test_resume import Templates

from goodnet.pipelines.fleet_job import LABELS
from goodnet.reports import FleetResult, ScanReport

CLASSES = 2 * LABELS["default"] + 8
"""Three shares."""


def patterns(classes: int) -> torch.Tensor:
    return torch.rand(classes, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def save_many(folder: Path) -> Path:
    (folder / "models").mkdir()
    shown = patterns(CLASSES)
    save_model(folder / "models" / "many.pt", Templates(shown))
    pixels = (shown.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    save_data(folder / "clean.npz", pixels, np.arange(CLASSES))
    return folder


def result_of(out: Path) -> FleetResult:
    return FleetResult.model_validate_json((out / "many.pt.json").read_bytes())


def answer(report: ScanReport) -> dict:
    return report.model_dump(exclude={"seconds"})


def same(result: FleetResult, alone: ScanReport) -> bool:
    """Whether two reports say the same; a fleet tells paths as it was given them."""
    mine, its = answer(result.report), answer(alone)
    for report in (mine, its):
        report["model"].pop("path")
        report["data"].pop("path")
    return json.dumps(mine, sort_keys=True) == json.dumps(its, sort_keys=True)
