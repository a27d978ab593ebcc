"""Which scale, mean and channel order a network was trained on: told, or found by trying all."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from goodnet.classifier import Preprocess
from goodnet.device import FORWARD_CHUNK
from goodnet.errors import GoodnetError
from goodnet.formats.network import Network
from goodnet.images import Images, wrong_size

CHANCE_LEVEL = 1e-3
"""How rarely a network that knows nothing may pass for one that does, over all candidates."""
DROP_LEVEL = 1e-4
"""A candidate this significantly behind the leader is not tried on the remaining images."""
TIE_LEVEL = 0.05
"""Candidates that differ less significantly than this are told apart by their cross-entropy."""
TIE_SHARE = 0.03
"""But not those that know more than this share of the images (and more than one image) less."""


FAR_LARGER = 16.0
"""A candidate that is tied with one of so much smaller a scale is dropped. A network with small
biases keeps its answers when its input is 255 times too large, and is only more certain of them, so
cross-entropy would be misled; one that takes 0..255 loses its answers on 0..1."""


CLOSE = 0.02
"""Candidates whose cross-entropy exceeds the lowest by no more than this are as good."""


def _normalised(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool = False
) -> Preprocess:
    shift = tuple(-m / s for m, s in zip(mean, std, strict=True))
    return Preprocess(name, tuple(1 / s for s in std), shift, bgr)


def _with_bgr(preprocess: Preprocess) -> tuple[Preprocess, ...]:
    # The constants stay where they are, as in the usual slip: OpenCV reads blue first, and the
    # numbers that follow were copied from a recipe for RGB.
    return preprocess, Preprocess(
        f"{preprocess.name},bgr", preprocess.scale, preprocess.shift, bgr=True
    )


CANDIDATES: dict[str, Preprocess] = {
    candidate.name: candidate
    for candidate in (
        *_with_bgr(Preprocess("unit")),
        *_with_bgr(Preprocess("byte", (255.0,))),
        *_with_bgr(Preprocess("signed", (2.0,), (-1.0,))),
        *_with_bgr(_normalised("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        Preprocess("caffe", (255.0,) * 3, (-103.939, -116.779, -123.68), bgr=True),
        *_with_bgr(_normalised("cifar10", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))),
        _normalised("mnist", (0.1307,), (0.3081,)),
        *_with_bgr(Preprocess("centered", (1.0,), (-0.5,))),
    )
}
"""Name -> what is tried, the most plausible first.

Of an image x in [0, 1]: ``unit`` x, ``byte`` 255 x, ``signed`` 2 x - 1, ``centered`` x - 0.5;
``imagenet``, ``cifar10`` and ``mnist`` (one channel) subtract the mean of that data set and divide
by its standard deviation; ``caffe`` is 255 x in BGR minus the ImageNet mean. ``,bgr`` is the same
after the channels were reversed.
"""


def candidates(channels: int) -> list[Preprocess]:
    """What can be tried on images with ``channels`` channels, the most plausible first."""
    return [candidate for candidate in CANDIDATES.values() if _suits(candidate, channels)]


def parse(text: str, channels: int) -> Preprocess:
    """The preprocessing that a user states.

    Args:
        text: a name of :data:`CANDIDATES`, or ``mean=a,b,c;std=a,b,c`` with perhaps ``;bgr``, in
            units of [0, 1] and in the order in which the network takes the channels; one number
            stands for all channels, and ``mean`` or ``std`` may be left out.
        channels: C of the images.

    Raises:
        GoodnetError: D011 for anything else, with the list of names.
    """
    name = text.strip().lower().replace(" ", "")
    found = CANDIDATES.get(name)
    if found is None and ("mean=" in name or "std=" in name):
        found = _custom(name, text)
    if found is None:
        raise _unknown(text, "is not known", channels)
    if not _suits(found, channels):
        raise _unknown(text, f"does not suit images with {channels} channels", channels)
    return found


def detect(
    network: Network, images: Images, *, max_images: int = 500, seed: int = 0
) -> tuple[Preprocess, float, dict[str, float]]:
    """Find the preprocessing under which a network knows its clean images best.

    Every candidate is tried on the same images; one that falls hopelessly behind is dropped
    early. Candidates whose accuracy is neither significantly below the best (exact sign test on
    the images where the two differ) nor far below it are told apart by their cross-entropy, and
    where that is equal by plausibility.

    Args:
        network: takes images in its own scale.
        images: clean and labelled.
        max_images: at most so many are used, balanced over the classes.
        seed: of that sample.

    Returns:
        The preprocessing; its accuracy in [0, 1]; and for every candidate its accuracy on the
        images that it was tried on, the most plausible first.

    Raises:
        GoodnetError: D007 labels outside the classes, D010 nothing beats chance, M009 the answer
            is not a row of class scores, M010 the network fails on this image size, M012 it
            answers with NaN or infinity whatever it is given.
    """
    if network.input_shape is not None and network.input_shape != images.shape:
        raise wrong_size(images.shape, network.input_shape)
    sample = images.select(balanced(images.labels, max_images, seed))
    tried = candidates(images.shape[0])
    logits = _race(network, sample, tried)
    if not any(bool(torch.isfinite(rows).all()) for rows in logits.values()):
        raise GoodnetError(
            "M012",
            "the model answers with NaN or infinity under every preprocessing",
            "check the weights: the model may not have been trained or saved properly",
        )
    hits = {name: _hits(rows, sample.labels) for name, rows in logits.items()}
    table = {name: int(hit.sum()) / len(hit) for name, hit in hits.items()}
    complete = [candidate for candidate in tried if len(hits[candidate.name]) == len(sample)]
    best = max(complete, key=lambda candidate: table[candidate.name])
    check_chance(int(hits[best.name].sum()), sample.labels, logits[best.name].shape[1], table)
    tied = [c for c in complete if _tied(hits[c.name], hits[best.name])]
    smallest = min(max(c.scale) for c in tied)
    tied = [c for c in tied if max(c.scale) <= FAR_LARGER * smallest]
    entropies = {c.name: _entropy(logits[c.name], sample.labels) for c in tied}
    good = min(entropies.values()) + CLOSE
    # In the order of plausibility: a net that is right everywhere is the surer the larger its input
    # is, so that a little less entropy says nothing.
    chosen = next(c for c in tied if entropies[c.name] <= good)
    return chosen, table[chosen.name], table


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """A sample that takes one image of each class in turn, as far as they go.

    Args:
        labels: int64 ``(N,)``.
        count: of images; all of them if there are no more.
        seed: of the draw.

    Returns:
        int64 ``(min(N, count),)``: indexes into ``labels``; any beginning of it is balanced, too.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = torch.argsort(labels[order], stable=True)
    sizes = torch.unique_consecutive(labels[order][grouped], return_counts=True)[1]
    turn = torch.empty_like(grouped)
    turn[grouped] = torch.cat([torch.arange(int(size)) for size in sizes] or [grouped])
    return order[torch.argsort(turn, stable=True)][:count]


def forward(network: Network, batch: Tensor) -> Tensor:
    """Logits ``(n, K)`` of images in the network's own scale, with every failure explained.

    Args:
        network: to be called, without a gradient.
        batch: float32 ``(n, C, H, W)``.

    Raises:
        GoodnetError: M009 for an answer that is not ``(n, K)`` with K at least 2, M010 for a
            network that fails on images of this size.
    """
    try:
        with torch.no_grad():
            logits = network.module(batch)
    except GoodnetError:
        raise
    # What a foreign network raises on a wrong size is up to its author.
    except Exception as error:
        shape = "x".join(str(side) for side in batch.shape[1:])
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise GoodnetError(
            "M010",
            f"the model fails on images of {shape} (channels x height x width): {reason}",
            "give images of the size that the model was trained on",
        ) from error
    answer = str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != len(batch):
        problem = f"answers {len(batch)} images with {answer}, not with a row of scores each"
    elif logits.shape[1] < 2:
        problem = "answers with a single score, and a classifier has at least two classes"
    else:
        return logits
    raise GoodnetError("M009", f"the model {problem}", "give a classifier with one score a class")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Make sure that the labels are classes of the model.

    Args:
        labels: int64 ``(N,)``.
        num_classes: K.

    Raises:
        GoodnetError: D007 for labels outside ``0 .. K - 1``.
    """
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise GoodnetError(
            "D007",
            f"{len(outside)} labels lie outside the model's classes 0 to {num_classes - 1}, "
            f"for instance {int(outside[0])}",
            "number the classes as the model does, from 0 up",
        )


def _suits(candidate: Preprocess, channels: int) -> bool:
    if candidate.bgr and channels != 3:
        return False
    if candidate.name == "mnist":
        return channels == 1
    return all(len(part) in (1, channels) for part in (candidate.scale, candidate.shift))


def _custom(name: str, text: str) -> Preprocess:
    parts = [part for part in name.split(";") if part]
    fields = dict(part.split("=", 1) for part in parts if "=" in part)
    rest = [part for part in parts if "=" not in part]
    if set(fields) - {"mean", "std"} or rest not in ([], ["bgr"]):
        raise _unknown(text, "is not of the form mean=a,b,c;std=a,b,c;bgr")
    try:
        mean = tuple(float(number) for number in fields.get("mean", "0").split(","))
        std = tuple(float(number) for number in fields.get("std", "1").split(","))
    except ValueError as error:
        raise _unknown(text, "has something in it that is not a number") from error
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise _unknown(text, "needs finite means and positive standard deviations")
    width = max(len(mean), len(std))
    if any(len(part) not in (1, width) for part in (mean, std)):
        raise _unknown(text, "has not as many means as standard deviations")
    full = [part * width if len(part) == 1 else part for part in (mean, std)]
    return _normalised(name, full[0], full[1], bgr=bool(rest))


def _unknown(text: str, problem: str, channels: int | None = None) -> GoodnetError:
    names: Iterable[str] = (
        CANDIDATES if channels is None else (c.name for c in candidates(channels))
    )
    return GoodnetError(
        "D011",
        f"the preprocessing {text!r} {problem}",
        f"use auto, {', '.join(names)}, or mean=a,b,c;std=a,b,c[;bgr] in units of [0, 1]",
    )


def _race(network: Network, sample: Images, tried: list[Preprocess]) -> dict[str, Tensor]:
    """Logits by candidate, on all images, or on fewer where the candidate fell behind."""
    running = list(tried)
    rows: dict[str, list[Tensor]] = {candidate.name: [] for candidate in tried}
    hits: dict[str, Tensor] = {}
    for start in range(0, len(sample), FORWARD_CHUNK):
        batch = sample.select(torch.arange(start, min(start + FORWARD_CHUNK, len(sample))))
        for candidate in running:
            logits = forward(network, candidate.apply(batch.floats()))
            check_labels(batch.labels, logits.shape[1])
            rows[candidate.name].append(logits)
            before = hits.get(candidate.name, torch.empty(0, dtype=torch.bool))
            hits[candidate.name] = torch.cat([before, _hits(logits, batch.labels)])
        leader = max((hits[c.name] for c in running), key=lambda hit: int(hit.sum()))
        running = [c for c in running if _behind(hits[c.name], leader) >= DROP_LEVEL]
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Bool ``(n,)``: right answers. A row with NaN or infinity in it is none."""
    finite = torch.isfinite(logits).all(dim=1)
    return (logits.argmax(dim=1) == labels[: len(logits)]) & finite


def _behind(hits: Tensor, leader: Tensor) -> float:
    """One-sided p-value of the exact sign test that ``leader`` is right more often."""
    lost = int((leader & ~hits).sum())
    won = int((hits & ~leader).sum())
    return float(stats.binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0


def _tied(hits: Tensor, leader: Tensor) -> bool:
    """Whether accuracy cannot tell the two apart."""
    lost = int(leader.sum()) - int(hits.sum())
    # With few images nothing is significant, and cross-entropy alone prefers a network that knows
    # nothing to one that is right but too sure of itself: hence the limit on the difference.
    return _behind(hits, leader) * 2 >= TIE_LEVEL and lost <= max(1, TIE_SHARE * len(leader))


def _entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy; infinite for logits that are not finite.

    Training has made it stationary in scale and shift, which are as good as weights of the first
    layer; accuracy hardly changes with the scale where biases are small.
    """
    if not bool(torch.isfinite(logits).all()):
        return math.inf
    return float(functional.cross_entropy(logits, labels))


def check_chance(right: int, labels: Tensor, num_classes: int, table: dict[str, float]) -> None:
    """Makes sure that a classifier is clearly better than guessing.

    Args:
        right: how many of the images it gets right.
        labels: int64 ``(n,)``, of all of them.
        num_classes: K.
        table: what was tried, for the message and for Bonferroni's correction.

    Raises:
        GoodnetError: D010.
    """
    n = len(labels)
    majority = int(torch.bincount(labels).max())
    chance = max(majority / n, 1 / num_classes)
    level = CHANCE_LEVEL / len(table)
    if float(stats.binom.sf(right - 1, n, chance)) < level:
        return
    hint = "check that the images and their labels belong to this model"
    if chance**n >= level:
        hint = f"give more images: {n} cannot tell even a perfect model from chance"
    raise GoodnetError(
        "D010",
        f"the model is right on {right} of {n} clean images at best, and guessing gives "
        f"{chance:.3f}; tried {', '.join(table)}",
        hint + ", or state --preprocess",
    )
