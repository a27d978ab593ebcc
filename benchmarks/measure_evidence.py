"""Every channel's raw numbers on one model of the zoo: what a calibration starts from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import zoo


def evidence_record(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """Scans the model as a user would, and keeps what the verdict was made of.

    Args:
        truth: the model's ``truth.json``.
        place: its directory.

    Returns:
        ``labels``: the figures of every label that was measured in full; ``settings``: those of the
        whole model; ``images``, ``batch_norm``, ``seconds``.
    """
    import goodnet

    # A reference model never sees the pictures of those that are held against it.
    defender = zoo.defender(truth["data"], "calibration")
    classifier = goodnet.load(place / truth["file"], defender)
    started = time.monotonic()
    report = goodnet.scan(classifier, defender)
    return {
        "num_classes": classifier.num_classes,
        "batch_norm": any("BatchNorm" in type(m).__name__ for m in classifier.module.modules()),
        "images": len(defender),
        "settings": report.settings,
        "preferred": max(row.preferred for row in report.labels if row.preferred is not None),
        "tinted": {r.label: round(r.tinted, 5) for r in report.labels if r.tinted is not None},
        "leaning": {r.label: round(r.leaning, 5) for r in report.labels if r.leaning is not None},
        "signatures": {
            r.label: [round(r.dormant, 7), round(r.unused, 7)]
            for r in report.labels
            if r.dormant is not None and r.unused is not None
        },
        "driven": {r.label: round(r.driven, 5) for r in report.labels if r.driven is not None},
        "labels": [
            {
                "label": row.label,
                "control": row.control,
                "margins": row.margins,
                "mask_l1": row.mask_l1,
                "noise_margin": row.noise_margin,
                "warps": row.warps,
                "patch_margin": row.patch_margin,
                "patch_success": row.patch_success,
                "patch_contrast": row.patch_contrast,
                "preferred": row.preferred,
                "score": row.score,
            }
            for row in report.labels
            if row.score is not None
        ],
        "tests": [test.model_dump() for test in report.tests],
        "verdict": report.verdict,
        "targets": report.targets,
        "seconds": time.monotonic() - started,
        "version": goodnet.__version__,
    }
