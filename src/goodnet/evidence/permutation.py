"""One trigger for all classes at once, towards no label in particular: all-to-all backdoors.

A universal change of a clean network drives images of all classes to the same one or two labels.
Under an all-to-all backdoor (y -> y + 1, or any other map) it drives each class to a label of its
own. Misses backdoors with one target: a complement to the other channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from goodnet import patches
from goodnet.evidence.case import Case
from goodnet.evidence.class_map import ClassMap, read, readable
from goodnet.evidence.untargeted import KNOWN_IMAGES, faint, local
from goodnet.parallel import Stop, run_blocks
from goodnet.trigger import NOBODY, Trigger

Search = Callable[[Stop], list[Trigger]]

KEPT, WORKS, ALIKE = 3, 0.5, 0.75
"""Triggers of one map that are wanted, the least success of one, and the least beside the best."""

JUDGED = 256
"""Images that are stamped at a time."""

FITTED = 2 / 3
"""The share of few images that they are fitted to; the others judge them."""

BUDGETS = (0.09, 0.15)
"""L2 budgets, as shares of the square root of the number of values in an image."""

KNOWN_BUDGETS = (0.045, 0.09)
"""Where the map is known: with .15 a clean network of four classes follows any, with 31 to 69 % of
images that the change was not fitted to; with .09 with at most 19 %."""


@dataclass(frozen=True)
class Permutation(ClassMap):
    """What the trigger that permutes the classes most does to images that it was not fitted to.

    Attributes:
        trigger: None where nothing was measured.
        cut_off: whether there was no time for all of the search.
    """

    trigger: Trigger | None = None
    cut_off: bool = False


NOT_MEASURED = Permutation(math.nan, math.nan)


def permutation(case: Case, held: Tensor, held_labels: Tensor) -> Permutation:
    """Looks for a change, faint or in one place, that permutes the classes.

    Args:
        case: the classifier, and the images that triggers are fitted to.
        held: float32 ``(n, C, H, W)`` in [0, 1], images that they are judged on.
        held_labels: int64 ``(n,)``.
    """
    # Of the whole model, so in no share of it.
    if case.share is not None or not readable(held_labels):
        return NOT_MEASURED
    searches = _searches(case)

    def measure(search: Search, stop: Stop) -> Permutation:
        judged = [_judged(case, trigger, held, held_labels) for trigger in search(stop)]
        return max(judged, key=_order, default=NOT_MEASURED)

    found = run_blocks(
        measure,
        searches,
        stage="looking for a permutation of the classes",
        size=lambda _: 1,
        workers=case.workers,
        progress=case.progress,
        deadline=case.deadline,
    )
    best = max(found.values(), key=_order, default=NOT_MEASURED)
    return replace(best, cut_off=len(found) < len(searches))


def mapped_by(case: Case, mapping: Mapping[int, int]) -> list[Trigger]:
    """The changes that carry most images where a map of the classes says, the best one first.

    The map is known by now, so that each image has a label to be led to.

    Args:
        case: the classifier, and the images that the changes are fitted to and tried on; the first
            ones should be of all classes.
        mapping: class -> the label that its images are to get.

    Returns:
        At most :data:`KEPT`, of :data:`goodnet.trigger.NOBODY`; none where less than half of the
        images are carried that it was not fitted to.
    """
    wanted = torch.tensor([mapping.get(label, NOBODY) for label in case.fit_labels.tolist()])
    chosen = wanted != NOBODY
    device = case.fit.device
    images, wanted = case.fit[chosen.to(device)], wanted[chosen]
    # A perturbation learns as many images as these by heart, each with its label: of a network of
    # 43 classes all of 28, and a third of others. So others judge it.
    most = KNOWN_IMAGES if case.classifier.device.is_processor else case.classifier.device.chunk
    fitted = min(KNOWN_IMAGES, most, math.ceil(FITTED * len(wanted)))
    moved = replace(case, fit=images[:fitted], fit_labels=wanted[:fitted].to(device))
    # Triggers lie on the processor; the classifier takes images from anywhere.
    judges, goals = images[fitted:].cpu(), wanted[fitted:]

    def measure(search: Search, stop: Stop) -> list[tuple[float, Trigger]]:
        found = []
        for trigger in search(stop) if len(goals) else []:
            parts = [
                case.classifier.logits(trigger.apply(some)) for some in torch.split(judges, JUDGED)
            ]
            after = torch.cat(parts).argmax(1)
            found.append((float((after == goals).float().mean()), trigger))
        return found

    parts = run_blocks(
        measure,
        _searches(moved, known=True),
        stage="reversing a map of the classes",
        size=lambda _: 1,
        workers=case.workers,
        progress=case.progress,
    )
    found = [pair for index in sorted(parts) for pair in parts[index] if pair[0] >= WORKS]
    found.sort(key=lambda pair: -pair[0])
    return [trigger for share, trigger in found[:KEPT] if share >= ALIKE * found[0][0]]


def _searches(case: Case, known: bool = False) -> list[Search]:
    root = math.sqrt(math.prod(case.classifier.input_shape))
    budgets = KNOWN_BUDGETS if known else BUDGETS
    searches: list[Search] = [partial(_faint, case, share * root, known) for share in budgets]
    places = patches.grid(case.classifier.input_shape)
    # Two pieces of work, whatever the number of workers.
    return [*searches, *(partial(_local, case, places[first::2], known) for first in (0, 1))]


def _faint(case: Case, budget: float, known: bool, stop: Stop) -> list[Trigger]:
    shown = (case.classifier, case.fit, case.fit_labels)
    return [faint(*shown, budget, seed=case.seed, stop=stop, known=known)]


def _local(case: Case, places: Sequence[patches.Place], known: bool, stop: Stop) -> list[Trigger]:
    return local(case.classifier, case.fit, case.fit_labels, places, stop=stop, known=known)


def _judged(case: Case, trigger: Trigger, held: Tensor, held_labels: Tensor) -> Permutation:
    after = case.classifier.logits(trigger.apply(held)).argmax(1)
    told = read(held_labels, after, case.classifier.num_classes)
    return Permutation(told.statistic, told.flipped, told.mapping, trigger)


def _order(found: Permutation) -> float:
    return -math.inf if math.isnan(found.statistic) else found.statistic
