"""Where results go, and whether they can go there; asked before the long work begins."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from goodnet.cli.failures import NO_SPACE
from goodnet.cli.options import ScanFormat
from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from goodnet.reports import RepairReport, ScanReport

SUFFIXES = {
    ".json": ScanFormat.JSON,
    ".html": ScanFormat.HTML,
    ".htm": ScanFormat.HTML,
    ".txt": ScanFormat.TEXT,
    ".sarif": ScanFormat.SARIF,
}
"""Suffix of an output file -> the format that it asks for."""


def is_folder(output: Path) -> bool:
    """Whether an output is meant as a folder: it is one, or its name has no suffix."""
    try:
        return output.is_dir() or not output.suffix
    except OSError:
        # A name that is too long, say; that is told when it is asked whether it can be written.
        return False


def file_format(output: Path, stated: ScanFormat | None) -> ScanFormat:
    """The format of an output file: as stated, else by its suffix.

    Raises:
        GoodnetError: R003 when neither tells.
    """
    found = stated or SUFFIXES.get(output.suffix.lower())
    if found is None:
        raise GoodnetError(
            "R003",
            f"{output} does not tell a format",
            "end it in .json, .html, .sarif or .txt, state --format, or name a folder",
        )
    return found


def check_output(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Makes sure that files can be written, without leaving a trace.

    Args:
        outputs: the files to be written.
        inputs: the files that must stay as they are.

    Raises:
        GoodnetError: O003 an input would be overwritten, O001 or O002 a place cannot be written.
    """
    given = list(inputs)
    for output in outputs:
        try:
            _check_place(output, given)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise GoodnetError(
                    "O002", f"the disk is full: {output}", "free some space, or name another place"
                ) from error
            raise _unwritable(output, error.strerror or str(error)) from error


def write_file(path: Path, text: str) -> None:
    """Writes a text, all or nothing.

    Raises:
        GoodnetError: O001 or O002 when it cannot be written.
    """
    from goodnet.formats.files import atomic

    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def scan_files(folder: Path) -> list[Path]:
    """The files that :func:`write_scan` writes, but for the pictures."""
    return [folder / name for name in ("scan.json", "scan.triggers.safetensors", "report.html")]


def state_folder(output: Path | None) -> Path | None:
    """Where a scan keeps what it has measured, until it is done: in the folder of its output."""
    return output / ".unfinished" if output is not None and is_folder(output) else None


def check_beside(output: Path, data: Path | None) -> None:
    """Makes sure that a folder of results lies outside the folder of clean images.

    Raises:
        GoodnetError: O003: pictures of triggers would be taken for clean ones by the next run.
    """
    if data is not None and data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise GoodnetError(
            "O003",
            f"{output} lies in {data}, and its pictures would be taken for clean images",
            "name a folder outside the data",
        )


def write_scan(folder: Path, report: ScanReport, repair: RepairReport | None = None) -> None:
    """Writes everything that a scan has to say.

    Args:
        folder: gets ``scan.json``, its ``scan.triggers.safetensors``, ``report.html``
            and ``triggers/*.png``. Made if it does not exist.
        report: the scan.
        repair: for the page, or None.

    Raises:
        GoodnetError: O001 or O002 when a file cannot be written.
    """
    from goodnet.pipelines.saved import save_report
    from goodnet.render.pictures import write_pngs

    json_path, _, html_path = scan_files(folder)
    save_report(report, json_path)
    write_pngs(report, folder / "triggers")
    write_page(html_path, report, repair)


def write_page(path: Path, report: ScanReport, repair: RepairReport | None = None) -> None:
    """Writes the web page of a scan, and of the repair that followed."""
    from goodnet.render.html import scan_page

    write_file(path, scan_page(report, repair))


def _check_place(output: Path, inputs: list[Path]) -> None:
    for given in inputs:
        if _same(output, given):
            raise GoodnetError(
                "O003", f"{output} is an input of this run", "name another file for the output"
            )
    if output.is_dir():
        raise _unwritable(output, "it is a directory")
    # Folders on the way are made only when there is something to put into them.
    parent = output.absolute().parent
    while not parent.exists():
        if parent.is_symlink():
            raise _unwritable(output, f"{parent} is a link that leads nowhere")
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder")
    # Root passes every test of permissions; only writing shows a read-only file system.
    with tempfile.TemporaryFile(dir=parent, prefix=".goodnet-"):
        pass


def _unwritable(output: Path, reason: str) -> GoodnetError:
    return GoodnetError(
        "O001", f"cannot write {output}: {reason}", "choose a folder that you may write to"
    )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
