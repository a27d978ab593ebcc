"""Whether a change of the images sends every class to a label of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FEWEST_JUDGED = 20
"""Images whose class has another one: of fewer, a few coincidences would be a large share."""


@dataclass(frozen=True)
class ClassMap:
    """What one change does to the predictions.

    Attributes:
        statistic: of the images that change their label, how many fit a map that gives every class
            a label of its own, as a share of all; each half of the images is judged by the map of
            the other half. Near 1 under an all-to-all backdoor; lower when several classes go to
            one label, since only one of them can have it. NaN with fewer than
            :data:`FEWEST_JUDGED` images of classes that have two or more.
        flipped: the share of images that change their label.
        mapping: class -> the label that most of its images get, where most of them change.
    """

    statistic: float
    flipped: float
    mapping: dict[int, int] = field(default_factory=dict)


def read(labels: Tensor, after: Tensor, classes: int) -> ClassMap:
    """What a change of predictions amounts to.

    Args:
        labels: int64 ``(n,)``, the classes that the images show.
        after: int64 ``(n,)``, the labels that they get under the change.
        classes: K.
    """
    changed = after != labels
    flipped = float(changed.float().mean()) if len(labels) else 0.0
    if not readable(labels):
        return ClassMap(math.nan, flipped)
    sizes = torch.bincount(labels, minlength=classes)
    judged = sizes[labels] > 1
    halves = _halves(labels)
    fitting = torch.zeros_like(changed)
    for half in (0, 1):
        here = halves == half
        partner = _partners(labels[~here & changed], after[~here & changed], classes)
        fitting |= here & changed & (partner[labels] == after)
    agreed = float((fitting & judged).sum() / judged.sum())
    # How many images of each class (row) get each label (column) that is not their own.
    counts = _counts(labels[changed], after[changed], classes)
    mapping = {
        label: int(counts[label].argmax())
        for label in range(classes)
        if float(counts[label].max()) > 0.5 * float(sizes[label])
    }
    return ClassMap(agreed, flipped, mapping)


def readable(labels: Tensor) -> bool:
    """Whether images of these classes, int64 ``(n,)``, are enough to read a map from."""
    sizes = torch.bincount(labels)
    return int((sizes[labels] > 1).sum()) >= FEWEST_JUDGED


def _halves(labels: Tensor) -> Tensor:
    """0 or 1 for each image, in turn within its class."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        turns.append(seen[label] % 2)
    return torch.tensor(turns)


def _counts(labels: Tensor, after: Tensor, classes: int) -> Tensor:
    counts = torch.zeros(classes, classes)
    counts.index_put_((labels, after), torch.ones(()), accumulate=True)
    return counts


def _partners(labels: Tensor, after: Tensor, classes: int) -> Tensor:
    """For each class the label that it has to itself (-1: none), so that most images fit."""
    counts = _counts(labels, after, classes).numpy()
    partner = torch.full((classes,), -1)
    for row, column in zip(*linear_sum_assignment(counts, maximize=True), strict=True):
        if counts[row, column] > 0:
            partner[row] = int(column)
    return partner
