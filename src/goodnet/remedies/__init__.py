"""Remedies: one file each, all with the same signature; :data:`REMEDIES` names them.

A remedy takes a :class:`~goodnet.remedies.patient.Patient` and gives a new classifier; it never
changes the one that it was given. A new one is one new file and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from goodnet.classifier import Classifier
from goodnet.remedies.anchored import HALF, anchored
from goodnet.remedies.filter import filtered
from goodnet.remedies.last_layer import last_layer
from goodnet.remedies.patient import Patient
from goodnet.remedies.unlearning import THOROUGH, unlearning

REMEDIES: dict[str, Callable[[Patient], Classifier]] = {
    "last-layer": last_layer,
    "anchored": anchored,
    "anchored-half": partial(anchored, settings=HALF),
    "unlearning": unlearning,
    "unlearning-thorough": partial(unlearning, settings=THOROUGH),
    "filter": filtered,
}
"""The order in which the default tries them."""

FIRST = ("last-layer", "anchored", "anchored-half")
"""The default tries all of these and takes the best, and the others only if none will do."""

ASKED_FOR = ("filter",)
"""The default leaves these out: who uses the result must know of its one more output."""

__all__ = ["ASKED_FOR", "FIRST", "REMEDIES", "Patient"]
