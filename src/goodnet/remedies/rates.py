"""A learning rate that a network can bear: one that leaves its answers to clean images alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.stats import binom
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.remedies.surroundings import shifted

CHANCE = 0.05
"""Of more changes than :func:`by_chance` allows, if the share were the true one."""

TURNS, COPIES = 6, 2048
"""Shifted copies of each image, fewer where that makes more than so many."""


def by_chance(share: float, images: int) -> int:
    """The most changes among ``images`` that do not speak against a true share of ``share``.

    By the exact binomial test, one-sided: more would be seen in at most :data:`CHANCE` of all sets
    of so many images.
    """
    return int(binom.ppf(1.0 - CHANCE, images, share))


def bearable(
    train: Callable[[float], Classifier],
    start: Classifier,
    images: Tensor,
    *,
    rate: float,
    tries: int,
    most_changed: float,
    most_lost: float,
    seed: int,
    or_last: bool = False,
) -> Classifier:
    """What ``train`` makes with the largest rate that is not too high.

    A smaller rate is no surer: on its way a network may lose more than it has lost at the end.

    A network learns a few images by heart, so that their answers tell little of what it lost: their
    shifted copies tell it almost to the point (``benchmarks/HISTORY.md``).

    Args:
        train: from a rate to a network.
        start: what it begins with.
        images: clean, float32 ``(n, C, H, W)`` in [0, 1].
        rate: the first that is tried; every further one is a quarter of the one before.
        tries: how many, at least 1.
        most_changed: of the answers to ``images``, how many; one is always let pass.
        most_lost: the share of shifted copies by which fewer may be answered like their image.
        seed: of the copies.
        or_last: take that of the last rate where all are too high, and let others judge it.

    Raises:
        GoodnetError: R011 when all of them are too high.
    """
    answers = start.logits(images).argmax(1)
    turns = max(1, min(TURNS, COPIES // len(images)))

    def steady(network: Classifier) -> float:
        generator = torch.Generator().manual_seed(seed)
        same = [
            network.logits(shifted(images, generator)).argmax(1) == answers for _ in range(turns)
        ]
        return float(torch.cat(same).float().mean())

    least = steady(start) - most_lost
    for turn in range(tries):
        cured = train(rate / 4**turn)
        now = cured.logits(images)
        changed = int((now.argmax(1) != answers).sum())
        if (
            bool(now.isfinite().all())
            and changed <= max(1, most_changed)
            and steady(cured) >= least
        ):
            return cured
    if or_last:
        return cured
    raise GoodnetError(
        "R011",
        "every learning rate changes what the model says of clean images",
        "give more clean images, or take another remedy",
    )
