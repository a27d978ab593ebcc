"""The scan of a repaired network: does a target still stand out?"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from goodnet.classifier import Classifier
from goodnet.images import Images
from goodnet.parallel import Progress
from goodnet.pipelines.scan import EVERY_LABEL, scan
from goodnet.reports import FreshScan, ScanReport

FRESH_CONTROLS = 12
"""Labels beside the targets in the fresh scan of a network with hundreds of classes."""


def fresh_scan(
    cured: Classifier,
    images: Images,
    report: ScanReport,
    targets: list[int],
    treated: Collection[int],
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str,
) -> FreshScan:
    """Scans the result: the labels of the first scan; where those are many, the targets among
    random ones, as all that matters is whether the targets still stand out.

    Args:
        cured: the result of a remedy.
        images: all clean images.
        report: of the first scan.
        targets: the labels that are repaired.
        treated: these and those that were treated along.
        seed: of the scan, another one than the first.
        workers: threads, or None for one a core.
        progress: told what is being done.
        device: as of a scan.

    Raises:
        GoodnetError: those of the scan.
    """
    before = [entry.label for entry in report.labels]
    controls = [entry.label for entry in report.labels if entry.control][:FRESH_CONTROLS]
    if not controls and len(before) > EVERY_LABEL:
        # They were all measured in full, which takes too long for a second time.
        order = np.random.default_rng(seed).permutation(len(before))
        controls = [before[int(place)] for place in order[:FRESH_CONTROLS]]
    chosen = sorted({*treated, *(controls or before)})
    labels = chosen if len(chosen) < cured.num_classes else None
    # As it would be without its filter, which the scan would take for one more label.
    bare = cured.classes_only()
    fresh = scan(
        bare,
        images,
        labels=labels,
        seed=seed,
        workers=workers,
        progress=progress,
        device=device,
        remade=treated,
    )

    def masks(of: ScanReport) -> dict[int, float | None]:
        found = {entry.label: entry.mask_l1 for entry in of.labels}
        return {target: found.get(target) for target in targets}

    return FreshScan(
        verdict=fresh.verdict,
        p_value=fresh.p_value,
        targets=fresh.targets,
        labels=len(fresh.labels),
        masks_before=masks(report),
        masks_after=masks(fresh),
        seconds=fresh.seconds,
    )
