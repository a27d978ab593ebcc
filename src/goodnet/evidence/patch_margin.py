"""The margin that one small patch, in its best place, carries a label to.

Catches triggers that are painted somewhere (stickers, glasses, a Trojan's patch): a network that
was trained to obey a few pixels in one place is as sure of the target there as of a clean image.
A mask that may lie anywhere finds scattered natural pixels instead, above all in small networks.
Finds many triggers that are spread over the image as well, by the part of them in the patch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet import patches
from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop
from goodnet.perturbation import row_margins
from goodnet.trigger import Trigger

LOOK_IMAGES, LOOK_STEPS = 4, 3
"""What every place is tried with first."""

LEADERS = 2
"""Places of a label that are tried further."""

WAYS, LEADS, ALIKE = 10, 0.5, 0.5
"""Places of which a repair is given the patches; the least success of one there, and its least
margin as a share of the best one's: what is weaker may lead there by looking like the class, which
no repair can take away and none should (``benchmarks/HISTORY.md``)."""

FEW_IMAGES, FEW_STEPS = 24, 16
"""What so many places are tried further with."""


def patch_margin(case: Case, targets: list[int], effort: Effort) -> Evidence:
    """Mean margin, in logits, and attack success of the best patch of each label.

    That is::

        max over places a and patterns p of  mean_i [ f_t(x_i with p at a) - max_{j != t} f_j ]

    over images of other classes: first a little everywhere on a grid, then further in the places
    that lead.

    Args:
        case: classifier and images.
        targets: the labels to measure.
        effort: images and steps in the leading places.

    Returns:
        ``values[label]``: the margin in logits; the share of those images that become the label;
        by how many logits the best place led the middle one on the first look.
        ``triggers[label]``: the patch.
    """
    places = patches.grid(case.classifier.input_shape)

    def measure(block: list[int], stop: Stop) -> Evidence:
        evidence = Evidence()
        for target in block:
            found = _best(case, target, places, effort, stop)
            if found is not None:
                evidence.values[target], evidence.triggers[target] = found[0], (found[1],)
        return evidence

    return over_blocks("patch_margin", case, targets, 1, effort, measure, numbers=3)


def _best(
    case: Case, target: int, places: list[patches.Place], effort: Effort, stop: Stop
) -> tuple[tuple[float, float, float], Trigger] | None:
    """The best patch of one label; None where no image can show it, or the network gives NaN."""
    found = _climbed(case, target, places, effort, LEADERS, stop)
    if found is None or not bool(found.reached.isfinite().all()):
        return None
    best = int(found.reached.mean(1).argmax())
    success = float((found.reached[best] > 0).float().mean())
    values = (float(found.reached[best].mean()), success, found.lead)
    return values, found.triggers[best]


def patches_towards(case: Case, target: int, effort: Effort, least: float = LEADS) -> list[Trigger]:
    """Patches that lead images to ``target``, in several places: the best one, and those that are
    at least half as strong.

    Args:
        case: classifier and images.
        target: the label.
        effort: images and steps in the leading places.
        least: success that a patch needs to be one; with 0 those of all places are given.
    """
    less = replace(
        effort, images=min(FEW_IMAGES, effort.images), steps=min(FEW_STEPS, effort.steps)
    )
    places = patches.grid(case.classifier.input_shape)
    found = _climbed(case, target, places, less, WAYS, Stop())
    if found is None:
        return []
    success, margin = (found.reached > 0).float().mean(1), found.reached.mean(1)
    order = torch.argsort(margin, descending=True, stable=True).tolist()
    enough = ALIKE * float(margin[order[0]]) if least > 0 else -torch.inf
    return [
        found.triggers[n]
        for n in order
        if float(success[n]) >= least and float(margin[n]) >= enough
    ]


@dataclass(frozen=True)
class _Climbed:
    """Of the leading places of a label.

    Attributes:
        reached: margins ``(places, n)`` on the images of other classes.
        triggers: the patches.
        lead: by how many logits the best place led the middle one of all on the first look.
    """

    reached: Tensor
    triggers: list[Trigger]
    lead: float


def _climbed(
    case: Case,
    target: int,
    places: list[patches.Place],
    effort: Effort,
    leaders: int,
    stop: Stop,
) -> _Climbed | None:
    """The patches of so many places, those that led on a first look; None without an image."""
    images, shape = case.fit[case.fit_labels != target], case.classifier.input_shape
    if not len(images):
        return None

    def margins(logits: Tensor) -> Tensor:
        wanted = torch.full((logits.shape[:2].numel(),), target, device=logits.device)
        return row_margins(logits.flatten(0, 1), wanted).view(logits.shape[:2])

    def goal(logits: Tensor) -> Tensor:
        return margins(logits).mean(1)

    few = images[:LOOK_IMAGES]
    start = patches.grey(shape, len(places))
    seen, logits = patches.climb(case.classifier, few, places, start, goal, LOOK_STEPS, stop=stop)
    looks = goal(logits)
    order = torch.argsort(looks, descending=True)[:leaders]
    leading = [places[index] for index in order.tolist()]
    images = images[: effort.images]
    final, logits = patches.climb(
        case.classifier, images, leading, seen[order], goal, effort.steps, stop=stop
    )
    triggers = [
        patches.as_trigger(shape, place, pattern, target)
        for place, pattern in zip(leading, final, strict=True)
    ]
    return _Climbed(margins(logits), triggers, float(looks.max() - looks.median()))
