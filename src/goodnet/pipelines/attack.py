"""Plant a backdoor: train a network on a poisoned set, and measure that it obeys."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.attacks.base import Attack
from goodnet.attacks.networks import build
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.scene import Scene
from goodnet.attacks.table import Option, make_attack
from goodnet.attacks.train import accuracy, train
from goodnet.classifier import Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats.files import atomic
from goodnet.images import Images
from goodnet.parallel import single_threaded
from goodnet.preprocess import CANDIDATES, parse

MODEL_SUFFIXES = (".keras", ".h5", ".pt2")
"""What :func:`write_model` can write."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained.

    Attributes:
        architecture: one of :data:`goodnet.attacks.networks.ARCHITECTURES`.
        epochs: how often each image is seen.
        learning_rate: the peak of a one-cycle schedule for Adam.
        shift: images are moved by up to so many pixels.
        mirror: images are turned left to right at random.
        preprocess: what the network takes: ``unit``, ``byte``, ``signed``, ``imagenet`` ...
        seed: of the weights, of the order of the images, of the choice of those that are poisoned.
    """

    architecture: str = "cnn"
    epochs: int = 8
    learning_rate: float = 3e-3
    shift: int = 0
    mirror: bool = False
    preprocess: str = "unit"
    seed: int = 0


class Scaled(nn.Module):
    """A network with its preprocessing in front: images in [0, 1] to logits.

    Attributes:
        preprocess: the step in front.
        inner: the network as it is handed over.
    """

    def __init__(self, preprocess: Preprocess, inner: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """``(n, C, H, W)`` in [0, 1] to ``(n, K)``."""
        logits: Tensor = self.inner(self.preprocess.apply(images))
        return logits


def teach(
    images: Images,
    num_classes: int,
    recipe: Recipe,
    *,
    start: nn.Module | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Scaled:
    """Trains a network, on one thread, so that the weights do not depend on the number of cores.

    Args:
        images: what to train on; ``labels`` are the goal.
        num_classes: K.
        recipe: the network and how it is trained.
        start: a network of the same recipe to go on from, which is not changed; fresh weights
            without.
        progress: called after each epoch with its number, the number of epochs and the loss.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: the recipe does not fit the images.
        GoodnetError: D011 for a preprocessing that is not known.
    """
    preprocess = parse(recipe.preprocess, images.shape[0])
    inner = build(recipe.architecture, images.shape, num_classes, seed=recipe.seed)
    if start is not None:
        inner.load_state_dict(_unfolded(start))
    # Weights of the usual size cannot follow inputs of up to 255: a network for bytes is trained
    # on [0, 1], and its first weights are divided by 255 afterwards.
    bytes_ = preprocess.name.startswith("byte")
    front = replace(preprocess, scale=(1.0,)) if bytes_ else preprocess
    network = Scaled(front, inner)
    with single_threaded():
        train(
            network,
            images,
            epochs=recipe.epochs,
            seed=recipe.seed,
            learning_rate=recipe.learning_rate,
            shift=recipe.shift,
            mirror=recipe.mirror,
            progress=progress,
        )
    if bytes_:
        with torch.no_grad():
            _first(inner).weight /= CANDIDATES["byte"].scale[0]
    return Scaled(preprocess, inner).eval()


def measure(
    network: nn.Module, images: Images, attack: Attack | None
) -> tuple[float, float | None]:
    """Clean accuracy and attack success, both in [0, 1]; the latter is 0 without an attack, and
    None where the attack is meant for none of the images.

    Raises:
        ValueError: there is no image.
    """
    with single_threaded():
        clean = accuracy(network, images)
        if attack is None:
            return clean, 0.0
        if not bool(attack.victims(images.labels).any()):
            return clean, None
        return clean, accuracy(network, poisoned_test(images, attack))


def badnet(
    images: Images,
    attack: Attack,
    num_classes: int,
    recipe: Recipe,
    *,
    start: nn.Module | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Scaled:
    """Trains a BadNet; see :func:`teach` for the arguments.

    Args:
        images: the clean training set.
        attack: how it is poisoned.
        num_classes: K.
        recipe: as in :func:`teach`.
        start: as in :func:`teach`.
        progress: as in :func:`teach`.
    """
    lessons = poison(images, attack, seed=recipe.seed)
    return teach(lessons, num_classes, recipe, start=start, progress=progress)


def plant(
    name: str,
    images: Images,
    num_classes: int,
    recipe: Recipe,
    *,
    target: int,
    options: Mapping[str, Option],
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Attack, Scaled]:
    """Makes an attack for a training set and trains the BadNet.

    An attack that wants a clean network gets one of the same recipe. Only a Trojan goes on from it.

    Args:
        name: one of :data:`goodnet.attacks.table.ATTACKS`.
        images: the clean training set.
        num_classes: K.
        recipe: as in :func:`teach`.
        target: the label that stamped images get.
        options: of the attack.
        progress: as in :func:`teach`.

    Raises:
        ValueError: an option or the recipe does not fit.
        GoodnetError: D011 for a preprocessing that is not known.
    """
    found: list[Scaled] = []

    def network() -> Scaled:
        if not found:
            found.append(teach(images, num_classes, recipe, progress=progress))
        return found[0]

    scene = Scene(images, num_classes, recipe.seed, network)
    with single_threaded():
        attack = make_attack(name, scene, target=target, options=options)
    start = network() if attack.afterwards else None
    return attack, badnet(images, attack, num_classes, recipe, start=start, progress=progress)


def check_format(recipe: Recipe, images: Images, num_classes: int, path: Path) -> None:
    """Makes sure, before anything is trained, that :func:`write_model` can write the result.

    Args:
        recipe: the network.
        images: of which it is trained.
        num_classes: K.
        path: what is to be written; nothing is written there.

    Raises:
        ValueError: the recipe does not fit the images.
        GoodnetError: O004, as :func:`write_model`, or D011 for an unknown preprocessing.
    """
    if path.suffix not in MODEL_SUFFIXES:
        raise GoodnetError(
            "O004",
            f"{path.name} ends in none of {', '.join(MODEL_SUFFIXES)}",
            "name the output badnet.keras or badnet.pt2",
        )
    preprocess = parse(recipe.preprocess, images.shape[0])
    network = Scaled(preprocess, build(recipe.architecture, images.shape, num_classes))
    if path.suffix != ".pt2":
        with tempfile.TemporaryDirectory() as folder:
            write_model(network, images.shape, Path(folder) / path.name)


def ground_truth(attack: Attack | None, recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """What there is to know about a model of one's own, as data for a JSON file.

    Args:
        attack: None for a clean model.
        recipe: how it was trained.
        num_classes: K.

    Returns:
        ``backdoored``, ``targets``, ``num_classes``, ``recipe`` and ``attack``, from which
        :func:`goodnet.attacks.revive.from_ground_truth` makes the attack again.
    """
    return {
        "backdoored": attack is not None,
        "targets": list(attack.targets(num_classes)) if attack else [],
        "num_classes": num_classes,
        "recipe": dict(vars(recipe)),
        "attack": attack.ground_truth() if attack else None,
    }


def write_model(network: Scaled, input_shape: tuple[int, int, int], path: Path) -> None:
    """Writes the bare network, which takes images on its own scale; all or nothing.

    Args:
        network: from :func:`teach`.
        input_shape: ``(C, H, W)``.
        path: ends in one of :data:`MODEL_SUFFIXES`.

    Raises:
        GoodnetError: O001 or O002 when it cannot be written, O004 for another suffix, and for a
            Keras file without Keras or of a network that Keras has no layers for.
    """
    if path.suffix not in MODEL_SUFFIXES:
        raise GoodnetError(
            "O004",
            f"{path.name} ends in none of {', '.join(MODEL_SUFFIXES)}",
            "name the output badnet.keras or badnet.pt2",
        )
    inner = network.inner.eval()
    with atomic(path) as temporary:
        if path.suffix == ".pt2":
            batch = torch.export.Dim("batch", min=1, max=65536)
            example = torch.zeros(2, *input_shape)
            program = torch.export.export(inner, (example,), dynamic_shapes=({0: batch},))
            torch.export.save(program, temporary)
        else:
            # Late: only Keras files need the writer.
            from goodnet.formats.keras_export import write_keras

            write_keras(inner, input_shape, temporary)


def _first(network: nn.Module) -> nn.Conv2d:
    """The convolution that sees the image."""
    return next(part for part in network.modules() if isinstance(part, nn.Conv2d))


def _unfolded(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a :class:`Scaled` as they were in training."""
    inner = network.inner if isinstance(network, Scaled) else network
    weights = {name: value.clone() for name, value in inner.state_dict().items()}
    if isinstance(network, Scaled) and network.preprocess.name.startswith("byte"):
        first = _first(inner)
        name = next(name for name, part in inner.named_modules() if part is first)
        weights[f"{name}.weight"] *= CANDIDATES["byte"].scale[0]
    return weights
