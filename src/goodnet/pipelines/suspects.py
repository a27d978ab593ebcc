"""Labels that a scan did not name and did suspect: a repair treats them along, if that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from goodnet.remedies import Patient
from goodnet.reports import ScanReport
from goodnet.trigger import Trigger
from goodnet.verdict import SUSPICIOUS

MOST = 3


def suspected(report: ScanReport, targets: list[int]) -> list[int]:
    """The labels, those with the least p-values first, at most :data:`MOST`.

    Each would make a model suspicious if it stood alone: its p-value, times the number of labels
    that were measured, is at most :data:`goodnet.verdict.SUSPICIOUS`.
    """
    known = [(row.p_value, row.label) for row in report.labels if row.p_value is not None]
    found = [
        (p_value, label)
        for p_value, label in known
        if label not in targets and p_value * len(known) <= SUSPICIOUS
    ]
    return [label for _, label in sorted(found)[:MOST]]


def along(
    patient: Patient, masks: Mapping[int, Trigger], triggers: Mapping[int, list[Trigger]]
) -> Patient:
    """The same patient with triggers of further labels; what was kept is of the targets only."""
    return replace(
        patient,
        masks={**patient.masks, **masks},
        triggers={**patient.triggers, **triggers},
        kept={},
    )
