"""``goodnet predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli import inputs
from goodnet.cli.failures import run
from goodnet.cli.options import Architecture, ImageSize, Model, PlainFormat, Preprocess
from goodnet.cli.terminal import Terminal

if TYPE_CHECKING:
    from torch import Tensor

    from goodnet.classifier import Classifier


def predict(
    model: Model,
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", show_default=False, help="Picture files of any size."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            show_default=False,
            help="Clean images, which find the preprocessing and name the classes.",
        ),
    ] = None,
    architecture: Architecture = None,
    preprocess: Preprocess = "auto",
    image_size: ImageSize = None,
    format: Annotated[PlainFormat, typer.Option(help="Of the result.")] = PlainFormat.TEXT,
) -> None:
    """Name the class of each picture.

    Without --data and --preprocess, the model is taken to expect pixels in [0, 1].
    """
    source = inputs.Source(model, data, architecture, preprocess, image_size)
    raise typer.Exit(run(lambda terminal: _predict(terminal, source, pictures, format)))


def _predict(
    terminal: Terminal, source: inputs.Source, paths: list[Path], wanted: PlainFormat
) -> int:
    from goodnet.images import read_pictures
    from goodnet.pipelines.evaluate import predict as answer

    classifier, images = inputs.read(terminal, source, minimum=1, several_classes=False)
    labels, confidences = answer(classifier, read_pictures(paths, classifier.input_shape))
    names = images.class_names if images is not None else None
    if wanted == PlainFormat.JSON:
        document = _document(classifier, paths, labels, confidences, names)
        terminal.write(json.dumps(document, indent=2) + "\n")
        return 0
    from goodnet.render.text import prediction_text

    terminal.show(
        prediction_text(
            [str(path) for path in paths],
            labels.tolist(),
            num_classes=classifier.num_classes,
            class_names=names,
            confidences=confidences.tolist(),
        )
    )
    return 0


def _document(
    classifier: Classifier,
    paths: list[Path],
    labels: Tensor,
    confidences: Tensor,
    names: tuple[str, ...] | None,
) -> dict[str, object]:
    from goodnet.pipelines.conclude import model_ref
    from goodnet.version import __version__

    def name(label: int) -> str | None:
        return names[label] if names and label < len(names) else None

    return {
        "version": __version__,
        "model": model_ref(classifier).model_dump(mode="json"),
        "preprocess": classifier.preprocess.name,
        "predictions": [
            {"path": str(path), "label": label, "name": name(label), "confidence": confidence}
            for path, label, confidence in zip(
                paths, labels.tolist(), confidences.tolist(), strict=True
            )
        ],
    }
