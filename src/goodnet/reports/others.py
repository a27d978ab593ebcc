"""What an evaluation and a fleet tell."""

from __future__ import annotations

from goodnet.reports.base import Data, DataRef, ModelRef, Name, Proportion
from goodnet.reports.scanned import ScanReport, Verdict


class Evaluation(Data):
    """Figures on images kept for judging.

    Attributes:
        clean_rejected: share of clean images that a filter rejects, each of them a wrong answer;
            None for a model without a filter.
        poisoned_rejected: the same of the images with a trigger that count for attack success.
    """

    clean_accuracy: Proportion
    attack_success: Proportion | None = None
    recovered_accuracy: Proportion | None = None
    target: int | None = None
    preprocess: str
    model: ModelRef
    data: DataRef
    poisoned: DataRef | None = None
    version: str
    clean_rejected: Proportion | None = None
    poisoned_rejected: Proportion | None = None


class FleetResult(Data):
    """The answer for one model of a fleet: a report, or why there is none.

    Attributes:
        name: the model's path below the folder that was scanned.
        key: SHA-256, hex, of model, data, settings and version.
        seconds: from reading the model to the verdict.
        report: the scan.
        error_code: a code of :data:`goodnet.errors.CODES`, where there is no report.
        error: what was wrong.
        hint: what to do.
    """

    name: Name
    key: str
    seconds: float
    report: ScanReport | None = None
    error_code: str | None = None
    error: Name | None = None
    hint: Name | None = None


class FleetRow(Data):
    """One model in the table over all."""

    name: Name
    sha256: str
    verdict: Verdict | None
    p_value: float | None
    targets: list[int]
    clean_accuracy: Proportion | None
    seconds: float
    error: Name | None


class FleetReport(Data):
    """The table over all models of a fleet, in the order of the folder or the list."""

    version: str
    data: Name
    data_sha256: str
    rows: list[FleetRow]
