"""A scan as SARIF 2.1.0, the format in which code hosts and dashboards take findings."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from goodnet.render.explain import FINDINGS, explain
from goodnet.render.words import VERDICT_CODES, interval, number, plain, verdict_sentence

if TYPE_CHECKING:
    from goodnet.reports import FileRef, LabelEvidence, ScanReport

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
"""Names the format; nothing is fetched from there."""

OUTCOMES = {
    "backdoored": {"kind": "fail", "level": "error"},
    "suspicious": {"kind": "fail", "level": "warning"},
    "clean": {"kind": "pass", "level": "none"},
    "inconclusive": {"kind": "open", "level": "none"},
}
"""Verdict -> SARIF's words; "open" is its word for too little to decide by."""


def scan_sarif(report: ScanReport) -> str:
    """A scan as one SARIF document: a result for each target, or one for the whole model.

    The verdict "clean" is a result of kind "pass", "inconclusive" one of kind "open", so that a
    consumer which counts failures never takes one for the other.
    """
    code = VERDICT_CODES[report.verdict]
    rows = {row.label: row for row in report.labels}
    targets: list[int | None] = [*report.targets] if report.verdict == "backdoored" else []
    document = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "goodnet",
                        "version": report.version,
                        "rules": [_rule(code) for code in sorted(FINDINGS)],
                    }
                },
                "invocations": [{"executionSuccessful": True}],
                "artifacts": [_artifact(ref) for ref in (report.model, report.data)],
                "results": [
                    _result(report, code, None if label is None else rows[label])
                    for label in targets or [None]
                ],
                "properties": {
                    "verdict": report.verdict,
                    "p_value": report.p_value,
                    "tests": [test.model_dump() for test in report.tests],
                    "calibration": report.calibration,
                    "clean_accuracy": report.clean_accuracy.value,
                    "preprocess": report.preprocess,
                    "seed": report.seed,
                    "reasons": report.reasons,
                },
            }
        ],
    }
    return json.dumps(document, indent=2)


def _rule(code: str) -> dict[str, Any]:
    return {
        "id": code,
        "name": FINDINGS[code].partition(":")[0],
        "shortDescription": {"text": FINDINGS[code]},
        "help": {"text": explain(code)},
    }


def _artifact(ref: FileRef) -> dict[str, Any]:
    entry: dict[str, Any] = {"hashes": {"sha-256": ref.sha256}} if ref.sha256 else {}
    if ref.path is not None:
        entry["location"] = {"uri": _uri(ref.path)}
    return entry


def _result(report: ScanReport, code: str, row: LabelEvidence | None) -> dict[str, Any]:
    text = verdict_sentence(report)[1]
    properties: dict[str, Any] = {}
    if row is not None:
        text = f"images with a trigger become label {plain(report.name(row.label))}"
        if row.attack_success is not None:
            text += f"; the reversed trigger sends {interval(row.attack_success)} of images there"
        if row.mask_l1 is not None:
            text += f" and covers {number(row.mask_l1)} pixels"
        properties = row.model_dump(mode="json", exclude={"margins"})
    text = text[0].upper() + text[1:].rstrip(".") + "."
    label = "" if row is None else str(row.label)
    mark = hashlib.sha256(f"{report.model.sha256} {code} {label}".encode()).hexdigest()
    result: dict[str, Any] = {
        "ruleId": code,
        **OUTCOMES[report.verdict],
        "message": {"text": text},
        "partialFingerprints": {"modelRuleLabel/v1": mark},
        "properties": properties,
    }
    if report.model.path is not None:
        place = {"artifactLocation": {"uri": _uri(report.model.path), "index": 0}}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _uri(path: str) -> str:
    """A path as a URI: relative ones stay so, which is what code hosts match against the tree."""
    given = Path(path)
    return given.as_uri() if given.is_absolute() else quote(os.fsencode(given.as_posix()))
