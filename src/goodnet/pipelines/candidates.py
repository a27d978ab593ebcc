"""What a remedy has made of a BadNet, how it stands before the jury, and which is the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from goodnet.certificate import ROUNDING, judge
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.pipelines import filtering
from goodnet.pipelines import jury as juries
from goodnet.pipelines.jury import Findings, Jury
from goodnet.remedies import Patient
from goodnet.reports import FilterReport, FreshScan, RemedyTrial, Standing

WORST_FIRST: tuple[Standing, ...] = ("refused", "not certifiable", "holds")

KNOWN = 0.1
"""What accuracy on stamped images is worth beside that on clean ones, of which there are more."""


@dataclass(frozen=True)
class Limits:
    """What a repair is asked to keep, shares in [0, 1]."""

    accuracy_loss: float
    attack_success: float


@dataclass
class Candidate:
    """A remedy's result (the BadNet where it had none), and what was found out about it so far.

    Attributes:
        patient: what it was made of.
        also: labels that were treated along with the targets.
        again: labels that were treated by triggers of an earlier result as well.
    """

    remedy: str
    classifier: Classifier
    findings: Findings
    confidence: float
    standing: Standing
    reason: str
    seconds: float
    patient: Patient
    fresh: FreshScan | None = None
    filter: FilterReport | None = None
    also: tuple[int, ...] = ()
    again: tuple[int, ...] = ()

    def merit(self, before: Findings, limits: Limits) -> tuple[bool, float]:
        """Of candidates that stand alike: whether the loss that is seen is within the limit, or
        one image; then accuracy on clean images and their shifted copies, less the worst attack
        success, and a little of the accuracy on stamped images (:data:`KNOWN`).
        """
        findings = self.findings
        worst, known = findings.hardest
        loss = before.accuracy.value - findings.accuracy.value
        small = loss <= max(limits.accuracy_loss, 1 / findings.accuracy.n) + ROUNDING
        return small, findings.steady - worst + KNOWN * known

    def no_worse(self, other: Candidate, before: Findings, limits: Limits) -> bool:
        """Whether it stands as well as another one, and costs nothing beside it."""
        return (
            WORST_FIRST.index(self.standing) >= WORST_FIRST.index(other.standing)
            and self.merit(before, limits) >= other.merit(before, limits)
            and self.findings.accuracy.value >= other.findings.accuracy.value
        )

    def trial(self, accepted: bool, before: Findings) -> RemedyTrial:
        """What a report tells of it."""
        return RemedyTrial(
            remedy=self.remedy,
            also=list(self.also),
            again=list(self.again),
            standing=self.standing,
            accepted=accepted,
            reason=self.reason,
            clean_accuracy=self.findings.accuracy,
            accuracy_loss=juries.loss(before, self.findings, self.confidence),
            attack_success=self.findings.attacks,
            recovered=self.findings.recovered,
            seconds=round(self.seconds, 2),
        )


def attempt(
    name: str,
    make: Callable[[Patient], Classifier],
    patient: Patient,
    jury: Jury,
    before: Findings,
    confidence: float,
    limits: Limits,
) -> Candidate:
    """Makes a candidate and hears what the jury says of it.

    Args:
        name: of the remedy.
        make: the remedy.
        patient: what it is given.
        jury: its judges.
        before: what they say of the BadNet.
        confidence: of the judgement.
        limits: to keep.

    Raises:
        GoodnetError: of the remedy, but for M013: a network without a last linear layer is a reason
            to try the next one, not to stop.
    """
    started = time.monotonic()
    cured = patient.classifier
    failure = ""
    try:
        cured = make(patient)
    except GoodnetError as error:
        if error.code != "M013":
            raise
        failure = error.message
    findings = before if failure else juries.hear(jury, cured)
    standing: Standing
    if failure:
        standing, reason = "refused", failure
    else:
        standing, reason = judge(
            juries.loss(before, findings, confidence),
            findings.attacks,
            findings.led,
            limits.accuracy_loss,
            limits.attack_success,
        )
    found = None if failure else filtering.report(cured, patient, jury)
    if found is not None and standing != "refused":
        standing, reason = filtering.judge(standing, reason, found)
    seconds = time.monotonic() - started
    return Candidate(
        name, cured, findings, confidence, standing, reason, seconds, patient, filter=found
    )


def best_of(candidates: Sequence[Candidate], before: Findings, limits: Limits) -> Candidate | None:
    """The best of those that hold, else of those that are not refused; the first of equals."""
    for standing in ("holds", "not certifiable"):
        left = [c for c in candidates if c.standing == standing]
        if left:
            return max(left, key=lambda c: c.merit(before, limits))
    return None
