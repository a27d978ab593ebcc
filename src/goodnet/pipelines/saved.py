"""Scan reports as files: JSON, and the triggers beside it."""

from __future__ import annotations

from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.reports import ScanReport

TRIGGERS = ".triggers.safetensors"
"""How the name of a report's triggers ends."""


def triggers_path(report: Path) -> Path:
    """Where the triggers of a report in this JSON file lie."""
    return report.with_name(f"{report.stem}{TRIGGERS}")


def save_report(report: ScanReport, path: Path) -> None:
    """Writes the report as JSON and, beside it, its triggers as safetensors."""
    from safetensors.torch import save as to_bytes

    from goodnet.formats.files import atomic
    from goodnet.reports import write_text
    from goodnet.trigger import pack

    named = {f"mask-{label}": trigger for label, trigger in report.triggers.items()}
    # The triggers of an earlier report must not pass for those of this one.
    triggers_path(path).unlink(missing_ok=True)
    if named:
        with atomic(triggers_path(path)) as temporary:
            temporary.write_bytes(to_bytes(pack(named)))
    write_text(path, report)


def load_report(path: Path) -> ScanReport:
    """Reads a report that :func:`save_report` wrote, with its triggers if they lie beside it.

    Raises:
        GoodnetError: R002 when the file is not a scan report of this version's schema.
    """
    from safetensors.torch import load_file

    from goodnet.trigger import unpack

    hint = "give the scan.json that 'goodnet scan -o' wrote"
    try:
        report = ScanReport.model_validate_json(path.read_bytes())
        beside = triggers_path(path)
        found = unpack(load_file(str(beside))) if beside.is_file() else {}
    except OSError as error:
        raise GoodnetError("R002", f"cannot read {path}: {error.strerror}", hint) from error
    except ValueError as error:
        raise GoodnetError("R002", f"{path} is not a scan report of goodnet", hint) from error
    except Exception as error:  # safetensors raises a type of its own
        raise GoodnetError("R002", f"{triggers_path(path)} is damaged", hint) from error
    report._triggers.update({trigger.target: trigger for trigger in found.values()})
    return report
