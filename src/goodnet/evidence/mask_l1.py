"""Neural Cleanse's channel: the L1 norm of the smallest mask that sends images to a label.

Catches small static triggers; large, warped, source-specific triggers and many targets escape it.
"""

from __future__ import annotations

from goodnet.evidence.case import Case, Effort, Evidence, blocks_of
from goodnet.inversion import Inversion, invert
from goodnet.parallel import Stop, run_blocks
from goodnet.perturbation import rows_per_chunk


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

    def measure(block: list[int], stop: Stop) -> list[Inversion]:
        seed = (case.seed * 1_000_003 + block[0]) % 2**63
        return invert(case.classifier, images, labels, block, schedule, seed=seed, stop=stop)

    blocks = blocks_of(targets, rows_per_chunk(min(schedule.batch, len(images))))
    results = run_blocks(
        measure,
        blocks,
        stage=effort.purpose,
        size=len,
        workers=case.workers,
        progress=case.progress,
    )
    evidence = Evidence()
    for block, inversions in zip(blocks, results, strict=True):
        for target, inversion in zip(block, inversions, strict=True):
            evidence.triggers[target] = (inversion.trigger,)
            if inversion.succeeded:
                evidence.values[target] = (inversion.trigger.size,)
    return evidence
