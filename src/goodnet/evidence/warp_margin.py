"""The margin that one smooth warp of the image carries a label to.

Catches triggers that move pixels instead of painting them (WaNet: Nguyen and Tran 2021), which a
difference added to the image only hints at: it would have to be another one for every image. A warp
of a clean network's images takes them to no label in particular.
"""

from __future__ import annotations

import math

from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop
from goodnet.perturbation import ascend
from goodnet.warp import warped

GRID = 6
"""Points on a side at which a warp's displacements are free; between them it is smooth."""

REACHES = (0.045,)
"""Root mean square of the displacements, as shares of half the image's side."""


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
    shape = (2, GRID, GRID)
    budgets = [reach * math.sqrt(math.prod(shape)) for reach in REACHES]

    def measure(block: list[int], stop: Stop) -> Evidence:
        outcomes = [
            ascend(
                case.classifier,
                images,
                labels,
                block,
                budget,
                effort.steps,
                stop=stop,
                change=warped,
                shape=shape,
            ).margins.tolist()
            for budget in budgets
        ]
        margins = dict(zip(block, zip(*outcomes, strict=True), strict=True))
        return Evidence({n: row for n, row in margins.items() if all(map(math.isfinite, row))})

    rows = case.classifier.device.rows(len(images))
    return over_blocks("warp_margin", case, targets, rows, effort, measure, numbers=len(REACHES))
