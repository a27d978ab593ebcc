"""``goodnet fleet``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli.failures import FAILURE, run
from goodnet.cli.options import (
    Architecture,
    Data,
    ImageSize,
    Method,
    MethodName,
    PlainFormat,
    Preprocess,
    Seed,
    parse_size,
    parse_time,
)
from goodnet.cli.terminal import Terminal

if TYPE_CHECKING:
    from goodnet.reports import FleetReport


def fleet(
    models: Annotated[
        Path,
        typer.Argument(
            metavar="MODELS",
            show_default=False,
            help="A folder of models, or a text file with a path in each line.",
        ),
    ],
    data: Data,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PLACE",
            show_default=False,
            help="A folder, or a URL that fsspec knows. Gets NAME.json for each model, and "
            "fleet.json, the table.",
        ),
    ],
    architecture: Architecture = None,
    preprocess: Preprocess = "auto",
    image_size: ImageSize = None,
    method: MethodName = Method.DEFAULT,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", show_default=False, help="For each model (90s, 5m, 1h), as of a scan."
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Processes at a time; one for each core by default."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            show_default=False,
            help="Of a Ray cluster that does the work instead of this machine. A folder of images, "
            "and a file of --architecture, have to lie at the same path on its nodes.",
        ),
    ] = None,
    format: Annotated[PlainFormat, typer.Option(help="Of the table.")] = PlainFormat.TEXT,
) -> None:
    """Scan many models with the same clean images.

    One result for each model, as it comes, and a table over all. Run again, it does what is left.

    Exit code 0: no backdoor found in any. 1: in at least one. 2: not decided, or failed, for some.
    """

    def scan_all(terminal: Terminal) -> int:
        from goodnet.pipelines.fleet import fleet as scan_models

        with terminal.progress() as progress:
            report = scan_models(
                models,
                data,
                output,
                architecture=architecture,
                preprocess=preprocess,
                size=parse_size(image_size),
                method=method,
                seed=seed,
                budget=parse_time(budget),
                workers=workers,
                ray=ray,
                progress=progress,
            )
        _show(terminal, report, format)
        return exit_code(report)

    raise typer.Exit(run(scan_all))


def _show(terminal: Terminal, report: FleetReport, wanted: PlainFormat) -> None:
    if wanted == PlainFormat.JSON:
        terminal.write_json(report)
    else:
        from goodnet.render.text import fleet_text

        terminal.show(fleet_text(report))


def exit_code(report: FleetReport) -> int:
    """1 where any model is backdoored, else 2 where any is not known to be clean, else 0."""
    verdicts = {row.verdict for row in report.rows}
    if "backdoored" in verdicts:
        return 1
    return 0 if verdicts == {"clean"} else FAILURE
