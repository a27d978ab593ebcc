"""The repair: a BadNet goes in, a GoodNet with a certificate comes out.

The clean images are split once. Triggers that a remedy may use are fitted to the one part; the
other part judges, with triggers of its own that were fitted to the *unrepaired* model there. What
passes is scanned again from a cold start. Labels that this scan names, or that were under suspicion
before, are treated along: one of them may be a target that was missed beside the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.images import Images, check_images
from goodnet.parallel import Progress, silent
from goodnet.pipelines import filtering
from goodnet.pipelines import jury as juries
from goodnet.pipelines.begin import check_seed
from goodnet.pipelines.candidates import Candidate, Limits
from goodnet.pipelines.conclude import data_ref, model_ref
from goodnet.pipelines.fresh import fresh_scan
from goodnet.pipelines.jury import Findings, Jury
from goodnet.pipelines.load import weights_sha256
from goodnet.pipelines.placing import AUTO
from goodnet.pipelines.reversing import Wanted, reverse, reverse_both, reverse_controls
from goodnet.pipelines.scan import scan
from goodnet.pipelines.suspects import (
    along,
    innocent,
    kinds,
    suspected,
    without_natural,
)
from goodnet.pipelines.trying import Trials, try_all
from goodnet.remedies import BY_NAME, FIRST, OF_ROWS, REMEDIES, Patient
from goodnet.remedies.patient import FALSE_ALARMS
from goodnet.reports import Certificate, FreshScan, RepairReport, ScanReport
from goodnet.trigger import NOBODY
from goodnet.version import __version__


@dataclass(frozen=True)
class GoodNet:
    """The outcome: a repaired ``classifier`` where ``report.repaired``, else the BadNet itself.

    What is known of the repaired one, ``report.certificate.standing`` says: only ``"holds"`` is
    proof.
    """

    classifier: Classifier
    report: RepairReport


def repair(
    classifier: Classifier,
    images: Images,
    report: ScanReport | None = None,
    *,
    remedy: str = "auto",
    max_accuracy_loss: float = 0.02,
    max_attack_success: float = 0.02,
    max_false_alarms: float = FALSE_ALARMS,
    force: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
    device: str = AUTO,
) -> GoodNet:
    """Removes the backdoors that a scan found.

    Args:
        classifier: the BadNet; it is not changed.
        images: clean images, also those that were scanned with.
        report: of a scan of this very model; without one the scan is made first.
        remedy: one of :data:`goodnet.remedies.REMEDIES`, or ``"auto"``: of those that are shown to
            keep both limits (if the images are too few to show it of any, of those that are not
            shown to break one; else of those that take most of the attack away at a bearable cost)
            the best by clean accuracy, attack success, and accuracy on stamped images together.
        max_accuracy_loss: how much clean accuracy may fall, in [0, 1].
        max_attack_success: what share of stamped images may still reach a target.
        max_false_alarms: what share of clean images the remedy ``"filter"`` may reject.
        force: treat the labels under suspicion, or the leading one, of a model without a finding.
        seed: of the split and of everything else that is random.
        workers: threads; one a core by default.
        progress: told what is being done and how far it is.
        device: as of a scan, for its searches; remedies work on the processor.

    Raises:
        GoodnetError: R002 for a report of another model, R003 for an unknown remedy or share, R004
            when there is nothing to repair; those of the scan for unusable images.
    """
    started = time.monotonic()
    check_seed(seed)
    first, later = _names(remedy, max_accuracy_loss, max_attack_success, max_false_alarms)
    check_images(images, classifier=classifier)
    filtering.check(classifier, remedy)
    if report is None:
        report = scan(
            classifier, images, seed=seed, workers=workers, progress=progress, device=device
        )
    means = (workers, progress, device)
    seeds = [(seed + n) % 2**32 for n in range(5)]
    targets = _targets(classifier, report, force)
    mine, theirs = juries.split(images, seed)
    mapping = {} if remedy in OF_ROWS or not report.targets else report.mapping
    wanted = Wanted(targets, kinds(report, targets), mapping)
    (masks, triggers), (_, others) = reverse_both(
        wanted, classifier, (mine, theirs), (seeds[1], seeds[2]), *means
    )
    mapped = NOBODY in triggers
    if mapped:
        first, later = ([name for name in some if name not in OF_ROWS] for some in (first, later))
    patient = Patient(
        classifier, mine.floats(), mine.labels, masks, triggers, seed, max_false_alarms
    )
    jury = juries.empanel(classifier, theirs, others, mapping)
    patient, jury = without_natural(report, targets, patient, jury)
    suspects = suspected(report, targets)
    before = juries.hear(jury, classifier)
    limits = Limits(max_accuracy_loss, max_attack_success)

    def scanned(candidate: Candidate) -> FreshScan:
        treated = [*targets, *candidate.also]
        return fresh_scan(candidate.classifier, images, report, targets, treated, seeds[3], *means)

    def widened(of: Patient, labels: Collection[int], network: Classifier) -> Patient:
        return along(of, jury, *reverse(Wanted(list(labels)), network, mine, seeds[4], *means))

    def controlled(of: Jury) -> Jury:
        labels = innocent(report, targets, classifier.num_classes, seed)
        if len(labels) < juries.LEAST_CONTROLS or not of.triggers.keys() - {NOBODY}:
            return of
        patches = bool(wanted.kinds.get("patch"))
        found = reverse_controls(classifier, theirs, labels, seeds[2], *means, patches=patches)
        return juries.controlled(of, classifier, found)

    trials = Trials(
        patient,
        REMEDIES,
        jury,
        before,
        limits,
        targets,
        scanned,
        None if mapped else widened,
        controlled,
        progress,
    )
    best = try_all(trials, first, later, suspects)
    shown = best or trials.made[-1]
    return GoodNet(
        classifier if best is None else _told_apart(best.classifier),
        RepairReport(
            version=__version__,
            repaired=best is not None,
            remedy=best.remedy if best is not None else None,
            targets=targets,
            also=list(best.also) if best is not None else [],
            trials=[candidate.trial(candidate is best, before) for candidate in trials.made],
            certificate=_certificate(shown, jury, before, limits),
            repair_images=len(mine),
            held_out_images=len(theirs),
            preprocess=classifier.preprocess.name,
            seed=seed,
            seconds=round(time.monotonic() - started, 2),
            model=model_ref(classifier),
            data=data_ref(images),
            scan=report,
            filter=best.filter if best is not None else None,
        ),
    )


def _told_apart(cured: Classifier) -> Classifier:
    """A result under its own hash, so that no report of it passes for one of the BadNet."""
    return replace(cured, sha256=weights_sha256(cured.module), changed=True)


def _names(remedy: str, *shares: float) -> tuple[list[str], list[str]]:
    """Remedies that are all tried, and others that are tried one by one if those will not do."""
    if remedy != "auto" and remedy not in REMEDIES:
        raise GoodnetError(
            "R003",
            f"unknown remedy '{remedy}'",
            f"choose one of auto, {', '.join(REMEDIES)}",
        )
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise GoodnetError(
            "R003", "a share lies outside 0..1", "give, say, 0.02 for two in a hundred"
        )
    if remedy != "auto":
        return [remedy], []
    first = [name for name in REMEDIES if name in FIRST]
    later = [name for name in REMEDIES if name not in (*FIRST, *BY_NAME)]
    return (first, later) if first else (later, [])


def _targets(classifier: Classifier, report: ScanReport, force: bool) -> list[int]:
    if classifier.sha256 and report.model.sha256 != classifier.sha256:
        raise GoodnetError(
            "R002",
            "the scan report is of another model (its SHA-256 differs)",
            "scan this model, or leave the report out",
        )
    told = [*report.targets, *report.suspects, *(row.label for row in report.labels)]
    told += [label for pair in report.mapping.items() for label in pair]
    if not all(0 <= label < classifier.num_classes for label in told):
        raise GoodnetError(
            "R002",
            f"the scan report names labels that the model's {classifier.num_classes} do not have",
            "scan this model, or leave the report out",
        )
    if report.targets:
        return list(report.targets)
    if force and report.labels:
        return list(report.suspects) or [report.labels[0].label]
    raise GoodnetError(
        "R004",
        f"the scan found no backdoor to repair (verdict: {report.verdict})",
        "use the model as it is, or force the repair of its most suspicious label",
    )


def _certificate(candidate: Candidate, jury: Jury, before: Findings, limits: Limits) -> Certificate:
    after = candidate.findings
    return Certificate(
        standing=candidate.standing,
        reason=candidate.reason,
        confidence=candidate.confidence,
        clean_accuracy_before=before.accuracy,
        clean_accuracy_after=after.accuracy,
        accuracy_loss=juries.loss(before, after, candidate.confidence),
        attack_success_before=before.attacks,
        attack_success_after=after.attacks,
        recovered_before=before.recovered,
        recovered_after=after.recovered,
        worst_classes=juries.worst_classes(jury, before, after),
        fresh=candidate.fresh,
        max_accuracy_loss=limits.accuracy_loss,
        max_attack_success=limits.attack_success,
    )


def certified(goodnet: GoodNet, output: Path) -> RepairReport:
    """The report with the hash of the file that was written."""
    from goodnet.formats.files import sha256
    from goodnet.reports import FileRef

    return goodnet.report.model_copy(
        update={"output": FileRef(path=str(output), sha256=sha256(output))}
    )
