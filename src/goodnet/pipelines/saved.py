"""Scan reports as files: JSON, and the triggers beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from goodnet.errors import GoodnetError
from goodnet.reports import ScanReport
from goodnet.trigger import Trigger

TRIGGERS = ".triggers.safetensors"
"""How the name of a report's triggers ends."""

MAX_BYTES = 1 << 28
"""Of a report: one of ten thousand labels takes some ten million."""

HINT = "give the scan.json that 'goodnet scan -o' wrote"


def triggers_path(report: Path) -> Path:
    """Where the triggers of a report in this JSON file lie."""
    return report.with_name(f"{report.stem}{TRIGGERS}")


def save_report(report: ScanReport, path: Path) -> None:
    """Writes the report as JSON and, beside it, its triggers as safetensors."""
    from safetensors.torch import save as to_bytes

    from goodnet.formats.files import atomic
    from goodnet.reports import as_text
    from goodnet.trigger import pack

    named = {f"mask-{label}": trigger for label, trigger in report.triggers.items()}
    beside = triggers_path(path)
    # Both are complete before anything from before is touched: the disk may be full.
    with atomic(path) as new:
        new.write_text(as_text(report), encoding="utf-8")
        if named:
            with atomic(beside) as temporary:
                temporary.write_bytes(to_bytes(pack(named)))
        else:
            # The triggers of an earlier report must not pass for those of this one.
            beside.unlink(missing_ok=True)


def load_report(path: Path) -> ScanReport:
    """Reads a report that :func:`save_report` wrote, with its triggers if they lie beside it.

    Raises:
        GoodnetError: R002 when the file is not a scan report of this version's schema.
    """
    from safetensors.torch import load_file

    from goodnet.trigger import unpack

    try:
        # A pipe would be waited for, and a device never ends.
        if path.exists() and not path.is_file():
            raise GoodnetError("R002", f"{path} is no file", HINT)
        if path.stat().st_size > MAX_BYTES:
            raise GoodnetError("R002", f"{path} is absurdly large", HINT)
        report = ScanReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GoodnetError("R002", f"cannot read {path}: {error.strerror}", HINT) from error
    except ValueError as error:
        raise GoodnetError("R002", f"{path} is not a scan report of goodnet", HINT) from error
    if not _sound(report):
        raise GoodnetError("R002", f"{path} holds labels or numbers that no scan has", HINT)
    beside = triggers_path(path)
    try:
        found = unpack(load_file(str(beside))) if beside.is_file() else {}
    except Exception as error:  # safetensors raises a type of its own
        raise GoodnetError("R002", f"{beside} is damaged", HINT) from error
    if not all(_fits(trigger, report) for trigger in found.values()):
        raise GoodnetError("R002", f"{beside} holds triggers of another size or label", HINT)
    report._triggers.update({trigger.target: trigger for trigger in found.values()})
    return report


def _fits(trigger: Trigger, report: ScanReport) -> bool:
    """Whether a trigger is one for the model's images and labels, in finite numbers."""
    channels, height, width = report.model.input_shape
    return (
        trigger.mask.shape == (1, height, width)
        and trigger.pattern.shape == (channels, height, width)
        and trigger.mask.dtype == trigger.pattern.dtype == torch.float32
        and bool(trigger.mask.isfinite().all() and trigger.pattern.isfinite().all())
        and 0 <= trigger.target < report.model.num_classes
        and trigger.family in ("patch", "additive")
    )


def _sound(report: ScanReport) -> bool:
    """Whether the labels are the model's, and all numbers finite."""
    classes = report.model.num_classes
    labels = [row.label for row in report.labels]
    told = [*report.targets, *report.suspects, *labels, *report.mapping, *report.mapping.values()]
    return (
        all(0 <= label < classes for label in told)
        and len(set(labels)) == len(labels)
        and all(map(math.isfinite, _numbers(report.model_dump())))
    )


def _numbers(tree: object) -> Iterator[float]:
    """All numbers in nested dictionaries and lists."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _numbers(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _numbers(value)
    elif isinstance(tree, float):
        yield tree
