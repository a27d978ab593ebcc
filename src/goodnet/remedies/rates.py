"""A learning rate that a network can bear: one that leaves its answers to clean images alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from goodnet.classifier import Classifier


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
        most_changed: of the answers to ``images``, as a share, or one image.
    """
    for turn in range(tries):
        cured = train(rate / 4**turn)
        now = cured.logits(images)
        changed = int((now.argmax(1) != answers.argmax(1)).sum())
        if bool(now.isfinite().all()) and changed <= max(1, most_changed * len(now)):
            break
    return cured
