"""``goodnet scan``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli import inputs, outputs
from goodnet.cli.failures import FAILURE, run
from goodnet.cli.options import (
    Architecture,
    Data,
    Device,
    ImageSize,
    Method,
    MethodName,
    Model,
    Preprocess,
    ScanFormat,
    Seed,
    Workers,
    parse_labels,
    parse_time,
)
from goodnet.cli.terminal import Terminal

if TYPE_CHECKING:
    from goodnet.reports import ScanReport

EXIT_CODES = {"clean": 0, "backdoored": 1, "suspicious": FAILURE, "inconclusive": FAILURE}
"""Verdict -> exit code, as a linter's; errors are 2 as well."""


@dataclass(frozen=True)
class Request:
    """A scan as the user asked for it."""

    source: inputs.Source
    method: str
    labels: str | None
    exhaustive: bool
    format: ScanFormat | None
    output: Path | None
    budget: str | None
    seed: int
    workers: int | None
    device: str


def scan(
    model: Model,
    data: Data,
    architecture: Architecture = None,
    preprocess: Preprocess = "auto",
    image_size: ImageSize = None,
    method: MethodName = Method.DEFAULT,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Measure every label in full, however many.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(metavar="0,3,7", show_default=False, help="Scan these labels only."),
    ] = None,
    format: Annotated[
        ScanFormat | None,
        typer.Option(show_default=False, help="Default: text, or what the output's suffix says."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            show_default=False,
            help="A file (.json, .html, .sarif, .txt), or a folder for everything: scan.json, its "
            "triggers, report.html and pictures.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            show_default=False,
            help="Measure no further label after so long (90s, 5m, 1h); skipped ones are told.",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    device: Device = "auto",
) -> None:
    """Look for a backdoor in a model.

    Is there one, for which labels, and what does the trigger look like?

    With a folder as output, a scan that was ended goes on where it stopped when it is run again.

    Exit code 0: none found. 1: backdoor found. 2: not decided, or the scan failed.
    """
    source = inputs.Source(model, data, architecture, preprocess, image_size)
    request = Request(
        source, method, labels, exhaustive, format, output, budget, seed, workers, device
    )
    raise typer.Exit(run(lambda terminal: _scan(terminal, request)))


def _scan(terminal: Terminal, request: Request) -> int:
    started, budget = time.monotonic(), parse_time(request.budget)
    labels = parse_labels(request.labels)
    _check(request)
    from goodnet.pipelines.scan import scan as look

    classifier, images = inputs.read(terminal, request.source)
    assert images is not None  # noqa: S101  --data is required
    with terminal.progress() as progress:
        report = look(
            classifier,
            images,
            method=request.method,
            labels=labels,
            exhaustive=request.exhaustive,
            seed=request.seed,
            workers=request.workers,
            progress=progress,
            leading=progress.leading,
            # Reading the model and finding its preprocessing has taken some of it.
            budget=None if budget is None else max(0.01, budget + started - time.monotonic()),
            state=outputs.state_folder(request.output),
            device=request.device,
        )
    deliver(terminal, report, request.format, request.output)
    report.forget()
    return EXIT_CODES[report.verdict]


def _check(request: Request) -> None:
    output, wanted = request.output, request.format
    if output is not None and outputs.is_folder(output):
        outputs.check_beside(output, request.source.data)
        outputs.check_output(outputs.scan_files(output), request.source.paths())
    elif output is not None:
        wanted = outputs.file_format(output, wanted)
        from goodnet.pipelines.saved import triggers_path

        # The triggers of a report in JSON lie beside it.
        beside = [triggers_path(output)] if wanted is ScanFormat.JSON else []
        outputs.check_output([output, *beside], request.source.paths())


def deliver(
    terminal: Terminal, report: ScanReport, wanted: ScanFormat | None, output: Path | None
) -> None:
    """Writes a scan where it was asked for.

    A folder keeps everything and stdout gets the result as well; a file takes the place of stdout.
    A JSON file gets its triggers beside it, for ``repair --report``.

    Args:
        terminal: where results go without a file.
        report: the scan.
        wanted: the format; None for text, or for what the file's suffix says.
        output: a folder, a file or None.

    Raises:
        GoodnetError: O001 or O002 when a file cannot be written.
    """
    if output is not None and not outputs.is_folder(output):
        _write(terminal, report, outputs.file_format(output, wanted), output)
        terminal.say(f"verdict: {report.verdict}; written to {output}")
        return
    if output is not None:
        outputs.write_scan(output, report)
        terminal.say(f"scan.json, triggers and pictures are in {output}")
    if wanted == ScanFormat.JSON:
        terminal.write_json(report)
    elif wanted == ScanFormat.HTML:
        from goodnet.render.html import scan_page

        terminal.write(scan_page(report) + "\n")
    elif wanted == ScanFormat.SARIF:
        from goodnet.render.sarif import scan_sarif

        terminal.write(scan_sarif(report) + "\n")
    else:
        from goodnet.render.text import scan_text

        terminal.show(scan_text(report))


def _write(terminal: Terminal, report: ScanReport, wanted: ScanFormat, output: Path) -> None:
    if wanted == ScanFormat.JSON:
        from goodnet.pipelines.saved import save_report

        save_report(report, output)
    elif wanted == ScanFormat.HTML:
        outputs.write_page(output, report)
    elif wanted == ScanFormat.SARIF:
        from goodnet.render.sarif import scan_sarif

        outputs.write_file(output, scan_sarif(report) + "\n")
    else:
        from goodnet.render.text import scan_text

        outputs.write_file(output, terminal.plain(scan_text(report)))
