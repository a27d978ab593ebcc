"""What a remedy has made of a BadNet, how it stands before the jury, and which is the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from goodnet.certificate import ROUNDING, judge
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.pipelines import filtering
from goodnet.pipelines import jury as juries
from goodnet.pipelines.jury import Findings, Jury
from goodnet.remedies import Patient
from goodnet.reports import FilterReport, FreshScan, RemedyTrial, Standing

WORST_FIRST: tuple[Standing, ...] = ("refused", "not certifiable", "holds")


@dataclass(frozen=True)
class Limits:
    """What a repair is asked to keep, shares in [0, 1]."""

    accuracy_loss: float
    attack_success: float


@dataclass
class Candidate:
    """A remedy's result (the BadNet where it had none), and what was found out about it so far.

    Attributes:
        share: how far it lies from the BadNet's weights to what the remedy made.
        also: labels that were treated along with the targets.
    """

    remedy: str
    classifier: Classifier
    findings: Findings
    confidence: float
    standing: Standing
    reason: str
    seconds: float
    fresh: FreshScan | None = None
    filter: FilterReport | None = None
    share: float = 1.0
    also: tuple[int, ...] = ()

    def affordable(self, before: Findings, limits: Limits) -> bool:
        """Whether the loss of accuracy that is seen is within the limit, or one image."""
        seen = before.accuracy.value - self.findings.accuracy.value
        return seen <= max(limits.accuracy_loss, 1 / self.findings.accuracy.n) + ROUNDING

    def merit(self, before: Findings, limits: Limits) -> tuple[bool, float]:
        """Of candidates that stand alike: whether it is affordable; then clean accuracy, less the
        worst attack success, and accuracy on stamped images, each counted once.
        """
        worst, known = self.findings.hardest
        value = self.findings.accuracy.value - worst + known
        return self.affordable(before, limits), value

    def no_worse(self, other: Candidate, before: Findings, limits: Limits) -> bool:
        """Whether it stands as well as another one, and costs nothing beside it."""
        return (
            WORST_FIRST.index(self.standing) >= WORST_FIRST.index(other.standing)
            and self.merit(before, limits) >= other.merit(before, limits)
            and self.findings.accuracy.value >= other.findings.accuracy.value
        )

    def as_safe_as(self, whole: Candidate, before: Findings, limits: Limits) -> Candidate:
        """Itself, refused where what was taken back lets more of the attack in, or wins less on
        clean images than it costs on stamped ones.
        """
        mine, its = (
            max((shown.value for shown in one.findings.attacks.values()), default=1.0)
            for one in (self, whole)
        )
        if self.standing == "refused":
            return self
        # Its own confidence is the higher one, by which less is shown, also to its disadvantage.
        loss = juries.loss(before, self.findings, whole.confidence)
        standing, reason = judge(
            loss, self.findings.attacks, limits.accuracy_loss, limits.attack_success
        )
        if standing == "refused":
            return replace(self, standing="refused", reason=reason)
        if mine > its + ROUNDING:
            reason = f"with a part taken back {mine:.1%} of stamped images reach a target again"
            return replace(self, standing="refused", reason=reason)
        if self.merit(before, limits)[1] < whole.merit(before, limits)[1] - ROUNDING:
            reason = "taking a part back costs more on stamped images than it wins on clean ones"
            return replace(self, standing="refused", reason=reason)
        return self

    def trial(self, accepted: bool, before: Findings) -> RemedyTrial:
        """What a report tells of it."""
        return RemedyTrial(
            remedy=self.remedy,
            share=self.share,
            also=list(self.also),
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
        make: the remedy, or what is made of its result.
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
            limits.accuracy_loss,
            limits.attack_success,
        )
    found = None if failure else filtering.report(cured, patient, jury)
    if found is not None and standing != "refused":
        standing, reason = filtering.judge(standing, reason, found)
    seconds = time.monotonic() - started
    return Candidate(name, cured, findings, confidence, standing, reason, seconds, filter=found)


def best_of(candidates: Sequence[Candidate], before: Findings, limits: Limits) -> Candidate | None:
    """The best of those that hold, else of those that are not refused; the first of equals."""
    for standing in ("holds", "not certifiable"):
        left = [c for c in candidates if c.standing == standing]
        if left:
            return max(left, key=lambda c: c.merit(before, limits))
    return None
