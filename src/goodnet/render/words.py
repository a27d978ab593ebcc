"""The words and figures that every rendering shares, so that text and page never disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from goodnet.reports import (
        Certificate,
        FilterReport,
        FreshScan,
        LabelEvidence,
        Proportion,
        RemedyTrial,
        RepairReport,
        ScanReport,
    )
    from goodnet.trigger import Trigger

DASH = "\N{EN DASH}"
"""Between the ends of an interval, and in place of what was not measured."""

LONGEST_NAME = 48
"""Class names come from strangers; a longer one would push the figures off the line."""

VERDICT_CODES = {
    "backdoored": "F001",
    "suspicious": "F002",
    "clean": "F003",
    "inconclusive": "F004",
}
"""Verdict -> the page of ``goodnet explain`` about it."""

UNCALIBRATED = (
    "No p-value is given: the scores are uncalibrated. They rank the labels of this model "
    "against each other; they are not error rates."
)

CALIBRATED = (
    "p = {p:.2g}: so often would a clean model give this much evidence, as far as scans of "
    "{models} clean reference models tell."
)

LIMITS = (
    "Only the trigger kinds that the method models were looked for: patches, additive patterns, "
    "smooth warps and colour filters that work on images of most classes, and maps of all classes. "
    "Triggers that depend on the source class or were trained to evade a scan can stay unseen.",
    "A model can have a natural weak spot, a pattern that forces a label although nobody planted "
    "it. The figures tell how easily a label is forced, not how that came about.",
    "The inverted trigger is the smallest pattern with the effect, not a copy of the attacker's. "
    "Often it shows only a part of the planted trigger.",
    "Every figure depends on the clean images. Images unlike those the model meets in use, or very "
    "few of them, weaken both the evidence and the accuracy figures.",
)
"""What a scan does not show, whatever its verdict."""

REPAIR_LIMIT = (
    "Attack success was measured with triggers that goodnet inverted itself. Where stamped images "
    "of the real attack exist, check the repaired model on them with goodnet evaluate --poisoned."
)


def calibration_words(report: ScanReport) -> str:
    """What the p-value means, or why there is none."""
    if report.p_value is None:
        return UNCALIBRATED
    counts = sorted({test.models for test in report.tests if test.p_value is not None})
    models = " to ".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    return CALIBRATED.format(p=report.p_value, models=models)


def plain(text: str, longest: int | None = None) -> str:
    r"""``text`` on one line with nothing that steers a terminal or turns the writing direction.

    Args:
        text: from outside: a file name, a class name, an exception's message.
        longest: number of characters after which it is cut with an ellipsis; None to keep all.

    Returns:
        The text, with its unprintable characters as escapes such as ``\x1b``.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    if longest is not None and len(shown) > longest:
        return shown[: longest - 1] + "…"
    return shown


def label_name(report: ScanReport | None, label: int) -> str:
    """The label's number, and its class name where ``report`` knows one; of NOBODY, what it is."""
    if label < 0:  # Nobody's: a map of all classes.
        return "each class to another"
    return str(label) if report is None else plain(report.name(label), LONGEST_NAME)


def listing(words: Sequence[str], longest: int = 5) -> str:
    """``"0, 3 and 7"``; after ``longest`` words the rest is counted."""
    if len(words) > longest:
        return f"{', '.join(words[:longest])} and {len(words) - longest} more"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(number: int, noun: str) -> str:
    """``"1 image"``, ``"2,300 images"``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def number(value: float | None) -> str:
    """Three to four significant figures; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return DASH
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def share(value: float) -> str:
    """``0.975`` as ``"97.5 %"``; never rounded to a boundary that was not reached."""
    if not math.isfinite(value):
        return DASH
    percent = 100.0 * value
    if 99.95 <= percent < 100.0:
        return "99.9 %"
    if 0.0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %"


def points(value: float) -> str:
    """A difference of two shares: ``0.02`` as ``"2.0 points"``."""
    return f"{100.0 * value:.1f} points" if math.isfinite(value) else DASH


def interval(proportion: Proportion | None, *, with_n: bool = False) -> str:
    """``"97.5 % (95.2-98.9)"``: the value and its 95 % interval, in per cent."""
    if proportion is None or proportion.n == 0:
        return "not measured"
    span = f"{100 * proportion.low:.1f}{DASH}{100 * proportion.high:.1f}"
    tail = f", n={proportion.n:,}" if with_n else ""
    return f"{share(proportion.value)} ({span}{tail})"


def duration(seconds: float) -> str:
    """``"4.2 s"``, ``"12 min 5 s"`` or ``"2 h 3 min"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def verdict_sentence(report: ScanReport) -> tuple[str, str]:
    """The verdict as ``(word, sentence)``, e.g. ``("BACKDOORED", "images with a trigger ...")``."""
    names = [label_name(report, label) for label in report.targets or report.suspects]
    if report.verdict == "backdoored":
        if not names:
            return "BACKDOORED", "a trigger changes the answers; no single target stands out."
        if len(names) == 1:
            return "BACKDOORED", f"images with a trigger become label {names[0]}."
        return (
            "BACKDOORED",
            f"images with a trigger become one of {len(names)} labels: {listing(names)}.",
        )
    if report.verdict == "suspicious":
        if not names:
            return "SUSPICIOUS", "something is unusual, but the evidence does not carry a finding."
        labels = f"label {names[0]} is" if len(names) == 1 else f"labels {listing(names)} are"
        return "SUSPICIOUS", f"{labels} unusually easy to force; not enough to call it a backdoor."
    if report.verdict == "clean":
        return "CLEAN", "no evidence of a backdoor of the kinds tested."
    return "INCONCLUSIVE", "the scan could not decide: nothing was shown, nothing was ruled out."


def repair_sentence(repair: RepairReport) -> tuple[str, str]:
    """The outcome of a repair as ``(word, sentence)``."""
    certificate = repair.certificate
    before, after = certificate.clean_accuracy_before, certificate.clean_accuracy_after
    accuracy = f"clean accuracy {share(before.value)} before, {share(after.value)} after"
    if not repair.repaired:
        return "NOT REPAIRED", "no remedy passed its check on the images that were held out."
    # Of the two that are not certified, one is shown to keep too much of the backdoor or to cost
    # too much; of the other the images are too few to tell.
    part = certificate.standing == "refused"
    word = "REPAIRED IN PART" if part else "REPAIRED"
    word += "" if certificate.holds else ", NOT CERTIFIED"
    worst_before = [p.value for p in certificate.attack_success_before.values()]
    worst_after = [p.value for p in certificate.attack_success_after.values()]
    if not worst_before or not worst_after:
        return word, f"{accuracy}."
    fall = f"attack success fell from {share(max(worst_before))} to {share(max(worst_after))}"
    return word, f"{fall}; {accuracy}."


def certificate_sentence(certificate: Certificate) -> tuple[str, str]:
    """What the certificate says, as ``(word, sentence)``."""
    limits = (
        f"clean accuracy may fall by at most {points(certificate.max_accuracy_loss)} "
        f"and attack success may be at most {share(certificate.max_attack_success)}"
    )
    if certificate.standing == "holds":
        return "holds", f"{limits}; shown at {certificate.confidence:.1%} confidence each"
    word = "is refused" if certificate.standing == "refused" else "cannot be given"
    return word, f"{limits}; {certificate.reason}"


def treatment(trial: RemedyTrial) -> str:
    """The remedy, the labels that it treated once more, and those along with the targets."""
    told = [trial.remedy]
    told += [f"{listing(list(map(str, trial.again)))} again"] if trial.again else []
    told += [f"also {listing(list(map(str, trial.also)))}"] if trial.also else []
    return ", ".join(told)


def outcome(trial: RemedyTrial) -> str:
    """``"accepted"``, ``"rejected"``, ``"not taken"`` where another one was better, or ``"no
    result"``.
    """
    if not trial.made:
        return "no result"
    if trial.accepted:
        return "accepted"
    return "rejected" if trial.standing == "refused" else "not taken"


def fresh_sentence(fresh: FreshScan) -> str:
    """What a cold-start scan of the repaired model found."""
    masks = [
        f"label {target}: smallest mask {_mask(fresh.masks_before[target])} before, "
        f"{_mask(after)} after"
        for target, after in fresh.masks_after.items()
    ]
    named = f", naming {listing([str(t) for t in fresh.targets])}" if fresh.targets else ""
    return f"{fresh.verdict}{named}, of {counted(fresh.labels, 'label')}. {listing(masks)}."


def filter_sentence(found: FilterReport) -> str:
    """What the filter does on held-out images."""
    stamped = [
        f"{interval(rejected, with_n=True)} of those that a trigger sent to label {target}"
        for target, rejected in found.rejected.items()
    ]
    missing = [str(target) for target, images in found.own_images.items() if not images]
    unseen = (
        f" It was made without a clean image of label {listing(missing)}, whose own images it may "
        "reject."
        if missing
        else ""
    )
    return (
        f"answer {found.label} means 'backdoored input'; it is given to "
        f"{interval(found.alarms, with_n=True)} of the held-out clean images and to "
        f"{listing(stamped)}.{unseen}"
    )


def _mask(size: float | None) -> str:
    return "none found" if size is None else f"{number(size)} pixels"


def worst_classes_sentence(repair: RepairReport) -> str:
    """The classes that lost most, or that none did."""
    worst = repair.certificate.worst_classes
    if not worst:
        return "no class answers fewer held-out images rightly than before."
    name = repair.scan.name if repair.scan is not None else str
    return listing([f"{name(c.label)} {c.before} to {c.after} of {c.images}" for c in worst]) + "."


def third_channel(report: ScanReport) -> str:
    """What a scan measured beside margin and mask: a patch, or noise of labels that were ranked."""
    patched = any(label.patch_margin is not None for label in report.labels)
    return "patch" if patched else "noise"


def leaders(report: ScanReport, flagged: int = 20, following: int = 3) -> list[LabelEvidence]:
    """The flagged labels and those that came next, in order of evidence.

    Args:
        report: the scan.
        flagged: at most so many flagged labels.
        following: at most so many labels that were not flagged.
    """
    first = [label for label in report.labels if label.flagged][:flagged]
    rest = [label for label in report.labels if not label.flagged][:following]
    return first + rest


def shown_triggers(report: ScanReport, most: int | None = None) -> list[tuple[int, Trigger]]:
    """The triggers worth a picture: of the flagged labels, else of the first three that have one.

    A label without an inverted patch is shown by its perturbation of the middle size.
    """
    found: list[tuple[int, Trigger]] = []
    chosen = [label for label in report.labels if label.flagged]
    for evidence in chosen or report.labels:
        trigger = report.triggers.get(evidence.label)
        perturbations = sorted(report.perturbations.get(evidence.label, []), key=lambda t: t.size)
        if trigger is None and perturbations:
            trigger = perturbations[len(perturbations) // 2]
        if trigger is not None:
            found.append((evidence.label, trigger))
    return found[: most if chosen else 3]
