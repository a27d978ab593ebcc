"""How a channel goes through its labels: in blocks, on all cores, kept on the way, timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop, run_blocks

LEADERS = 3
"""So many labels are told while they are measured."""

Measure = Callable[[list[int], Stop], Evidence]
"""A pure function of its block of labels."""


def over_blocks(
    channel: str,
    case: Case,
    targets: Sequence[int],
    rows: int,
    effort: Effort,
    measure: Measure,
    *,
    numbers: int = 1,
) -> Evidence:
    """What ``measure`` finds for all targets.

    Args:
        channel: its name, for the store.
        case: the classifier, with the store and the deadline of the scan.
        targets: the labels to measure.
        rows: labels in a block. The blocks do not depend on the number of workers.
        effort: what the progress callback is told; part of what a stored block is known by.
        measure: the channel.
        numbers: how many of them it finds for a label.

    Returns:
        The evidence of all blocks; labels that the deadline has cut off, and those of blocks that
        other shares have yet to measure, are in ``skipped``.
    """
    blocks = [list(targets[start : start + rows]) for start in range(0, len(targets), rows)]
    names = [f"{channel} {block} {effort} {case.seed} {len(case.fit)}" for block in blocks]
    store = case.store
    known = {}
    if store is not None:
        kept = {index: store.get(name) for index, name in enumerate(names)}
        known = {
            index: found
            for index, found in kept.items()
            if found is not None and _belongs(found, blocks[index], numbers, case)
        }
    mine = [
        index
        for index in range(len(blocks))
        if index in known or case.share is None or case.share.has(index)
    ]
    ahead = {n: row[0] for found in known.values() for n, row in found.values.items()}

    def keep(place: int, found: Evidence) -> None:
        if store is not None:
            store.put(names[mine[place]], found)
        ahead.update({label: row[0] for label, row in found.values.items()})
        # Where a mask is sought, the smallest one stands out.
        case.leading(sorted(ahead, key=ahead.__getitem__, reverse=channel != "mask_l1")[:LEADERS])

    results = run_blocks(
        measure,
        [blocks[index] for index in mine],
        stage=effort.purpose,
        size=len,
        workers=case.workers,
        progress=case.progress,
        deadline=case.deadline,
        known={place: known[index] for place, index in enumerate(mine) if index in known},
        keep=keep,
    )
    found_in = {mine[place]: found for place, found in results.items()}
    merged = Evidence()
    for index, block in enumerate(blocks):
        found = found_in.get(index)
        if found is None:
            merged.skipped.extend(block)
            continue
        merged.values.update(found.values)
        merged.triggers.update(found.triggers)
    return merged


def _belongs(found: Evidence, block: list[int], numbers: int, case: Case) -> bool:
    """Whether stored evidence is such as the channel finds, of these labels and this image size."""
    channels, height, width = case.classifier.input_shape
    if not found.values.keys() | found.triggers.keys() <= set(block) or not all(
        len(row) == numbers and all(map(math.isfinite, row)) for row in found.values.values()
    ):
        return False
    return all(
        trigger.mask.shape == (1, height, width)
        and trigger.pattern.shape == (channels, height, width)
        and trigger.target == label
        and bool(trigger.mask.isfinite().all())
        and bool(trigger.pattern.isfinite().all())
        for label, row in found.triggers.items()
        for trigger in row
    )
