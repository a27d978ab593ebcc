"""Every channel's raw numbers on one model of the zoo: what a calibration starts from."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zoo

MOST_LABELS = 64
"""With more classes a random sample of so many labels is measured, the true targets among them."""


def evidence_record(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """Measures the channels as a scan would, of labels that no ranking has chosen.

    Args:
        truth: the model's ``truth.json``.
        place: its directory.

    Returns:
        ``margins``, ``masks``, ``noise`` and ``augmentation`` by label, ``permutation``, ``logits``
        (the median difference between the two largest logits of a clean image, which says what a
        margin is worth in this network), ``seconds`` of each channel.
    """
    import goodnet
    from goodnet.evidence import CHANNELS, Case
    from goodnet.evidence.augmentation import augmentation
    from goodnet.evidence.permutation import permutation
    from goodnet.pipelines.scan import FINE, split_images

    defender = zoo.defender(truth["data"], truth["split"])
    classifier = goodnet.load(place / truth["file"], defender)
    answers = classifier.logits(defender.pixels)
    split = split_images(defender, answers.argmax(1) == defender.labels, seed=0)
    case = Case(classifier, split.fit, split.fit_labels)
    labels = _some(truth)
    seconds, found = {}, {}
    for name in ("universal_margin", "mask_l1", "noise_margin"):
        started = time.monotonic()
        effort = replace(FINE, keep_triggers=False)
        found[name] = CHANNELS[name](case, labels, effort).values
        seconds[name] = time.monotonic() - started
    started = time.monotonic()
    mapped = permutation(case, split.held, split.held_labels)
    seconds["permutation"], started = time.monotonic() - started, time.monotonic()
    changed = augmentation(case, split.held, split.held_labels).values
    seconds["augmentation"] = time.monotonic() - started
    top = answers.topk(2).values
    return {
        "num_classes": classifier.num_classes,
        "labels": labels,
        "images": [len(split.fit), len(split.held)],
        "batch_norm": any("BatchNorm" in type(m).__name__ for m in classifier.module.modules()),
        "logits": float((top[:, 0] - top[:, 1]).median()),
        "margins": found["universal_margin"],
        "masks": {label: row[0] for label, row in found["mask_l1"].items()},
        "noise": {label: row[0] for label, row in found["noise_margin"].items()},
        "augmentation": {label: changed[label][0] for label in labels},
        "augmentation_most": max(row[0] for row in changed.values()),
        "permutation": None if math.isnan(mapped.statistic) else mapped.statistic,
        "permutation_map": mapped.mapping,
        "flipped": mapped.flipped,
        "seconds": seconds,
        "version": goodnet.__version__,
    }


def _some(truth: dict[str, Any]) -> list[int]:
    """The labels that are measured."""
    classes = truth["num_classes"]
    if classes <= MOST_LABELS:
        return list(range(classes))
    drawn = torch.randperm(classes, generator=torch.Generator().manual_seed(0)).tolist()
    kept = [*truth["targets"][:MOST_LABELS], *drawn]
    return sorted(dict.fromkeys(kept[:MOST_LABELS]))
