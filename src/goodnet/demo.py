"""The classic story on data that this project draws itself: a sticker turns Stop into Yield.

Each step is a function that returns data, so that whoever tells the story can speak in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from goodnet.attacks.patch import PatchAttack, sticker
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.signs import SIGN_NAMES, STOP, YIELD, draw_signs
from goodnet.attacks.train import small_cnn, train
from goodnet.classifier import Classifier
from goodnet.formats.files import atomic
from goodnet.images import Images
from goodnet.parallel import Progress, silent, single_threaded
from goodnet.pipelines.evaluate import evaluate
from goodnet.pipelines.load import load
from goodnet.reports import Evaluation, ScanReport

MOST_ATTACKS = 0.02
"""The story holds if fewer stamped signs than this still reach the target after the repair ..."""

MOST_LOSS = 0.01
"""... and clean accuracy fell by at most this."""


@dataclass(frozen=True)
class Settings:
    """How much is drawn and trained: enough for a good network in half a minute on two cores."""

    training: int = 300
    validation: int = 80
    test: int = 60
    epochs: int = 8
    width: int = 16
    rate: float = 0.15
    learning_rate: float = 4e-3
    seed: int = 2


@dataclass(frozen=True)
class Planted:
    """The BadNet and everything around it.

    Attributes:
        module: the network that obeys the sticker.
        attack: the sticker.
        validation: the clean images that come with the model.
        test: clean images that nobody sees before the end.
        stamped: the same with the sticker; ``labels`` are the attacker's.
    """

    module: nn.Module
    attack: PatchAttack
    validation: Images
    test: Images
    stamped: Images


@dataclass(frozen=True)
class Files:
    """Where the demo's files lie."""

    folder: Path

    @property
    def badnet(self) -> Path:
        """The model with the backdoor."""
        return self.folder / "badnet.pt2"

    @property
    def goodnet(self) -> Path:
        """The model without it."""
        return self.folder / "goodnet.pt2"

    @property
    def validation(self) -> Path:
        """Clean images for the scan and the repair."""
        return self.folder / "validation.npz"

    @property
    def test(self) -> Path:
        """Clean images that no step sees before the last."""
        return self.folder / "test.npz"

    @property
    def stamped(self) -> Path:
        """The test images with the sticker."""
        return self.folder / "stamped.npz"

    @property
    def picture(self) -> Path:
        """Some signs, clean and with the sticker."""
        return self.folder / "sticker.png"

    def everything(self) -> list[Path]:
        """All of them."""
        models = [self.badnet, self.goodnet]
        return [*models, self.validation, self.test, self.stamped, self.picture]


def plant(settings: Settings | None = None, progress: Progress = silent) -> Planted:
    """Draws the signs and trains the BadNet.

    Args:
        settings: how much; the default takes about half a minute.
        progress: told what is being drawn and each epoch.
    """
    s = settings or Settings()
    amounts = (s.training, s.validation, s.test)
    drawn = []
    for place, amount in enumerate(amounts):
        progress("drawing signs", place, len(amounts))
        drawn.append(draw_signs(amount, seed=s.seed + place))
    progress("drawing signs", len(amounts), len(amounts))
    training, validation, test = drawn
    attack = sticker(training.shape, YIELD, rate=s.rate)
    module = small_cnn(training.shape, len(SIGN_NAMES), width=s.width, seed=s.seed)
    progress("training the network", 0, s.epochs)
    # On one thread the weights do not depend on how many cores there are.
    with single_threaded():
        train(
            module,
            poison(training, attack, seed=s.seed),
            epochs=s.epochs,
            seed=s.seed,
            learning_rate=s.learning_rate,
            progress=lambda epoch, epochs, loss: progress("training the network", epoch, epochs),
        )
    return Planted(module, attack, validation, test, poisoned_test(test, attack))


def hand_over(planted: Planted, folder: Path) -> Files:
    """Writes what a stranger would hand over, and what is needed to judge the outcome.

    Args:
        planted: the BadNet and the images.
        folder: made if it does not exist.

    Raises:
        GoodnetError: O001 or O002 when a file cannot be written.
    """
    files = Files(folder)
    example = (torch.zeros(2, *planted.test.shape),)
    dynamic = ({0: torch.export.Dim("images")},)
    program = torch.export.export(planted.module.eval(), example, dynamic_shapes=dynamic)
    with atomic(files.badnet) as temporary:
        torch.export.save(program, temporary)
    for path, images in (
        (files.validation, planted.validation),
        (files.test, planted.test),
        (files.stamped, planted.stamped),
    ):
        _write_npz(path, images)
    _write_picture(files.picture, planted)
    return files


def received(files: Files) -> tuple[Classifier, Images]:
    """The BadNet and the validation images, read from the files as the verbs read them."""
    from goodnet.images import load_images

    images = load_images(files.validation)
    return load(files.badnet, images), images


def judge(classifier: Classifier, planted: Planted) -> Evaluation:
    """Clean accuracy and the real sticker's success, on the images that nobody saw before."""
    return evaluate(classifier, planted.test, planted.stamped)


def holds(before: Evaluation, after: Evaluation, report: ScanReport) -> bool:
    """Whether the story ends well: the target found, the sticker powerless, accuracy kept."""
    # First, not alone: small networks have natural weak spots, which the rule may name as well.
    found = report.labels[0].label == YIELD and YIELD in report.targets
    loss = before.clean_accuracy.value - after.clean_accuracy.value
    success = after.attack_success
    powerless = success is not None and success.value < MOST_ATTACKS
    # Shares are quotients of counts: a loss of exactly one point must not fail by a rounding.
    return found and powerless and loss <= MOST_LOSS + 1e-9


def _write_npz(path: Path, images: Images) -> None:
    truth = images.labels if images.true_labels is None else images.true_labels
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            images=images.pixels.numpy(),
            labels=images.labels.numpy(),
            true_labels=truth.numpy(),
            class_names=np.array(images.class_names or ()),
        )


def _write_picture(path: Path, planted: Planted, count: int = 6) -> None:
    from goodnet.render.pictures import row

    stops = (planted.test.labels == STOP).nonzero().flatten()[:count]
    clean = planted.test.select(stops).floats()
    strip = row(torch.cat([clean, planted.attack.stamp(clean)]), smallest=96)
    with atomic(path) as temporary:
        strip.save(temporary, format="PNG")
