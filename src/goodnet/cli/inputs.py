"""Model and images, read and checked, with a word on stderr about what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from goodnet.cli.options import parse_size
from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from goodnet.classifier import Classifier
    from goodnet.images import Images

SAMPLE = 500
"""Images for the accuracy that is told beside the preprocessing."""


@dataclass(frozen=True)
class Source:
    """What the user named.

    Attributes:
        model: the model file.
        data: clean images, or None where a verb can do without.
        architecture: ``FILE.py:FUNCTION`` or None.
        preprocess: ``"auto"`` or what is taken as given.
        image_size: ``"HxW"`` for the pictures of a folder, or None.
    """

    model: Path
    data: Path | None
    architecture: str | None = None
    preprocess: str = "auto"
    image_size: str | None = None

    def paths(self) -> list[Path]:
        """The files that no output may overwrite."""
        code = [Path(self.architecture.rpartition(":")[0])] if self.architecture else []
        return [self.model, *([self.data] if self.data is not None else []), *code]


def read(
    terminal: Terminal, source: Source, *, minimum: int = 10, several_classes: bool = True
) -> tuple[Classifier, Images | None]:
    """The classifier, and the images if there are any.

    Args:
        terminal: is told the preprocessing and how well the model knows the images.
        source: what to read.
        minimum: fewest images that the verb can work with.
        several_classes: whether images of one class only are of no use.

    Raises:
        GoodnetError: as :func:`goodnet.pipelines.load.load` and :func:`goodnet.images.load_images`.
    """
    from goodnet.formats.guard import check_exists
    from goodnet.images import check_images
    from goodnet.pipelines.load import load

    size = parse_size(source.image_size)
    images = None
    try:
        # Before the images: a misspelt model should not cost the reading of a gigabyte.
        check_exists(source.model)
        if source.data is not None:
            images = pictures(source, source.data, size)
            check_images(images, minimum=minimum, several_classes=several_classes)
        classifier = load(
            source.model,
            images,
            architecture=source.architecture,
            preprocess=source.preprocess,
        )
    except PermissionError as error:
        raise GoodnetError(
            "M001", f"cannot read {source.model}: {error.strerror}", "check the permissions"
        ) from error
    _tell(terminal, classifier, images, source.preprocess)
    return classifier, images


def pictures(source: Source, data: Path, size: tuple[int, int] | None = None) -> Images:
    """Labelled images; pictures of a folder are brought to the size that the model states."""
    from goodnet.pipelines.load import images_for

    return images_for(source.model, data, source.architecture, size)


def _tell(
    terminal: Terminal, classifier: Classifier, images: Images | None, preprocess: str
) -> None:
    name = classifier.preprocess.name
    stated = preprocess.strip().lower() != "auto"
    if images is None:
        if not stated:
            terminal.say(f"preprocessing: {name}, assumed; state --preprocess or give --data")
        return
    from goodnet.pipelines.evaluate import evaluate
    from goodnet.preprocess import balanced
    from goodnet.render.words import interval

    sample = images.select(balanced(images.labels, SAMPLE, 0))
    accuracy = interval(evaluate(classifier, sample).clean_accuracy, with_n=True)
    how = "as stated" if stated else "found by trying all"
    terminal.say(f"preprocessing: {name}, {how}; clean accuracy {accuracy}")
