"""Which remedies are tried, in which order, and which result is taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from goodnet.certificate import confidences, judge_fresh, still_there
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.parallel import Progress
from goodnet.pipelines.candidates import (
    Candidate,
    Limits,
    attempt,
    best_of,
    better_than_none,
    consider,
)
from goodnet.pipelines.jury import Findings, Jury
from goodnet.remedies import WITHOUT_TRIGGERS, Patient, Remedy
from goodnet.reports import FreshScan

MORE = 2
"""How often a result is made once more by what a fresh scan of it names."""


@dataclass
class Trials:
    """Of one repair.

    Attributes:
        patient: what the remedies are given.
        remedies: by name.
        jury: what judges them.
        before: what it says of the BadNet.
        limits: to keep.
        targets: the labels that are repaired.
        scanned: scans a result afresh.
        widened: of a patient, labels and a network, the patient with triggers that lead that
            network to these labels; None where there are no labels to go by.
        controlled: of a jury, the same with triggers of innocent labels to hold a repair against.
        progress: told what is being done.
        made: what was tried so far.
        held: whether the jury has been given those.
    """

    patient: Patient
    remedies: Mapping[str, Remedy]
    jury: Jury
    before: Findings
    limits: Limits
    targets: Sequence[int]
    scanned: Callable[[Candidate], FreshScan]
    widened: Callable[[Patient, Collection[int], Classifier], Patient] | None
    controlled: Callable[[Jury], Jury]
    progress: Progress
    made: list[Candidate] = field(default_factory=list)
    held: bool = False


def try_all(
    trials: Trials, first: Sequence[str], later: Sequence[str], suspects: Collection[int]
) -> Candidate | None:
    """The result that is taken, or None; :attr:`Trials.made` tells of all.

    The best of the first remedies is taken, or else the first of the others that will do, or else
    the best of those that break a limit and are better than none. Where a
    fresh scan of it names labels it is made once more, by the triggers that lead the *result* to
    them: of the target, as a trigger that was reversed is not the only one that works, and of
    others, which were not seen beside it. Labels that were suspected before are treated along where
    that costs nothing.

    Args:
        trials: nothing made yet.
        first: remedies that are all tried.
        later: others that are tried one by one if those will not do.
        suspects: labels that the scan suspected, but did not name.

    Raises:
        GoodnetError: those of the remedies and of the scan.
    """
    by_labels = not {*first, *later} <= {*WITHOUT_TRIGGERS}
    widened = trials.widened if by_labels else None
    more = MORE if widened is not None else 0
    # Each has its share of the error, used or not.
    sure = confidences(len(first), len(later) + more)
    spare = sure[len(first) + len(later) :]
    total = len(first) + len(later)

    def made(name: str, patient: Patient, confidence: float) -> Candidate:
        of = (patient, trials.jury, trials.before, confidence, trials.limits)
        candidate = attempt(name, trials.remedies[name], *of)
        trials.made.append(candidate)
        return candidate

    def once_more(best: Candidate, labels: Collection[int], network: Classifier) -> None:
        if widened is None or not spare or not labels or best.remedy in WITHOUT_TRIGGERS:
            return
        trials.progress(f"trying {best.remedy} with more triggers", total, total)
        candidate = made(best.remedy, widened(best.patient, labels, network), spare.pop())
        known = {*trials.targets, *best.also}
        candidate.also = (*best.also, *(label for label in labels if label not in known))
        candidate.again = tuple(
            sorted({*best.again, *(label for label in labels if label in known)})
        )

    def leader() -> Candidate | None:
        """The best so far, by what fresh scans of any of them have named."""
        named = {n for c in trials.made if c.fresh for n in c.fresh.targets}
        for candidate in trials.made:
            # Its own scan knows best; of others' labels those that it treated are no reproach.
            fresh = candidate.fresh
            told = {*fresh.targets} if fresh is not None else named - {*candidate.also}
            candidate.missed = tuple(sorted(told - {*trials.targets}))
        return best_of(trials.made, trials.before, trials.limits)

    def controlled() -> Candidate | None:
        """The best, once those that no scan has refused are held against innocent labels.

        Perturbations lead images of a small network anywhere: how many, is worth the time only
        where it decides.
        """
        if trials.held:
            return None
        before, trials.held = trials.jury, True
        trials.jury = trials.controlled(before)
        if trials.jury is before:
            return None
        for candidate in trials.made:
            judged = candidate.findings is not trials.before and candidate.fresh is None
            if judged and not candidate.unscannable:
                consider(candidate, trials.jury, trials.before, trials.limits)
        return leader()

    def looked_at(best: Candidate | None) -> Candidate | None:
        """The best after fresh scans of it, and of what is made by what these name."""
        while best is not None and best.fresh is None:
            once_more(best, _look_again(best, trials), best.classifier)
            best = leader() or controlled()
        return best

    def second_best() -> Candidate | None:
        """The best of those that break a limit and are better than none, or None."""
        while left := [
            c
            for c in better_than_none(trials.made, trials.before, trials.limits)
            if not c.unscannable and not (c.fresh and still_there(c.fresh, trials.targets))
        ]:
            if left[0].fresh is not None:
                return left[0]
            once_more(left[0], _look_again(left[0], trials), left[0].classifier)
            if (best := looked_at(leader())) is not None:
                return best
        return None

    tried = 0
    for names in [first, *([name] for name in later)]:
        for name in names:
            trials.progress(f"trying {name}", tried, total)
            made(name, trials.patient, sure[tried])
            tried += 1
        best = looked_at(leader() or controlled())
        if best is not None:
            break
    if best is not None and len(spare) == more:
        once_more(best, suspects, trials.patient.classifier)
        wide = trials.made[-1]
        if wide.also and wide.no_worse(best, trials.before, trials.limits):
            _look_again(wide, trials)
            leader()
            best = wide if wide.no_worse(best, trials.before, trials.limits) else best
    if best is None:
        best = second_best()
    trials.progress("trying remedies", total, total)
    return best


def _look_again(candidate: Candidate, trials: Trials) -> list[int]:
    """Judges it by a fresh scan, and returns the labels that this names."""
    try:
        fresh = trials.scanned(candidate)
    except GoodnetError as error:
        # A result that answers with nonsense cannot be scanned, and is none.
        if error.code not in ("D010", "M012"):
            raise
        candidate.standing, candidate.reason = "refused", error.message
        candidate.unscannable = True
        return []
    candidate.fresh = fresh
    candidate.standing, candidate.reason = judge_fresh(
        candidate.standing, candidate.reason, fresh, list(trials.targets)
    )
    return list(fresh.targets)
