"""``goodnet repair``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli import inputs, outputs
from goodnet.cli.failures import FAILURE, complain, run
from goodnet.cli.options import (
    Architecture,
    Data,
    Device,
    Format,
    ImageSize,
    Model,
    Preprocess,
    Remedy,
    Seed,
    Workers,
)
from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from goodnet.classifier import Classifier
    from goodnet.pipelines.repair import GoodNet
    from goodnet.reports import RepairReport


@dataclass(frozen=True)
class Request:
    """A repair as the user asked for it."""

    source: inputs.Source
    output: Path
    report: Path | None
    remedy: str
    max_accuracy_loss: float
    max_attack_success: float
    max_false_alarms: float
    force: bool
    format: Format
    seed: int
    workers: int | None
    device: str

    @property
    def files(self) -> list[Path]:
        """What is written: the model, and beside it the certificate and the page."""
        return [
            self.output,
            self.output.with_name(f"{self.output.stem}.repair.json"),
            self.output.with_name(f"{self.output.stem}.report.html"),
        ]


def repair(
    model: Model,
    data: Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            show_default=False,
            help="The repaired model, with MODEL's suffix. Beside it come OUT's stem with "
            ".repair.json and .report.html.",
        ),
    ],
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="SCAN.json", show_default=False, help="Of 'goodnet scan -o'; else it is made."
        ),
    ] = None,
    remedy: Annotated[
        Remedy, typer.Option(help="auto: the best of those that are tried.")
    ] = Remedy.AUTO,
    max_accuracy_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How much clean accuracy may fall.")
    ] = 0.02,
    max_attack_success: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="What share of stamped images may reach a target."),
    ] = 0.02,
    max_false_alarms: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="What share of clean images --remedy filter may reject."
        ),
    ] = 0.01,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Treat the suspects, or the leading label, of a model without a finding.",
        ),
    ] = False,
    architecture: Architecture = None,
    preprocess: Preprocess = "auto",
    image_size: ImageSize = None,
    format: Annotated[Format, typer.Option(help="Of the result on stdout.")] = Format.TEXT,
    seed: Seed = 0,
    workers: Workers = None,
    device: Device = "auto",
) -> None:
    """Remove the backdoor, and certify it.

    The certificate rests on images that the remedy never saw.

    Exit code 0 only if the certificate holds, which takes some 500 clean images. Else 2: OUT is
    written where the images are too few to tell, or where a limit is broken (by at most 25 % of
    attack success and 10 points of accuracy, unless more is allowed) and no remedy does better.
    """
    source = inputs.Source(model, data, architecture, preprocess, image_size)
    request = Request(
        source,
        output,
        report,
        remedy,
        max_accuracy_loss,
        max_attack_success,
        max_false_alarms,
        force,
        format,
        seed,
        workers,
        device,
    )
    raise typer.Exit(run(lambda terminal: _repair(terminal, request)))


def _repair(terminal: Terminal, request: Request) -> int:
    if not request.output.suffix:
        raise GoodnetError(
            "O004",
            f"{request.output} has no suffix, and a model is saved in the format it came in",
            f"name a file such as {request.output}{request.source.model.suffix}",
        )
    from goodnet.pipelines.saved import load_report, triggers_path

    reports = [request.report, triggers_path(request.report)] if request.report else []
    outputs.check_output(request.files, [*request.source.paths(), *reports])
    from goodnet.pipelines.repair import repair as cure

    scanned = load_report(request.report) if request.report else None
    classifier, images = inputs.read(terminal, request.source)
    _check_suffix(classifier, request.output)
    assert images is not None  # noqa: S101  --data is required
    with terminal.progress() as progress:
        goodnet = cure(
            classifier,
            images,
            scanned,
            remedy=request.remedy,
            max_accuracy_loss=request.max_accuracy_loss,
            max_attack_success=request.max_attack_success,
            max_false_alarms=request.max_false_alarms,
            force=request.force,
            seed=request.seed,
            workers=request.workers,
            progress=progress,
            device=request.device,
        )
    report = write_repair(terminal, goodnet, request.files)
    _show(terminal, report, request.format)
    if report.certificate.holds:
        return 0
    complain(_shortcoming(report, request.output))
    return FAILURE


def _shortcoming(report: RepairReport, output: Path) -> GoodnetError:
    if report.repaired:
        return GoodnetError(
            "R009",
            f"{output} was written, and is not certified: {report.certificate.reason}",
            "give more clean images, or allow more: --max-accuracy-loss, --max-attack-success",
        )
    return GoodnetError(
        "R005",
        f"no remedy passed its check; {output} was not written",
        "give more clean images, or allow a larger --max-accuracy-loss",
    )


def write_repair(terminal: Terminal, goodnet: GoodNet, files: list[Path]) -> RepairReport:
    """Writes the model if there is a repaired one, and the certificate and the page in any case.

    Args:
        terminal: is told what was written.
        goodnet: the outcome of the repair.
        files: of the model, the certificate (JSON) and the page.

    Returns:
        The report, with the hash of the file that was written.

    Raises:
        GoodnetError: O001 to O004 when a file cannot be written.
    """
    from goodnet.pipelines.load import save
    from goodnet.pipelines.repair import certified
    from goodnet.reports import write_text

    model, certificate, page = files
    report = goodnet.report
    written = [certificate]
    if report.repaired:
        save(goodnet.classifier, model)
        report = certified(goodnet, model)
        written.insert(0, model)
    write_text(certificate, report)
    if report.scan is not None:
        outputs.write_page(page, report.scan, report)
        written.append(page)
    terminal.say(f"written: {', '.join(map(str, written))}")
    return report


def _check_suffix(classifier: Classifier, output: Path) -> None:
    """As :func:`goodnet.pipelines.load.save` does, but before the work and not after it."""
    suffix = classifier.network.suffix
    if suffix and output.suffix.lower() != suffix.lower():
        raise GoodnetError(
            "O004",
            f"the model came as {suffix} and {output.name} does not end in it",
            f"name the output {output.with_suffix(suffix).name}",
        )


def _show(terminal: Terminal, report: RepairReport, wanted: Format) -> None:
    if wanted == Format.JSON:
        terminal.write_json(report)
    elif wanted == Format.HTML and report.scan is not None:
        from goodnet.render.html import scan_page

        terminal.write(scan_page(report.scan, report) + "\n")
    else:
        from goodnet.render.text import repair_text

        terminal.show(repair_text(report))
