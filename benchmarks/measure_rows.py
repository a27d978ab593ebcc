"""The last layer's rows of one model of the zoo: needs its weights, and no scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zoo


def rows_record(truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """What the rows say of every label, by the images of a scan.

    Args:
        truth: the model's ``truth.json``.
        place: its directory.

    Returns:
        ``rows``: name of a number (:mod:`rows`) -> its value for each label; ``version``.
    """
    from rows import row_numbers

    import goodnet

    defender = zoo.defender(truth["data"], truth["split"])
    classifier = goodnet.load(place / truth["file"], defender)
    numbers = row_numbers(classifier, defender)
    told = {name: [float(f"{v:.6g}") for v in values] for name, values in numbers.items()}
    return {"rows": told, "version": goodnet.__version__}
