"""A learning rate that a network can bear: one that leaves its answers to clean images alone."""

from __future__ import annotations

from collections.abc import Callable

from scipy.stats import binom
from torch import Tensor

from goodnet.classifier import Classifier

CHANCE = 0.05
"""Of more changes than :func:`by_chance` allows, if the share were the true one."""


def by_chance(share: float, images: int) -> int:
    """The most changes among ``images`` that do not speak against a true share of ``share``.

    By the exact binomial test, one-sided: more would be seen in at most :data:`CHANCE` of all sets
    of so many images.
    """
    return int(binom.ppf(1.0 - CHANCE, images, share))


def bearable(
    train: Callable[[float], Classifier],
    images: Tensor,
    answers: Tensor,
    *,
    rate: float,
    tries: int,
    most_changed: float,
) -> Classifier:
    """What ``train`` makes with the largest rate that is not too high; of the last one, if all are.

    Args:
        train: from a rate to a network.
        images: clean, float32 ``(n, C, H, W)`` in [0, 1].
        answers: the logits ``(n, K)`` that they had before.
        rate: the first that is tried; every further one is a quarter of the one before.
        tries: how many, at least 1.
        most_changed: of the answers to ``images``, how many; one is always let pass.
    """
    for turn in range(tries):
        cured = train(rate / 4**turn)
        now = cured.logits(images)
        changed = int((now.argmax(1) != answers.argmax(1)).sum())
        if bool(now.isfinite().all()) and changed <= max(1, most_changed):
            break
    return cured
