"""Labels that a scan did not name and did suspect: a repair treats them along, if that is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from goodnet.colours import ColourTrigger
from goodnet.pipelines.jury import Jury
from goodnet.remedies import Patient
from goodnet.reports import ScanReport
from goodnet.scores import TINT_UNIT
from goodnet.trigger import Stamp, Trigger
from goodnet.verdict import FOREIGN, LOUD, SUSPICIOUS

MOST = 3

CHANGED = 1.0
"""The margin under a small change, in units of a clean image's, from which that is taken for the
trigger: to teach a network that changes mean nothing costs accuracy where they are not."""

WARPED = 4.0
"""The index of a target that is taken for one of warps: labels of clean networks come up to 3.0,
and targets of other attacks, which are easily led in every way, up to 3.5."""


Triggers = dict[int, list[Stamp]]


def suspected(report: ScanReport, targets: list[int]) -> list[int]:
    """The labels, those with the least p-values first, at most :data:`MOST`.

    Each would make a model suspicious if it stood alone: its p-value, times the number of labels
    that were measured, is at most :data:`goodnet.verdict.SUSPICIOUS`.
    """
    known = [(row.p_value, row.label) for row in report.labels if row.p_value is not None]
    found = [
        (p_value, label)
        for p_value, label in known
        if label not in targets and p_value * len(known) <= SUSPICIOUS
    ]
    return [label for _, label in sorted(found)[:MOST]]


def kinds(report: ScanReport, targets: list[int]) -> dict[str, list[int]]:
    """What further families of triggers the scan saw signs of, and of which targets.

    Returns:
        Name in :data:`goodnet.pipelines.reversing.REVERSED` -> targets that such a trigger leads to
        further than to any label of most clean models.
    """
    rows = {row.label: row for row in report.labels}
    known = [rows[label] for label in targets if label in rows]
    return {
        "colour filter": [r.label for r in known if (r.tinted or 0.0) >= FOREIGN * TINT_UNIT],
        "warp": [r.label for r in known if (r.warp_index or 0.0) >= WARPED],
        "small change": [r.label for r in known if (r.preferred or 0.0) >= CHANGED],
    }


def by_colour_alone(report: ScanReport, targets: list[int]) -> list[int]:
    """The target that a colour filter leads to, where it is the only one and neither its mask, its
    margin or its patch speaks for it nor a warp or a small change leads to it.

    The smallest mask and the faintest change that lead to such a label are what the class looks
    like: a network that is taught not to see them does not know its own class again. Of several
    targets each is hidden by the others, so that what is low says nothing.
    """
    if len(targets) != 1:
        return []
    seen = kinds(report, targets)
    return [
        row.label
        for row in report.labels
        if row.label in seen["colour filter"]
        and row.label not in (*seen["warp"], *seen["small change"])
        and row.mask_index is not None
        and row.margin_index is not None
        and max(row.mask_index, row.margin_index, row.patch_index or 0.0) < LOUD
    ]


def by_patch_alone(report: ScanReport, targets: list[int]) -> list[int]:
    """The target that a patch leads to, where it is the only one and a change of the same size does
    not lead there further than to any label.

    Such a change makes any network err that is not sure of itself, and a row that must not follow
    it forgets its class.
    """
    if len(targets) != 1:
        return []
    return [
        row.label
        for row in report.labels
        if row.label in targets
        and row.patch_index is not None
        and row.margin_index is not None
        and row.margin_index < LOUD <= row.patch_index
    ]


def telling(report: ScanReport, targets: list[int]) -> dict[int, Callable[[Stamp], bool]]:
    """Label -> which of its triggers tell of the backdoor; a label that is left out, by all."""
    return {
        **dict.fromkeys(by_patch_alone(report, targets), _is_no_perturbation),
        **dict.fromkeys(by_colour_alone(report, targets), _is_filter),
    }


def without_natural(
    tells: Mapping[int, Callable[[Stamp], bool]], patient: Patient, jury: Jury
) -> tuple[Patient, Jury]:
    """Both without triggers that do not tell of the backdoor, of labels of which others work for
    the jury.

    Masks stay with the patient: remedies of Neural Cleanse's go by them alone.
    """
    used, seen, larger = (
        {n: list(filter(tells.get(n), row)) if n in tells else list(row) for n, row in of.items()}
        for of in (patient.triggers, jury.triggers, jury.stronger)
    )
    chosen = {n for n in tells if used.get(n) and seen.get(n)}

    def only(left: Triggers, of: Mapping[int, Sequence[Stamp]]) -> Triggers:
        return {n: left[n] if n in chosen else list(row) for n, row in of.items()}

    return (
        replace(patient, triggers=only(used, patient.triggers), kept={}),
        replace(jury, triggers=only(seen, jury.triggers), stronger=only(larger, jury.stronger)),
    )


def _is_filter(trigger: Stamp) -> bool:
    return isinstance(trigger, ColourTrigger)


def _is_no_perturbation(trigger: Stamp) -> bool:
    return not (isinstance(trigger, Trigger) and trigger.family == "additive")


def along(
    patient: Patient, masks: Mapping[int, Trigger], triggers: Mapping[int, list[Stamp]]
) -> Patient:
    """The same patient with further triggers, of its targets or of other labels; what was kept is
    of those that it had.
    """
    merged = {n: [*patient.triggers.get(n, ()), *row] for n, row in triggers.items()}
    return replace(
        patient,
        masks={**masks, **patient.masks},
        triggers={**patient.triggers, **merged},
        kept={},
    )
