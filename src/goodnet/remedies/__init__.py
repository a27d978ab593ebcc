"""Remedies: one file each, all with the same signature; :data:`REMEDIES` names them.

A remedy takes a :class:`~goodnet.remedies.patient.Patient` and gives a new classifier; it never
changes the one that it was given. A new one is one new file and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from goodnet.classifier import Classifier
from goodnet.remedies.adversarial import adversarial
from goodnet.remedies.anchored import HALF, anchored
from goodnet.remedies.filter import filtered
from goodnet.remedies.fine_pruning import fine_pruning
from goodnet.remedies.fine_tuning import fine_tuning
from goodnet.remedies.last_layer import FIRM, last_layer
from goodnet.remedies.patient import Patient
from goodnet.remedies.pruning import pruning
from goodnet.remedies.unlearning import THOROUGH, unlearning

Remedy = Callable[[Patient], Classifier]

REMEDIES: dict[str, Remedy] = {
    "last-layer": last_layer,
    "anchored": anchored,
    "anchored-half": partial(anchored, settings=HALF),
    "last-layer-firm": partial(last_layer, settings=FIRM),
    "unlearning": unlearning,
    "unlearning-thorough": partial(unlearning, settings=THOROUGH),
    "filter": filtered,
    "pruning": pruning,
    "adversarial": adversarial,
    "fine-tuning": fine_tuning,
    "fine-pruning": fine_pruning,
}
"""The order in which the default tries them."""

FIRST = ("last-layer", "anchored", "anchored-half", "last-layer-firm")
"""The default tries all of these and takes the best, and the others only if none will do."""

COSTLY = ("last-layer-firm",)
"""Taken where none of the others stands as well: on few images their cost does not show."""

BASELINES = ("fine-tuning", "fine-pruning")
"""What everybody compares with: they cost accuracy and mostly leave the backdoor."""

BY_NAME = (*BASELINES, "filter")
"""The default leaves these out; who uses a filtered network must know of its one more output."""

WITHOUT_TRIGGERS = (*BASELINES, "adversarial")
"""These do not look at the triggers, so that one result is for all labels."""

OF_ROWS = ("last-layer", "last-layer-firm", "filter", "pruning")
"""These look at what each target has to itself, of which a map of all classes leaves nothing."""

__all__ = [
    "BASELINES",
    "BY_NAME",
    "COSTLY",
    "FIRST",
    "OF_ROWS",
    "REMEDIES",
    "WITHOUT_TRIGGERS",
    "Patient",
    "Remedy",
]
