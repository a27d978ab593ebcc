"""What repairs of one attacked model cost and remove: goodnet's beside the baselines.

goodnet's is the default repair of what the scan named; the scan's report lies beside the model,
where ``--method default`` left it. The baselines get all of the clean images, as nothing judges
them: goodnet's remedies see a half. Fine-tuning and fine-pruning need no scan, so that they are run
where nothing was found, too; Neural Cleanse's unlearning gets goodnet's targets, and its smallest
masks reversed on these images.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import zoo

SHARES = (0.05, 0.01)
"""Clean images, as a share of how many the attacker trained on."""


def repair_comparison(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """One record: share -> repair -> figures on images that no repair has seen.

    Args:
        truth: the model's ``truth.json``.
        place: its directory, with ``scan.json``.
    """
    from measure_goodnet import outcome

    import goodnet
    from goodnet.pipelines.saved import load_report

    if not truth["attack"]:
        raise ValueError("a clean model has nothing to be repaired")
    classifier = goodnet.load(place / truth["file"], zoo.defender(truth["data"], truth["split"]))
    report = load_report(place / "scan.json")
    shares = {}
    for share in SHARES:
        images = zoo.clean_share(truth["data"], share)
        rows = {}
        for name, cure in _repairs(goodnet, classifier, images, report).items():
            started = time.monotonic()
            try:
                cured, remedy = cure()
            except Exception as error:
                traceback.print_exc()
                rows[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            rows[name] = {"remedy": remedy, "seconds": time.monotonic() - started}
            rows[name] |= outcome(classifier, cured, truth)
        shares[f"{share:g}"] = {"images": len(images), "repairs": rows}
    return {"targets": report.targets, "version": report.version, "shares": shares}


def _repairs(goodnet: Any, classifier: Any, images: Any, report: Any) -> dict[str, Any]:
    """Name -> what makes the repaired classifier, and tells the remedy that it is of."""
    from dataclasses import replace
    from functools import partial

    from goodnet.pipelines.reversing import reverse_triggers
    from goodnet.remedies import BASELINES, REMEDIES, Patient
    from goodnet.remedies.unlearning import PAPER, unlearning

    bare = Patient(classifier, images.floats(), images.labels, {}, {})

    def ours() -> Any:
        if not report.targets:
            return classifier, None
        cured = goodnet.repair(classifier, images, report)
        return cured.classifier, cured.report.remedy

    def unlearned() -> Any:
        if not report.targets:
            return classifier, None
        masks, triggers = reverse_triggers(
            classifier, images, report.targets, 1, None, lambda *_: None
        )
        # The paper takes a tenth of the training set: more than all that there is here.
        settings = replace(PAPER, data_share=1.0)
        return unlearning(replace(bare, masks=masks, triggers=triggers), settings), "unlearning"

    def plain(name: str) -> Any:
        return REMEDIES[name](bare), name

    baselines = {name: partial(plain, name) for name in BASELINES}
    return {"goodnet": ours, **baselines, "unlearning": unlearned}
