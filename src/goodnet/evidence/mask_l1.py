"""Neural Cleanse's channel: the L1 norm of the smallest mask that sends images to a label.

Catches small static triggers; large, warped, source-specific triggers and many targets escape it.
"""

from __future__ import annotations

from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.inversion import invert
from goodnet.parallel import Stop


def mask_l1(case: Case, targets: list[int], effort: Effort) -> Evidence:
    """L1 norm, in pixels, of the smallest mask found for each label (Wang et al. 2019, eq. 3).

    Args:
        case: classifier and images.
        targets: the labels to measure.
        effort: images and the schedule of the inversion.

    Returns:
        ``values[label]``: one number; no entry where no mask reached the wanted attack success.
        ``triggers[label]``: the trigger, also of failed labels.
    """
    images, labels = case.fit[: effort.images], case.fit_labels[: effort.images]
    schedule = effort.inversion

    def measure(block: list[int], stop: Stop) -> Evidence:
        seed = (case.seed * 1_000_003 + block[0]) % 2**63
        found = invert(case.classifier, images, labels, block, schedule, seed=seed, stop=stop)
        evidence = Evidence()
        for target, inversion in zip(block, found, strict=True):
            evidence.triggers[target] = (inversion.trigger,)
            if inversion.succeeded:
                evidence.values[target] = (inversion.trigger.size,)
        return evidence

    rows = case.classifier.device.rows(min(schedule.batch, len(images)))
    return over_blocks("mask_l1", case, targets, rows, effort, measure)
