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
from goodnet.remedies import COSTLY, Patient
from goodnet.reports import FilterReport, FreshScan, RemedyTrial, Standing

WORST_FIRST: tuple[Standing, ...] = ("refused", "not certifiable", "holds")

MOST_LEFT, MOST_LOST = 0.25, 0.1
"""Attack success beyond what is usual, and accuracy that is lost, of a result that breaks a limit
and is better than none, where the user does not allow for more."""

KNOWN = 0.05
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
        missed: labels that a fresh scan of this or of another result named, and that were not
            treated here.
        unscannable: whether it answers with nonsense, so that no fresh scan can be made.
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
    missed: tuple[int, ...] = ()
    unscannable: bool = False

    def merit(self, before: Findings, limits: Limits) -> tuple[bool, bool, bool, float]:
        """Of candidates that stand alike: whether the loss that is seen is within the limit, or
        one image; whether no label was missed; whether it is none of the costly; then accuracy on
        clean images and their shifted copies, less the worst attack success beyond what is usual,
        and a little of the accuracy on stamped images (:data:`KNOWN`).
        """
        findings = self.findings
        worst, known = findings.hardest
        loss = before.accuracy.value - findings.accuracy.value
        small = loss <= max(limits.accuracy_loss, 1 / findings.accuracy.n) + ROUNDING
        value = findings.steady - worst + KNOWN * known
        return small, not self.missed, self.remedy not in COSTLY, value

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
            made=self.findings is not before,
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
        GoodnetError: of the remedy, but for M013 and R011: a network without a last linear layer,
            or one that bears no learning rate, is a reason to try the next one, not to stop.
    """
    started = time.monotonic()
    cured = patient.classifier
    failure = ""
    try:
        cured = make(patient)
    except GoodnetError as error:
        if error.code not in ("M013", "R011"):
            raise
        failure = error.message
    candidate = Candidate(name, cured, before, confidence, "refused", failure, 0.0, patient)
    if not failure:
        consider(candidate, jury, before, limits)
    candidate.seconds = time.monotonic() - started
    return candidate


def consider(candidate: Candidate, jury: Jury, before: Findings, limits: Limits) -> None:
    """Hears what the jury says of a candidate, and judges it by that."""
    findings = juries.hear(jury, candidate.classifier)
    standing, reason = judge(
        juries.loss(before, findings, candidate.confidence),
        findings.attacks,
        findings.led,
        limits.accuracy_loss,
        limits.attack_success,
        findings.usual,
    )
    found = filtering.report(candidate.classifier, candidate.patient, jury)
    if found is not None and standing != "refused":
        standing, reason = filtering.judge(standing, reason, found)
    candidate.findings, candidate.filter = findings, found
    candidate.standing, candidate.reason = standing, reason


def best_of(candidates: Sequence[Candidate], before: Findings, limits: Limits) -> Candidate | None:
    """The best of those that hold, else of those that are not refused; the first of equals."""
    for standing in ("holds", "not certifiable"):
        left = [c for c in candidates if c.standing == standing]
        if left:
            return max(left, key=lambda c: c.merit(before, limits))
    return None


def better_than_none(
    candidates: Sequence[Candidate], before: Findings, limits: Limits
) -> list[Candidate]:
    """Those that are shown to break a limit and still take most of the attack away, best first."""
    left = [
        c
        for c in candidates
        if c.standing == "refused"
        and c.findings is not before
        and c.filter is None
        and c.findings.hardest[0] <= max(MOST_LEFT, limits.attack_success)
        and before.accuracy.value - c.findings.accuracy.value
        <= max(MOST_LOST, limits.accuracy_loss) + ROUNDING
        and all(share.n for share in c.findings.attacks.values())
    ]

    def order(candidate: Candidate) -> tuple[bool, float]:
        # That a limit is broken shows: the loss is none that few images hide, and what is costly
        # shows its cost.
        _, whole, _, value = candidate.merit(before, limits)
        return whole, value

    return sorted(left, key=order, reverse=True)
