"""What every scan begins with: its arguments checked, its images split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.evidence import Case
from goodnet.evidence.lean import lean
from goodnet.evidence.signature import signature
from goodnet.evidence.store import open_store
from goodnet.family import family
from goodnet.images import Images
from goodnet.parallel import Progress
from goodnet.pipelines.conclude import Split
from goodnet.pipelines.load import quicker, weights_sha256
from goodnet.pipelines.placing import PROBES, in_half, threads
from goodnet.preprocess import check_chance
from goodnet.reports import Family
from goodnet.version import __version__

METHODS = ("default", "neural-cleanse")

FIT_IMAGES = 128
"""At most so many images, and three fifths, are for fitting triggers. A mask has to work on all of
them, a mini-batch at a time: on a few, natural patches are as small as planted ones."""

HELD_OUT = 200


@dataclass(frozen=True)
class Begun:
    """A scan before anything is measured.

    Attributes:
        case: what the channels are given.
        split: the images in two.
        right: bool ``(N,)``, whether the model classifies an image correctly.
        leaning: label -> how far clean images lean to it (:mod:`goodnet.evidence.lean`).
        signatures: label -> how far its row of the last layer draws on what clean images do not
            use, by two numbers (:mod:`goodnet.evidence.signature`); empty where there is no such
            layer.
        family: of networks, which its scores are held against.
        wanted: the labels to look at.
        clean_margin: as of :class:`goodnet.pipelines.conclude.Measured`.
        images: how many there are.
    """

    case: Case
    split: Split
    right: Tensor
    leaning: dict[int, float]
    signatures: dict[int, tuple[float, ...]]
    family: Family
    wanted: list[int]
    clean_margin: float
    images: int


def begin(
    classifier: Classifier,
    images: Images,
    method: str,
    labels: Sequence[int] | None,
    seed: int,
    workers: int | None,
    progress: Progress,
    deadline: float | None,
    state: Path | None,
) -> Begun:
    """Checks what a scan is given, and splits the images; the classifier is on its device."""
    check_seed(seed)
    wanted = _wanted(classifier, method, labels)
    answers = classifier.logits(images.pixels)
    if not bool(torch.isfinite(answers).all()):
        raise GoodnetError(
            "M012",
            "the model answers with NaN or infinity on the clean images",
            "check the preprocessing and the weights",
        )
    _check_gradients(classifier, images)
    right = answers.argmax(1) == images.labels
    stated = {classifier.preprocess.name: float(right.float().mean())}
    check_chance(int(right.sum()), images.labels, classifier.num_classes, stated)
    split = split_images(images, right, seed=seed, fit_all=method == "neural-cleanse")
    quick = in_half(quicker(classifier, split.fit[:PROBES]), split.fit)
    store = None
    if state is not None:
        store = open_store(state, _key(quick, classifier, split, answers, labels, method, seed))
    place = quick.device.place
    case = Case(
        quick,
        split.fit.to(place),
        split.fit_labels.to(place),
        seed,
        threads(quick, workers, split.fit),
        progress,
        deadline,
        store,
    )
    top = answers.topk(2).values
    clean_margin = float((top[:, 0] - top[:, 1]).median())
    leaning = lean(answers[right], images.labels[right]).values
    leaning_to = {label: row[0] for label, row in leaning.items()}
    signatures = signature(classifier, images).values if method == "default" else {}
    few = images.select(torch.arange(min(2, len(images)))).floats().to(place)
    kind = family(classifier, few) if method == "default" else "other"
    return Begun(
        case, split, right, leaning_to, signatures, kind, wanted, clean_margin, len(images)
    )


def _check_gradients(classifier: Classifier, images: Images) -> None:
    """Refuses a network that answers, but whose answers cannot be followed back to the image."""
    probe = images.select(torch.arange(2)).floats().to(classifier.device.place)
    answers = classifier(probe.requires_grad_(True))
    if not answers.requires_grad:
        raise GoodnetError(
            "M009",
            "the model gives no gradients, and triggers are found along them",
            "export the network as it was trained: without no_grad, detach or rounding inside",
        )


def _key(
    quick: Classifier,
    classifier: Classifier,
    split: Split,
    answers: Tensor,
    labels: Sequence[int] | None,
    method: str,
    seed: int,
) -> str:
    """All that the numbers of a scan depend on: what the network is, by its weights and by what it
    answers (code of the user's may have changed between two runs), how it is computed, the images,
    the settings.
    """
    digest = hashlib.sha256()
    for tensor in (split.fit, split.fit_labels, answers.argmax(1)):
        digest.update(tensor.contiguous().numpy().tobytes())
    parts = (
        __version__,
        classifier.sha256,
        weights_sha256(classifier.module),
        classifier.preprocess,
        classifier.input_shape,
        classifier.num_classes,
        digest.hexdigest(),
        None if labels is None else sorted(set(labels)),
        quick.device,
        quick.half,
        method,
        seed,
    )
    return "\n".join(map(str, parts))


def check_seed(seed: int) -> None:
    """Refuses a seed that no generator takes.

    Raises:
        GoodnetError: R003.
    """
    if not 0 <= seed < 2**32:
        raise GoodnetError("R003", f"{seed} is no seed", "give a whole number from 0 to 4294967295")


def _wanted(classifier: Classifier, method: str, labels: Sequence[int] | None) -> list[int]:
    if method not in METHODS:
        raise GoodnetError(
            "R003", f"unknown method '{method}'", f"choose one of {', '.join(METHODS)}"
        )
    if labels is None:
        return list(range(classifier.num_classes))
    for label in labels:
        if not 0 <= label < classifier.num_classes:
            raise GoodnetError(
                "R003",
                f"label {label} is not one of the model's {classifier.num_classes} classes",
                f"give labels from 0 to {classifier.num_classes - 1}",
            )
    return sorted(set(labels))


def split_images(images: Images, right: Tensor, *, seed: int, fit_all: bool = False) -> Split:
    """Splits the images that the model gets right, so that each part shows as many classes as it
    can; where fewer than 10 are right, all images are used.

    Args:
        images: the clean images.
        right: bool ``(N,)``, whether the model classifies an image correctly.
        seed: of the order.
        fit_all: fit to four fifths instead of a small batch (Neural Cleanse's mini-batches).
    """
    usable = torch.nonzero(right)[:, 0] if int(right.sum()) >= 10 else torch.arange(len(images))
    generator = torch.Generator().manual_seed(seed)
    usable = usable[torch.randperm(len(usable), generator=generator)]
    seen: dict[int, int] = {}
    rounds = []
    for label in images.labels[usable].tolist():
        seen[label] = seen.get(label, 0) + 1
        rounds.append(seen[label])
    order = usable[torch.argsort(torch.tensor(rounds), stable=True)]
    size = len(order) * 4 // 5 if fit_all else min(FIT_IMAGES, len(order) * 3 // 5)
    fit, held = order[:size], order[size : size + HELD_OUT]
    return Split(
        images.select(fit).floats(),
        images.labels[fit],
        images.select(held).floats(),
        images.labels[held],
    )
