"""Back towards the BadNet's weights, where a repair costs more accuracy than it may."""

from __future__ import annotations

from collections.abc import Callable

from goodnet.classifier import Classifier
from goodnet.pipelines.jury import Jury, hear
from goodnet.remedies import Patient
from goodnet.remedies.line import between

STEPS = 8
"""Places on the line that are tried."""

WALKS = 2
"""Candidates that come of it, at most."""


def enough(own: Jury, start: Classifier, cured: Classifier, most: float) -> list[float]:
    """How much of the way from the BadNet to a remedy's result is enough, by the repair's own data.

    Args:
        own: the images and triggers that the remedy was given.
        start: the BadNet.
        cured: what the remedy made.
        most: the share of stamped images that may reach a target.

    Returns:
        At most :data:`WALKS` shares in (0, 1): the least from which on none of the triggers works,
        and the middle between it and the whole way, as the attacker's own trigger is not quite one
        of these. None where anything less than the whole way is too little.
    """
    least = STEPS
    while least > 1:
        there = between(start, cured, (least - 1) / STEPS)
        if any(shown.value > most for shown in hear(own, there).attacks.values()):
            break
        least -= 1
    return [] if least == STEPS else [least / STEPS, (least + STEPS) / (2 * STEPS)]


def partly(make: Callable[[Patient], Classifier], share: float) -> Callable[[Patient], Classifier]:
    """A remedy of which only ``share`` of the way from the BadNet is gone."""
    if share == 1.0:
        return make
    return lambda patient: between(patient.classifier, make(patient), share)
