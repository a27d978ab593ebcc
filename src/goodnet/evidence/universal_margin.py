"""The budgeted universal margin: how far a small universal change carries a label.

Catches every trigger that acts on most images whatever it looks like (patch, blend, pattern, warp);
misses all-to-all backdoors and those that act on one source class only.
"""

from __future__ import annotations

import math

import torch

from goodnet.evidence.case import Case, Effort, Evidence, blocks_of
from goodnet.parallel import Stop, run_blocks
from goodnet.perturbation import ascend, rows_per_chunk
from goodnet.trigger import Trigger


def universal_margin(case: Case, targets: list[int], effort: Effort) -> Evidence:
    """Mean margin, in logits, that a universal perturbation of each L2 budget reaches.

    Args:
        case: classifier and images.
        targets: the labels to measure.
        effort: images, steps and budgets.

    Returns:
        ``values[label]``: one margin a budget, in the order of ``effort.budgets``;
        ``triggers[label]``: the perturbations (additive), in the same order.
    """
    images, labels = case.fit[: effort.images], case.fit_labels[: effort.images]
    root = math.sqrt(math.prod(case.classifier.input_shape))
    budgets = [share * root for share in effort.budgets]

    def measure(block: list[int], stop: Stop) -> list[tuple[tuple[float, ...], list[Trigger]]]:
        outcomes = [
            ascend(case.classifier, images, labels, block, budget, effort.steps, stop=stop)
            for budget in budgets
        ]
        return [
            (
                tuple(float(outcome.margins[row]) for outcome in outcomes),
                [_additive(outcome.deltas[row], target) for outcome in outcomes]
                if effort.keep_triggers
                else [],
            )
            for row, target in enumerate(block)
        ]

    blocks = blocks_of(targets, rows_per_chunk(len(images)))
    results = run_blocks(
        measure,
        blocks,
        stage=effort.purpose,
        size=len,
        workers=case.workers,
        progress=case.progress,
    )
    evidence = Evidence()
    for block, rows in zip(blocks, results, strict=True):
        for target, (margins, triggers) in zip(block, rows, strict=True):
            if all(map(math.isfinite, margins)):
                evidence.values[target] = margins
                evidence.triggers[target] = tuple(triggers)
    return evidence


def _additive(delta: torch.Tensor, target: int) -> Trigger:
    extent = delta.abs().amax(0, keepdim=True)
    mask = extent / extent.max().clamp_min(1e-12)
    # A row of a batch would keep the whole batch in memory.
    return Trigger(mask.clone(), delta.clone(), target, "additive")
