"""Triggers towards no label in particular: one change that takes images of all classes elsewhere.

Two kinds, as with targeted ones: a faint change of the whole image, within an L2 ball, and a patch
in one place. The goal of both is that the true label loses, plus the entropy of the mean
prediction, which keeps the change from driving all images to one label. Once it is known where each
image goes the goal is that it goes there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from goodnet import patches
from goodnet.classifier import Classifier
from goodnet.parallel import Stop, Stopped
from goodnet.perturbation import MOMENTUM, row_margins
from goodnet.trigger import NOBODY, Trigger

FAINT_STEPS, FAINT_IMAGES = 40, 32

FAINT_SPREAD, LOCAL_SPREAD = 2.0, 1.0
"""Weights of the entropy of the mean prediction, in units of the logarithm of the classes."""

LOOK_IMAGES, LOOK_STEPS = 16, 8
"""What a patch is tried with in every place."""

MORE_IMAGES, MORE_STEPS, LEADERS = 48, 16, 2
"""And in the places that lead, and how many do."""

KNOWN_IMAGES = 96
"""Where it is known where each image goes: of many classes fewer tell of a few only."""


def faint(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    budget: float,
    *,
    seed: int,
    stop: Stop,
    known: bool = False,
) -> Trigger:
    """A universal perturbation of at most ``budget`` (L2) from one random start.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1]; the first 32 are used, 96 if ``known``.
        labels: int64 ``(n,)``, to be left.
        budget: the largest L2 norm.
        seed: of the start.
        known: whether ``labels`` are to be reached instead.
        stop: set from outside to give up early.

    Raises:
        Stopped: when ``stop`` was set.
    """
    generator = torch.Generator().manual_seed(seed)
    delta: Tensor = torch.randn(classifier.input_shape, generator=generator).to(images.device)
    delta = 0.3 * budget * delta / delta.norm()
    velocity = torch.zeros_like(delta)
    rate = 4.0 * (1.0 - MOMENTUM) * 2.0 * budget / FAINT_STEPS
    count = KNOWN_IMAGES if known else FAINT_IMAGES
    images, labels = images[:count], labels[:count]
    for _ in range(FAINT_STEPS):
        if stop.is_set():
            raise Stopped
        delta.requires_grad_(True)
        logits = classifier((images + delta).clamp(0.0, 1.0))
        margins = row_margins(logits, labels)
        gain = margins if known else -margins
        scale = gain.detach().abs().median().clamp_min(1e-6)
        # Bounded, so that no image counts for all.
        goal = (gain / scale).clamp_max(1.0).mean()
        if not known:
            goal = goal + FAINT_SPREAD * _spread(logits[None])[0]
        (gradient,) = torch.autograd.grad(goal, delta)
        velocity = MOMENTUM * velocity + gradient / gradient.norm().clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta = delta * (budget / delta.norm().clamp_min(budget))
    delta = delta.cpu()
    extent = delta.abs().amax(0, keepdim=True)
    return Trigger(extent / extent.max().clamp_min(1e-12), delta, NOBODY, "additive")


def local(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    places: Sequence[patches.Place],
    *,
    stop: Stop,
    known: bool = False,
) -> list[Trigger]:
    """Patches in the places where one takes images of most classes elsewhere.

    A little in every place first, then further in the places that lead::

        maximise  -mean softplus( f_y - max_{j != y} f_j ) + H(mean prediction) / log K

    or, where y' is known to which an image goes, ``-mean softplus( max_{j != y'} f_j - f_y' )``.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1]; the first 48 are used, 96 if ``known``.
        labels: int64 ``(n,)``, y.
        places: where a patch may lie.
        stop: set from outside to give up early.
        known: whether ``labels`` are y'.

    Raises:
        Stopped: when ``stop`` was set.
    """
    shape = classifier.input_shape

    def goal(logits: Tensor) -> Tensor:
        rows, count = logits.shape[:2]
        own = row_margins(logits.flatten(0, 1), labels[:count].repeat(rows)).view(rows, count)
        if known:
            return -functional.softplus(-own).mean(1)
        return LOCAL_SPREAD * _spread(logits) - functional.softplus(own).mean(1)

    few, start = images[:LOOK_IMAGES], patches.grey(shape, len(places))
    seen, logits = patches.climb(classifier, few, places, start, goal, LOOK_STEPS, stop=stop)
    order = torch.argsort(goal(logits), descending=True)[:LEADERS]
    leading = [places[index] for index in order.tolist()]
    more = images[: KNOWN_IMAGES if known else MORE_IMAGES]
    final, _ = patches.climb(classifier, more, leading, seen[order], goal, MORE_STEPS, stop=stop)
    return [
        patches.as_trigger(shape, place, pattern, NOBODY)
        for place, pattern in zip(leading, final, strict=True)
    ]


def _spread(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction of ``(R, n, K)``, as a share of the largest; ``(R,)``."""
    mean = logits.softmax(2).mean(1)
    entropy: Tensor = -(mean * (mean + 1e-9).log()).sum(1) / math.log(logits.shape[2])
    return entropy
