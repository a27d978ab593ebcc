"""Attacks from their ground truth: the way back from a JSON file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

# The table knows all attacks: importing it fills the list of their kinds.
import goodnet.attacks.table  # noqa: F401 - for what importing it does
from goodnet.attacks.base import KINDS, Attack


def from_ground_truth(data: Mapping[str, Any]) -> Attack:
    """The attack that :meth:`Attack.ground_truth` described.

    Args:
        data: what it returned, also after a way through JSON.

    Returns:
        An attack that stamps and relabels alike.

    Raises:
        KeyError: the kind is unknown.
        TypeError: a part is missing, or there is one too many.
        ValueError: the parts do not fit.
    """
    kind = KINDS[data["attack"]]
    return kind(**{name: _revived(value) for name, value in data.items() if name != "attack"})


def _revived(value: Any) -> Any:
    """The way back from what a ground truth holds; lists become tuples."""
    if isinstance(value, Mapping):
        if "attack" in value:
            return from_ground_truth(value)
        raw = np.frombuffer(base64.b64decode(value["float32"], validate=True), "<f4")
        return torch.from_numpy(raw.astype(np.float32).reshape(value["shape"]))
    return tuple(_revived(part) for part in value) if isinstance(value, list | tuple) else value
