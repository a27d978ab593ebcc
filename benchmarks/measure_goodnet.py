"""What goodnet makes of one model of the zoo: the scan, and the repair of what was found."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import zoo

SECONDS_BEFORE_GUESSING = 30
"""How long a scan runs before the time that it will take is believed."""


class TooLongError(Exception):
    """A scan that would take longer than it may."""


def goodnet_record(
    method: str, truth: dict[str, Any], place: Path, limit: float | None
) -> dict[str, Any]:
    """Scans one model by its file, as a user would, and repairs what the default method finds.

    Args:
        method: ``"default"`` or ``"neural-cleanse"``.
        truth: the model's ``truth.json``.
        place: its directory.
        limit: seconds that the scan may take, or None.
    """
    import goodnet
    from goodnet import verdict

    shown = zoo.pictures(truth["data"], truth["recipe"]["seed"])
    classifier = goodnet.load(place / truth["file"], shown.defender)
    started = time.monotonic()

    def watch(stage: str, done: int, total: int) -> None:
        """Gives a scan up that is over its time, or is sure to be."""
        spent = time.monotonic() - started
        if limit is None or done == 0:
            return
        ahead = spent / done * total
        if spent > limit or (spent > SECONDS_BEFORE_GUESSING and ahead > 1.5 * limit):
            raise TooLongError(f"would take about {ahead:.0f} s; the limit is {limit:.0f} s")

    try:
        report = goodnet.scan(classifier, shown.defender, method=method, progress=watch)
    except TooLongError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    seconds = time.monotonic() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if method == "default":
        scores = [e.score for e in report.labels if e.score is not None]
        bar = verdict.threshold(truth["num_classes"], compared=len(scores))
        statistic = max(scores) - bar if scores else None
    else:
        small = [e for e in report.labels if e.mask_l1 is not None]
        middle = float(np.median([e.mask_l1 for e in small]))
        statistic = max(
            (abs(e.anomaly_index) for e in small if e.anomaly_index and e.mask_l1 < middle),
            default=0.0,
        )
    record = {
        "verdict": report.verdict,
        "statistic": statistic,
        "p_value": report.p_value,
        "targets": report.targets,
        "preprocess": report.preprocess,
        "seconds": seconds,
        "seconds_per_label": seconds / truth["num_classes"],
        "peak_memory_mb": memory,
        "version": report.version,
        "mask_iou": overlaps(report, truth),
    }
    if method == "default":
        record["repair"] = repair_record(goodnet, classifier, report, shown, truth)
    return record


def overlaps(report: Any, truth: dict[str, Any]) -> dict[int, float]:
    """Intersection over union of each found target's mask and the region of the true trigger."""
    from goodnet.attacks.base import from_ground_truth

    region = from_ground_truth(truth["attack"]).region() if truth["attack"] else None
    if region is None:
        return {}
    found = {}
    for target, trigger in report.triggers.items():
        if target in truth["targets"]:
            mask = trigger.mask > 0.5 * trigger.mask.max()
            both = (mask & (region > 0)).sum()
            found[target] = float(both / (mask | (region > 0)).sum())
    return found


def repair_record(goodnet, classifier, report, shown, truth) -> dict[str, Any] | None:
    """What the repair costs and removes, on images that no step has seen; None without a target."""
    from goodnet.attacks.base import from_ground_truth
    from goodnet.attacks.poison import poisoned_test

    if not report.targets:
        return None
    started = time.monotonic()
    try:
        cured = goodnet.repair(classifier, shown.defender, report)
    except goodnet.GoodnetError as error:
        return {"error": str(error)}
    seconds = time.monotonic() - started

    def accuracy(model, images, labels) -> float:
        return float((model.logits(images.pixels).argmax(1) == labels).float().mean())

    judge = shown.judge
    result = {
        "remedy": cured.report.remedy,
        "holds": cured.report.certificate.holds,
        "seconds": seconds,
        "accuracy_before": accuracy(classifier, judge, judge.labels),
        "accuracy_after": accuracy(cured.classifier, judge, judge.labels),
    }
    if truth["attack"]:
        stamped = poisoned_test(judge, from_ground_truth(truth["attack"]))
        for when, model in (("before", classifier), ("after", cured.classifier)):
            result[f"attack_{when}"] = accuracy(model, stamped, stamped.labels)
            result[f"recovered_{when}"] = accuracy(model, stamped, stamped.true_labels)
    return result
