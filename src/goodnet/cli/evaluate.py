"""``goodnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from goodnet.cli import inputs
from goodnet.cli.failures import run
from goodnet.cli.options import (
    Architecture,
    Data,
    ImageSize,
    Model,
    PlainFormat,
    Preprocess,
    parse_size,
)
from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError


def evaluate(
    model: Model,
    data: Data,
    poisoned: Annotated[
        Path | None,
        typer.Option(
            metavar="POISONED",
            show_default=False,
            help="Images with the trigger, labelled with what the attacker wants; perhaps with "
            "true_labels.",
        ),
    ] = None,
    target: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=False, help="The attacker's label, if POISONED has the true ones."
        ),
    ] = None,
    architecture: Architecture = None,
    preprocess: Preprocess = "auto",
    image_size: ImageSize = None,
    format: Annotated[PlainFormat, typer.Option(help="Of the result.")] = PlainFormat.TEXT,
) -> None:
    """Measure accuracy and attack success.

    On clean images, and on images with the trigger where there are some.

    Exit code 0, or 2 if it could not be measured.
    """
    source = inputs.Source(model, data, architecture, preprocess, image_size)
    raise typer.Exit(run(lambda terminal: _evaluate(terminal, source, poisoned, target, format)))


def _evaluate(
    terminal: Terminal,
    source: inputs.Source,
    poisoned: Path | None,
    target: int | None,
    wanted: PlainFormat,
) -> int:
    if target is not None and poisoned is None:
        raise GoodnetError(
            "R003",
            "--target says what an attacker wants of images that were not given",
            "give --poisoned as well, or leave --target out",
        )
    from goodnet.pipelines.evaluate import evaluate as measure

    classifier, images = inputs.read(terminal, source, minimum=1, several_classes=False)
    assert images is not None  # noqa: S101  --data is required
    stamped = None
    if poisoned is not None:
        stamped = inputs.pictures(source, poisoned, parse_size(source.image_size))
    evaluation = measure(classifier, images, stamped, target)
    if wanted == PlainFormat.JSON:
        terminal.write_json(evaluation)
    else:
        from goodnet.render.text import evaluation_text

        terminal.show(evaluation_text(evaluation))
    return 0
