"""What a scan left open: why "no evidence" is not always an honest answer."""

from __future__ import annotations

from collections.abc import Sequence

from goodnet.uncalibrated import FEW_CLASSES

FEW_IMAGES = 20
"""Below this many clean images "no evidence" is not an answer."""


def unlooked_at(skipped: int, cut_off: Sequence[str]) -> list[str]:
    """The reasons that belong into every report of a scan that ran out of time.

    Args:
        skipped: labels that there was no time for.
        cut_off: the searches of the whole model that there was no time for, in words.
    """
    spent = "the budget of time was spent"
    found = [f"{skipped} labels were skipped: {spent}"] if skipped else []
    return found + [f"the search for {search} was cut short: {spent}" for search in cut_off]


def doubts(
    *,
    images: int,
    measured: int,
    wanted: int,
    compared: int,
    skipped: int = 0,
    cut_off: Sequence[str] = (),
) -> list[str]:
    """Why "no evidence" would not be an honest answer; empty if it would.

    Args:
        images: clean images that the scan could use.
        measured: labels whose every channel came to a result.
        wanted: labels that should have one.
        compared: labels that were measured; with 2 there is nothing to be an outlier of.
        skipped: labels that there was no time for.
        cut_off: the searches of the whole model that there was no time for, in words.
    """
    found = []
    if images < FEW_IMAGES:
        found.append(f"only {images} usable clean images; at least {FEW_IMAGES} are needed")
    if measured < 2 * wanted / 3 or not (wanted or skipped):
        found.append(f"the measurement failed for {wanted - measured} of {wanted} labels")
    found += unlooked_at(skipped, cut_off)
    if compared < FEW_CLASSES:
        found.append(f"with {compared} labels none can be an outlier among the others")
    return found
