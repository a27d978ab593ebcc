"""What goodnet makes of one model of the zoo: the scan, and the repair of what was found."""

from __future__ import annotations

import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo

sys.path.append(str(zoo.HERE / "peers"))

import bench
from measure_peer import BENEFIT

SECONDS_BEFORE_GUESSING = 30
"""How long a scan runs before the time that it will take is believed."""
LEADERS = 4
"""Labels of which a record tells the evidence."""


class TooLongError(Exception):
    """A scan that would take longer than it may."""


def goodnet_record(
    method: str, truth: dict[str, Any], place: Path, limit: float | None, cured: bool = True
) -> dict[str, Any]:
    """Scans one model by its file, as a user would, and repairs what the default method finds.

    Args:
        method: ``"default"`` or ``"neural-cleanse"``.
        truth: the model's ``truth.json``.
        place: its directory.
        limit: seconds that the scan may take, or None.
        cured: whether what is found is repaired; a record says if it was not to be.
    """
    import goodnet

    # The defender's images alone: the attacker's would count as the scan's memory.
    defender = zoo.defender(truth["data"], truth["split"])
    classifier = goodnet.load(place / truth["file"], defender)
    started = time.monotonic()

    def watch(stage: str, done: int, total: int) -> None:
        """Gives a scan up that is over its time, or is sure to be."""
        spent = time.monotonic() - started
        if limit is None or done == 0:
            return
        ahead = spent / done * total
        if spent > limit or (spent > SECONDS_BEFORE_GUESSING and ahead > BENEFIT * limit):
            raise TooLongError(f"would take about {ahead:.0f} s; the limit is {limit:.0f} s")

    try:
        report = goodnet.scan(classifier, defender, method=method, progress=watch)
    except TooLongError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    seconds = time.monotonic() - started
    memory = bench.peak_memory_mb()
    if method == "default":
        # What ranks models of any kind: the evidence against "clean", in powers of ten.
        statistic = None if report.p_value is None else -math.log10(max(report.p_value, 1e-300))
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
        "tests": [test.model_dump() for test in report.tests],
        "targets": report.targets,
        "preprocess": report.preprocess,
        "seconds": seconds,
        "seconds_per_label": seconds / truth["num_classes"],
        "peak_memory_mb": memory,
        "version": report.version,
        "mask_iou": overlaps(report, truth),
    }
    if method == "default":
        # Of the first labels what the verdict looked at; the whole for `--method repair`.
        record["leaders"] = [_leader(entry) for entry in report.labels[:LEADERS]]
        (place / "scan.json").write_text(report.model_dump_json(), "utf-8")
        if cured:
            record["repair"] = repair_record(goodnet, classifier, report, defender, truth)
        else:
            record["repair_skipped"] = True
    return record


def repaired_record(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """What today's repair makes of a scan that ``--method default`` left beside the model: the
    repair may have been worked on since, where nothing of the scan has.
    """
    import goodnet
    from goodnet.pipelines.saved import load_report

    defender = zoo.defender(truth["data"], truth["split"])
    classifier = goodnet.load(place / truth["file"], defender)
    report = load_report(place / "scan.json")
    repair = repair_record(goodnet, classifier, report, defender, truth)
    return {"targets": report.targets, "version": report.version, "repair": repair}


def _leader(entry: Any) -> dict[str, Any]:
    """What was measured for a label, in a line."""
    indexes = ("mask", "margin", "patch", "noise", "warp", "inner")
    told = {"label": entry.label, "score": entry.score, "p_value": entry.p_value}
    told |= {name: getattr(entry, f"{name}_index") for name in indexes}
    told |= {"tinted": entry.tinted, "leaning": entry.leaning}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}


def overlaps(report: Any, truth: dict[str, Any]) -> dict[int, float]:
    """Of each target that was named rightly: intersection over union of its mask and the true one.

    Training moves and mirrors the poisoned images, so the trigger works where it was moved to as
    well: the best of these places counts, and of several triggers for one target the best one.
    """
    from goodnet.attacks.revive import from_ground_truth

    if not truth["attack"]:
        return {}
    attack, recipe = from_ground_truth(truth["attack"]), truth["recipe"]
    found = {}
    for target in report.targets:
        regions = [
            part.region()
            for part in getattr(attack, "parts", (attack,))
            if target in part.targets(truth["num_classes"])
        ]
        places = [
            place > 0
            for region in regions
            if region is not None
            for place in _moved(region, recipe["shift"], recipe["mirror"])
        ]
        if places:
            trigger = report.triggers[target]
            mask = trigger.mask > 0.5 * trigger.mask.max()
            found[target] = max(float((mask & p).sum() / (mask | p).sum()) for p in places)
    return found


def _moved(region: torch.Tensor, reach: int, mirror: bool) -> list[torch.Tensor]:
    """The region ``(1, H, W)`` everywhere that the training may have moved it to."""
    sides = [region, region.flip(2)] if mirror else [region]
    return [
        side.roll((down, right), (1, 2))
        for side in sides
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
    ]


def repair_record(goodnet, classifier, report, defender, truth) -> dict[str, Any] | None:
    """What the repair costs and removes, on images that no step has seen; None without a target."""
    if not report.targets:
        return None
    started = time.monotonic()
    try:
        cured = goodnet.repair(classifier, defender, report)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = time.monotonic() - started
    return {
        "remedy": cured.report.remedy,
        "holds": cured.report.certificate.holds,
        "seconds": seconds,
        **outcome(classifier, cured.classifier, truth),
    }


def outcome(before: Any, after: Any, truth: dict[str, Any]) -> dict[str, float]:
    """Accuracy, attack success and recovered accuracy of two classifiers, on the judge's images."""
    from goodnet.attacks.poison import poisoned_test
    from goodnet.attacks.revive import from_ground_truth

    judge = zoo.pictures(truth["data"], truth["recipe"]["seed"], truth["split"]).judge

    def accuracy(model: Any, images: Any, labels: torch.Tensor) -> float:
        return float((model.logits(images.pixels).argmax(1) == labels).float().mean())

    both = {"before": before, "after": after}
    result = {f"accuracy_{when}": accuracy(m, judge, judge.labels) for when, m in both.items()}
    if truth["attack"]:
        stamped = poisoned_test(judge, from_ground_truth(truth["attack"]))
        for when, model in both.items():
            result[f"attack_{when}"] = accuracy(model, stamped, stamped.labels)
            result[f"recovered_{when}"] = accuracy(model, stamped, stamped.true_labels)
    return result
