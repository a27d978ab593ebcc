"""The margin that one smooth warp of the image carries a label to.

Catches triggers that move pixels instead of painting them (WaNet: Nguyen and Tran 2021), which a
difference added to the image only hints at: it would have to be another one for every image. A warp
of a clean network's images takes them to no label in particular.
"""

from __future__ import annotations

import math
import threading
from functools import partial

from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop
from goodnet.perturbation import Perturbations, ascend
from goodnet.warp import WarpTrigger, warped

GRID = 6
"""Points on a side at which a warp's displacements are free; between them it is smooth."""

REACHES = (0.045,)
"""Root mean square of the displacements, as shares of half the image's side."""


FURTHER = (0.03, 0.045, 0.07)
"""The reaches of the warps of a label that are wanted as its triggers."""


def warp_margin(case: Case, targets: list[int], effort: Effort) -> Evidence:
    """Mean margin, in logits, that a universal warp of each reach achieves.

    The universal margin's ascent, on the displacements of a coarse grid instead of the pixels.

    Args:
        case: classifier and images.
        targets: the labels to measure.
        effort: images and steps.

    Returns:
        ``values[label]``: one margin a reach, in the order of :data:`REACHES`. No triggers.
    """
    images, labels = case.fit[: effort.images], case.fit_labels[: effort.images]
    search = partial(_ascend, case.classifier, images, labels, steps=effort.steps)

    def measure(block: list[int], stop: Stop) -> Evidence:
        outcomes = [search(block, reach, stop=stop).margins.tolist() for reach in REACHES]
        margins = dict(zip(block, zip(*outcomes, strict=True), strict=True))
        return Evidence({n: row for n, row in margins.items() if all(map(math.isfinite, row))})

    rows = case.classifier.device.rows(len(images))
    return over_blocks("warp_margin", case, targets, rows, effort, measure, numbers=len(REACHES))


def warps_towards(case: Case, target: int, effort: Effort) -> list[WarpTrigger]:
    """The warps of each reach in :data:`FURTHER` that lead best to one label.

    Args:
        case: classifier and images.
        target: the label.
        effort: images and steps.
    """
    images, labels = case.fit[: effort.images], case.fit_labels[: effort.images]
    search = partial(_ascend, case.classifier, images, labels, steps=effort.steps)
    found = [search([target], reach, stop=threading.Event()).deltas[0] for reach in FURTHER]
    return [WarpTrigger(delta, target) for delta in found if bool(delta.isfinite().all())]


def _ascend(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    targets: list[int],
    reach: float,
    *,
    steps: int,
    stop: Stop,
) -> Perturbations:
    shape = (2, GRID, GRID)
    budget = reach * math.sqrt(math.prod(shape))
    return ascend(
        classifier, images, labels, targets, budget, steps, stop=stop, change=warped, shape=shape
    )
