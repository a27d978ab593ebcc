"""The budgeted universal margin: how far a small universal change carries a label.

Catches every trigger that acts on most images whatever it looks like (patch, blend, pattern, warp);
misses all-to-all backdoors and those that act on one source class only.
"""

from __future__ import annotations

import math

import torch

from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop
from goodnet.perturbation import ascend
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

    def measure(block: list[int], stop: Stop) -> Evidence:
        outcomes = [
            ascend(case.classifier, images, labels, block, budget, effort.steps, stop=stop)
            for budget in budgets
        ]
        evidence = Evidence()
        for row, target in enumerate(block):
            margins = tuple(float(outcome.margins[row]) for outcome in outcomes)
            if not all(map(math.isfinite, margins)):
                continue
            evidence.values[target] = margins
            if effort.keep_triggers:
                evidence.triggers[target] = tuple(
                    _additive(outcome.deltas[row], target) for outcome in outcomes
                )
        return evidence

    rows = case.classifier.device.rows(len(images))
    return over_blocks(
        "universal_margin", case, targets, rows, effort, measure, numbers=len(budgets)
    )


def _additive(delta: torch.Tensor, target: int) -> Trigger:
    extent = delta.abs().amax(0, keepdim=True)
    mask = extent / extent.max().clamp_min(1e-12)
    # A row of a batch would keep the whole batch in memory.
    return Trigger(mask.clone(), delta.clone(), target, "additive")
