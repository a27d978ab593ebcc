"""Labels that a scan did not name and did suspect: a repair treats them along, if that is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from goodnet.colours import ColourTrigger
from goodnet.looks import FOREIGN, LOUD
from goodnet.pipelines.jury import Jury
from goodnet.remedies import Patient
from goodnet.reports import ScanReport
from goodnet.scores import TINT_UNIT
from goodnet.trigger import Stamp, Trigger, kind
from goodnet.verdict import SUSPICIOUS

MOST = 3

CONTROLS = 5
"""Labels that a target's triggers are held against after a repair."""

CHANGED = 1.0
"""The margin under a small change, in units of a clean image's, from which that is taken for the
trigger: to teach a network that changes mean nothing costs accuracy where they are not."""

WARPED = 4.0
"""The index of a target that is taken for one of warps: labels of clean networks come up to 3.0,
and targets of other attacks, which are easily led in every way, up to 3.5."""

PLAIN = 10.0
"""The index from which a patch is the trigger, whatever else leads there: four times
:data:`goodnet.looks.LOUD`."""


def suspected(report: ScanReport, targets: list[int]) -> list[int]:
    """The labels, those with the least p-values first, at most :data:`MOST`.

    Each would make a model suspicious if it stood alone: its p-value, times the number of labels
    that were measured, is at most :data:`goodnet.verdict.SUSPICIOUS`.
    """
    return _suspected(report, targets)[:MOST]


def _suspected(report: ScanReport, targets: list[int]) -> list[int]:
    known = [(row.p_value, row.label) for row in report.labels if row.p_value is not None]
    found = [
        (p_value, label)
        for p_value, label in known
        if label not in targets and p_value * len(known) <= SUSPICIOUS
    ]
    return [label for _, label in sorted(found)]


def innocent(report: ScanReport, targets: list[int], num_classes: int, seed: int) -> list[int]:
    """Labels that nothing speaks against, at most :data:`CONTROLS`, drawn at random."""
    known = {*targets, *report.mapping.values(), *report.suspects, *_suspected(report, targets)}
    left = [label for label in range(num_classes) if label not in known]
    drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:CONTROLS]
    return sorted(left[n] for n in drawn.tolist())


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
        "patch": [r.label for r in known if (r.patch_index or 0.0) >= LOUD],
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
    """The target that a small patch leads to by far (:data:`PLAIN`), where it is the only one and
    no faint change leads there further than to any label.

    Such changes make any network err that is not sure of itself, and a row that must not follow
    them forgets its class.
    """
    if len(targets) != 1:
        return []
    return [
        row.label
        for row in report.labels
        if row.label in targets
        and row.patch_index is not None
        and row.margin_index is not None
        and row.patch_index >= PLAIN
        and row.margin_index < LOUD
    ]


def without_natural(
    report: ScanReport, targets: list[int], patient: Patient, jury: Jury
) -> tuple[Patient, Jury]:
    """Both without triggers that do not tell of the backdoor, where others work for the jury.

    Of a target of a filter, all but filters go; of one of a patch, perturbations, and they stay
    with the jury for what its certificate says. Masks stay with the patient: remedies of Neural
    Cleanse's go by them alone.
    """
    for label in by_colour_alone(report, targets):
        patient, jury = only_those(label, is_filter, patient, jury)
    for label in by_patch_alone(report, targets):
        least = jury.triggers.get(label, ())
        if any(map(_is_patch, least)):
            # Larger ones than it takes are no proof against a repair, of whatever kind.
            natural = [t for t in least if not _is_no_perturbation(t)]
            natural += jury.natural.get(label, ())
            patient, jury = only_those(label, _is_no_perturbation, patient, jury)
            jury = replace(jury, natural={**jury.natural, label: natural})
    return patient, jury


def only_those(
    label: int, tells: Callable[[Stamp], bool], patient: Patient, jury: Jury
) -> tuple[Patient, Jury]:
    """Both with those of the label's triggers alone that tell, if each of them has one."""
    used, seen, larger = (
        list(filter(tells, of.get(label, ())))
        for of in (patient.triggers, jury.triggers, jury.stronger)
    )
    if not used or not seen:
        return patient, jury
    natural = {**jury.natural, label: list(filter(tells, jury.natural.get(label, ())))}
    return (
        replace(patient, triggers={**patient.triggers, label: used}, kept={}),
        replace(
            jury,
            triggers={**jury.triggers, label: seen},
            stronger={**jury.stronger, label: larger},
            natural={n: triggers for n, triggers in natural.items() if triggers},
        ),
    )


def is_filter(trigger: Stamp) -> bool:
    """Whether it is a colour filter."""
    return isinstance(trigger, ColourTrigger)


def _is_patch(trigger: Stamp) -> bool:
    return kind(trigger) in ("patch", "sticker")


def _is_no_perturbation(trigger: Stamp) -> bool:
    return kind(trigger) != "additive"


def _natural_alone(jury: Jury, label: int) -> bool:
    """Whether the jury takes all perturbations of a label for natural."""
    known = (*jury.triggers.get(label, ()), *jury.stronger.get(label, ()))
    return label in jury.natural and all(map(_is_no_perturbation, known))


def along(
    patient: Patient, jury: Jury, masks: Mapping[int, Trigger], triggers: Mapping[int, list[Stamp]]
) -> Patient:
    """The same patient with further triggers, of its targets or of other labels, but for
    perturbations of those of which the jury takes them for natural. Rows of those labels are held
    against perturbations as well; what was kept is of the triggers that it had.
    """
    merged = {
        n: [
            *patient.triggers.get(n, ()),
            *(t for t in row if not _natural_alone(jury, n) or _is_no_perturbation(t)),
        ]
        for n, row in triggers.items()
    }
    return replace(
        patient,
        masks={**masks, **patient.masks},
        triggers={**patient.triggers, **merged},
        pressed=frozenset({*patient.pressed, *merged}),
        kept={},
    )
