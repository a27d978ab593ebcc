"""The margin that one small patch, in its best place, carries a label to.

Catches triggers that are painted somewhere (stickers, glasses, a Trojan's patch): a network that
was trained to obey a few pixels in one place is as sure of the target there as of a clean image.
A mask that may lie anywhere finds scattered natural pixels instead, above all in small networks.
Finds many triggers that are spread over the image as well, by the part of them in the patch.
"""

from __future__ import annotations

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
    order = torch.argsort(looks, descending=True)[:LEADERS]
    leading = [places[index] for index in order.tolist()]
    images = images[: effort.images]
    final, logits = patches.climb(
        case.classifier, images, leading, seen[order], goal, effort.steps, stop=stop
    )
    reached = margins(logits)
    if not bool(reached.isfinite().all()):
        return None
    best = int(reached.mean(1).argmax())
    success = float((reached[best] > 0).float().mean())
    values = (float(reached[best].mean()), success, float(looks.max() - looks.median()))
    return values, patches.as_trigger(shape, leading[best], final[best], target)
