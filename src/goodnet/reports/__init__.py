"""The reports: plain data that serialise to JSON and load back equal."""

from __future__ import annotations

from goodnet.reports.base import (
    Data,
    DataRef,
    Family,
    FileRef,
    ModelRef,
    Proportion,
    as_text,
    write_text,
)
from goodnet.reports.others import Evaluation, FleetReport, FleetResult, FleetRow
from goodnet.reports.repaired import (
    AccuracyLoss,
    Certificate,
    ClassChange,
    FilterReport,
    FreshScan,
    RemedyTrial,
    RepairReport,
    Standing,
)
from goodnet.reports.scanned import LabelEvidence, ScanReport, TestResult, Verdict

__all__ = [
    "AccuracyLoss",
    "Certificate",
    "ClassChange",
    "Data",
    "DataRef",
    "Evaluation",
    "Family",
    "FileRef",
    "FilterReport",
    "FleetReport",
    "FleetResult",
    "FleetRow",
    "FreshScan",
    "LabelEvidence",
    "ModelRef",
    "Proportion",
    "RemedyTrial",
    "RepairReport",
    "ScanReport",
    "Standing",
    "TestResult",
    "Verdict",
    "as_text",
    "write_text",
]
