"""The repair: a BadNet goes in, a GoodNet with a certificate comes out.

The clean images are split once. Triggers that a remedy may use are fitted to the one part; the
other part judges, with triggers of its own that were fitted to the *unrepaired* model there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.evidence import CHANNELS, Case, Effort
from goodnet.images import Images, check_images
from goodnet.inversion import QUICK
from goodnet.parallel import Progress, silent
from goodnet.pipelines.conclude import count_hits, data_ref, model_ref
from goodnet.pipelines.scan import check_seed, scan
from goodnet.preprocess import balanced
from goodnet.remedies import REMEDIES, Patient
from goodnet.reports import Certificate, Proportion, RemedyTrial, RepairReport, ScanReport
from goodnet.statistics import proportion
from goodnet.trigger import Trigger
from goodnet.version import __version__

REPAIR_SHARE = 0.6
"""The share of the clean images that a remedy may use; the rest judges it."""


CAREFUL = Effort(images=32, steps=24, inversion=replace(QUICK, batch=24, epochs=20))
"""A few labels' triggers, by which a repair is made and judged, are worth more than a scan's."""

FEWEST_JUDGES = 20
"""Fewer held-out images than this can show nothing."""

ROUNDING = 1e-9
"""Shares are quotients of counts: a loss of exactly the limit must not fail by a rounding."""


@dataclass(frozen=True)
class GoodNet:
    """The outcome: a repaired ``classifier`` where ``report.repaired``, else the BadNet itself."""

    classifier: Classifier
    report: RepairReport


@dataclass(frozen=True)
class _Jury:
    """What judges a candidate: images, and the same under each trigger, that no remedy saw."""

    pixels: Tensor
    labels: Tensor
    stamped: dict[int, list[Tensor]]


def repair(
    classifier: Classifier,
    images: Images,
    report: ScanReport | None = None,
    *,
    remedy: str = "auto",
    max_accuracy_loss: float = 0.02,
    max_attack_success: float = 0.02,
    force: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> GoodNet:
    """Removes the backdoors that a scan found.

    Args:
        classifier: the BadNet; it is not changed.
        images: clean images, also those that were scanned with.
        report: of a scan of this very model; without one the scan is made first.
        remedy: one of :data:`goodnet.remedies.REMEDIES`, or ``"auto"``: the mildest whose check on
            held-out clean and held-out stamped images passes.
        max_accuracy_loss: how much held-out clean accuracy may fall, in [0, 1].
        max_attack_success: what share of held-out stamped images may still reach a target.
        force: treat the most suspicious label of a model in which no target was found.
        seed: of the split and of everything else that is random.
        workers: threads; one a core by default.
        progress: told what is being done and how far it is.

    Raises:
        GoodnetError: R002 for a report of another model, R003 for an unknown remedy or share, R004
            when there is nothing to repair; those of the scan for unusable images.
    """
    started = time.monotonic()
    check_seed(seed)
    names = _names(remedy, max_accuracy_loss, max_attack_success)
    check_images(images, classifier=classifier)
    if report is None:
        report = scan(classifier, images, seed=seed, workers=workers, progress=progress)
    targets = _targets(classifier, report, force)
    mine, theirs = _split(images, seed)
    patient = _patient(classifier, mine, targets, seed, workers, progress)
    jury = _jury(classifier, theirs, targets, seed, workers, progress)
    before, attacks = _judge(classifier, jury)
    trials: list[RemedyTrial] = []
    cured = classifier
    for done, name in enumerate(names):
        progress(f"trying {name}", done, len(names))
        candidate, trial = _try(name, patient, jury, before, max_accuracy_loss, max_attack_success)
        trials.append(trial)
        if trial.accepted and candidate is not None:
            cured = candidate
            break
    progress("repairing", len(names), len(names))
    last = trials[-1]
    certificate = Certificate(
        holds=last.accepted,
        clean_accuracy_before=before,
        clean_accuracy_after=last.clean_accuracy,
        attack_success_before=attacks,
        attack_success_after=last.attack_success,
        max_accuracy_loss=max_accuracy_loss,
        max_attack_success=max_attack_success,
    )
    return GoodNet(
        cured,
        RepairReport(
            version=__version__,
            repaired=last.accepted,
            remedy=last.remedy if last.accepted else None,
            targets=targets,
            trials=trials,
            certificate=certificate,
            repair_images=len(mine),
            held_out_images=len(theirs),
            preprocess=classifier.preprocess.name,
            seed=seed,
            seconds=round(time.monotonic() - started, 2),
            model=model_ref(classifier),
            data=data_ref(images),
            scan=report,
        ),
    )


def _names(remedy: str, loss: float, success: float) -> list[str]:
    if remedy != "auto" and remedy not in REMEDIES:
        raise GoodnetError(
            "R003",
            f"unknown remedy '{remedy}'",
            f"choose one of auto, {', '.join(REMEDIES)}",
        )
    if not (0.0 <= loss <= 1.0 and 0.0 <= success <= 1.0):
        raise GoodnetError(
            "R003", "a share lies outside 0..1", "give, say, 0.02 for two in a hundred"
        )
    return list(REMEDIES) if remedy == "auto" else [remedy]


def _targets(classifier: Classifier, report: ScanReport, force: bool) -> list[int]:
    if classifier.sha256 and report.model.sha256 != classifier.sha256:
        raise GoodnetError(
            "R002",
            "the scan report is of another model (its SHA-256 differs)",
            "scan this model, or leave the report out",
        )
    if report.targets:
        return list(report.targets)
    if force and report.labels:
        return [report.labels[0].label]
    raise GoodnetError(
        "R004",
        f"the scan found no backdoor to repair (verdict: {report.verdict})",
        "use the model as it is, or force the repair of its most suspicious label",
    )


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """Each class as evenly as possible on both sides, at random by seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    # Sorted by class, a fixed stride takes the same share of every class.
    order = order[torch.argsort(images.labels[order], stable=True)]
    place = torch.arange(len(order))
    step = 1.0 - REPAIR_SHARE
    judge = ((place + 1) * step).floor() > (place * step).floor()
    return images.select(order[~judge]), images.select(order[judge])


def _patient(
    classifier: Classifier,
    images: Images,
    targets: list[int],
    seed: int,
    workers: int | None,
    progress: Progress,
) -> Patient:
    masks, triggers = _triggers(classifier, images, targets, seed + 1, workers, progress)
    return Patient(classifier, images.floats(), images.labels, masks, triggers, seed)


def _triggers(
    classifier: Classifier,
    images: Images,
    targets: list[int],
    seed: int,
    workers: int | None,
    progress: Progress,
) -> tuple[dict[int, Trigger], dict[int, list[Trigger]]]:
    """The mask trigger, and all triggers, of every target, fitted to ``images`` alone."""
    chosen = images.select(balanced(images.labels, CAREFUL.images, seed))
    case = Case(classifier, chosen.floats(), chosen.labels, seed, workers, progress)
    effort = replace(CAREFUL, purpose="reversing triggers")
    margins = CHANNELS["universal_margin"](case, targets, effort)
    inverted = CHANNELS["mask_l1"](case, targets, effort)
    masks = {target: inverted.triggers[target][0] for target in targets}
    every = {target: [*margins.triggers.get(target, ()), masks[target]] for target in targets}
    return masks, every


def _jury(
    classifier: Classifier,
    images: Images,
    targets: list[int],
    seed: int,
    workers: int | None,
    progress: Progress,
) -> _Jury:
    _, triggers = _triggers(classifier, images, targets, seed + 2, workers, progress)
    pixels = images.floats()
    stamped: dict[int, list[Tensor]] = {}
    for target in targets:
        others = pixels[images.labels != target]
        # A trigger that does not work on the unrepaired model cannot show that a repair does.
        working = [
            shown
            for trigger in triggers[target]
            if _hits(classifier, shown := trigger.apply(others), target) >= 0.5
        ]
        stamped[target] = working
    return _Jury(pixels, images.labels, stamped)


def _hits(classifier: Classifier, images: Tensor, target: int) -> float:
    return count_hits(classifier, images, target) / max(1, len(images))


def _judge(classifier: Classifier, jury: _Jury) -> tuple[Proportion, dict[int, Proportion]]:
    right = int((classifier.logits(jury.pixels).argmax(1) == jury.labels).sum())
    attacks = {}
    for target, versions in jury.stamped.items():
        # The worst trigger, not the mean: stamps that fail must not hide one that works.
        worst = max((count_hits(classifier, shown, target) for shown in versions), default=0)
        attacks[target] = proportion(worst, len(versions[0]) if versions else 0)
    return proportion(right, len(jury.pixels)), attacks


def _try(
    name: str,
    patient: Patient,
    jury: _Jury,
    before: Proportion,
    max_loss: float,
    max_success: float,
) -> tuple[Classifier | None, RemedyTrial]:
    started = time.monotonic()
    candidate: Classifier | None = None
    failure = ""
    try:
        candidate = REMEDIES[name](patient)
    except GoodnetError as error:
        # A network without a last linear layer is a reason to try the next remedy, not to stop.
        if error.code != "M013":
            raise
        failure = error.message
    accuracy, attacks = _judge(candidate or patient.classifier, jury)
    loss = before.value - accuracy.value
    worst = max(attacks, key=lambda target: attacks[target].value)
    if failure:
        reason = failure
    elif not all(shown.n for shown in attacks.values()):
        reason = "no reversed trigger works on the held-out images, so nothing can be shown"
    elif len(jury.pixels) < FEWEST_JUDGES:
        reason = f"not certifiable: only {len(jury.pixels)} images are held out"
    elif loss > max_loss + ROUNDING:
        reason = f"clean accuracy falls by {loss:.3f}, more than {max_loss:g}"
    elif attacks[worst].value > max_success + ROUNDING:
        reason = (
            f"{attacks[worst].value:.1%} of stamped images still become label {worst}, "
            f"more than {max_success:.1%}"
        )
    else:
        reason = "passed on held-out clean and held-out stamped images"
    trial = RemedyTrial(
        remedy=name,
        accepted=reason.startswith("passed"),
        reason=reason,
        clean_accuracy=accuracy,
        attack_success=attacks,
        seconds=round(time.monotonic() - started, 2),
    )
    return candidate, trial


def certified(goodnet: GoodNet, output: Path) -> RepairReport:
    """The report with the hash of the file that was written."""
    from goodnet.formats.files import sha256
    from goodnet.reports import FileRef

    return goodnet.report.model_copy(
        update={"output": FileRef(path=str(output), sha256=sha256(output))}
    )
