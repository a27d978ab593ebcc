"""What one model of the zoo tells of its labels by itself: needs its weights, and no search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zoo


def inner_record(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """The numbers of ``evidence/signature.py`` and ``evidence/stimulation.py``, as a scan has them.

    For networks whose other evidence was measured before there were these: seconds, not minutes.

    Args:
        truth: the model's ``truth.json``.
        place: its directory.

    Returns:
        ``signatures``: (dormant, unused) of every label; ``driven``; ``version``.
    """
    import goodnet
    from goodnet.evidence.stimulation import stimulation
    from goodnet.parallel import silent
    from goodnet.pipelines.begin import begin

    # A reference model never sees the pictures of those that are held against it.
    defender = zoo.defender(truth["data"], "calibration")
    classifier = goodnet.load(place / truth["file"], defender)
    begun = begin(classifier, defender, "default", None, 0, 1, silent, None, None)
    split = begun.split
    driven = stimulation(begun.case, split.held, split.held_labels, begun.clean_margin).values
    return {
        "signatures": {
            label: [round(v, 7) for v in row] for label, row in begun.signatures.items()
        },
        "driven": {label: round(row[0], 5) for label, row in driven.items()},
        "version": goodnet.__version__,
    }
