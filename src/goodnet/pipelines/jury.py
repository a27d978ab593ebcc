"""What judges a repair: images, and the same under each trigger, that no remedy saw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.device import repeatable
from goodnet.evidence import CHANNELS, Case, Effort
from goodnet.evidence.augmentation import changes_towards
from goodnet.evidence.colour_filter import filters_towards
from goodnet.evidence.warp_margin import warps_towards
from goodnet.images import Images
from goodnet.inversion import QUICK
from goodnet.parallel import Progress
from goodnet.pipelines.conclude import answers_to
from goodnet.pipelines.load import quicker
from goodnet.pipelines.placing import AUTO, in_half, placed, threads
from goodnet.preprocess import balanced
from goodnet.reports import AccuracyLoss, ClassChange, Proportion
from goodnet.statistics import accuracy_loss, proportion
from goodnet.trigger import Stamp, Trigger

REVERSED: dict[str, Callable[[Case, int, Effort], Sequence[Stamp]]] = {
    "colour filter": filters_towards,
    "warp": warps_towards,
    "small change": changes_towards,
}
"""Families of triggers that are reversed where the scan saw signs of them; masks and perturbations
are reversed for every target."""

NO_KINDS: Mapping[str, Collection[int]] = MappingProxyType({})

REPAIR_SHARE = 0.5
"""The share of the clean images that a remedy may use; the rest judges it."""

CAREFUL = Effort(images=32, steps=24, inversion=replace(QUICK, batch=24, epochs=20))
"""A few labels' triggers, by which a repair is made and judged, are worth more than a scan's."""

WORKS = 0.5
"""A trigger that succeeds less often on the unrepaired model cannot show that a repair does."""

CHUNK = 512
"""Images that are stamped at a time: thousands, under four triggers each, fill a gigabyte."""

MOST_CLASSES = 5
"""That are told of, of those that lost."""


@dataclass(frozen=True)
class Jury:
    """Held-out images ``(n, C, H, W)`` in [0, 1] with their labels ``(n,)``.

    Attributes:
        triggers: target -> its triggers that work on the unrepaired model.
    """

    pixels: Tensor
    labels: Tensor
    triggers: dict[int, list[Stamp]]


@dataclass(frozen=True)
class Findings:
    """What the jury sees of one classifier.

    Attributes:
        right: ``(n,)`` bool, of the clean images.
        accuracy: the share of them.
        attacks: target -> success of its worst trigger.
        recovered: target -> share of the images under its triggers that are known for what they
            are, of the trigger that leaves the fewest.
    """

    right: Tensor
    accuracy: Proportion
    attacks: dict[int, Proportion]
    recovered: dict[int, Proportion]


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """For the remedy and for the jury: each class as evenly as possible, at random by seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    # Sorted by class, a fixed stride takes the same share of every class.
    order = order[torch.argsort(images.labels[order], stable=True)]
    place = torch.arange(len(order))
    step = 1.0 - REPAIR_SHARE
    judge = ((place + 1) * step).floor() > (place * step).floor()
    return images.select(order[~judge]), images.select(order[judge])


def reverse_triggers(
    classifier: Classifier,
    images: Images,
    targets: list[int],
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str = AUTO,
    *,
    kinds: Mapping[str, Collection[int]] = NO_KINDS,
) -> tuple[dict[int, Trigger], dict[int, list[Stamp]]]:
    """The mask trigger, and all triggers, of every target, fitted to ``images`` alone.

    Args:
        classifier: the BadNet.
        images: clean ones.
        targets: the labels.
        seed: of everything random.
        workers: threads.
        progress: told what is being done.
        device: the scan's.
        kinds: name in :data:`REVERSED` -> those of the targets that such triggers are wanted for.
    """
    chosen = images.select(balanced(images.labels, CAREFUL.images, seed))
    pixels = chosen.floats()
    quick = in_half(quicker(placed(classifier, device, pixels), pixels), pixels)
    place = quick.device.place
    case = Case(
        quick,
        pixels.to(place),
        chosen.labels.to(place),
        seed,
        threads(quick, workers),
        progress,
    )
    effort = replace(CAREFUL, purpose="reversing triggers")
    with repeatable(quick.device):
        margins = CHANNELS["universal_margin"](case, targets, effort)
        inverted = CHANNELS["mask_l1"](case, targets, effort)
        further: list[Stamp] = [
            trigger
            for kind in kinds
            for target in kinds[kind]
            for trigger in REVERSED[kind](case, target, effort)
        ]
    masks = {target: inverted.triggers[target][0] for target in targets}
    every: dict[int, list[Stamp]] = {
        target: [
            *(trigger for trigger in further if trigger.target == target),
            *margins.triggers.get(target, ()),
            masks[target],
        ]
        for target in targets
    }
    return masks, every


def empanel(classifier: Classifier, images: Images, triggers: dict[int, list[Stamp]]) -> Jury:
    """A jury with triggers of its own, fitted to the unrepaired ``classifier`` on ``images``."""
    pixels, labels = images.floats(), images.labels

    def works(trigger: Stamp) -> bool:
        answers = _answers(classifier, pixels[labels != trigger.target], trigger)
        return len(answers) > 0 and float((answers == trigger.target).float().mean()) >= WORKS

    return Jury(pixels, labels, {t: list(filter(works, row)) for t, row in triggers.items()})


def _answers(classifier: Classifier, images: Tensor, trigger: Stamp) -> Tensor:
    """The labels that ``images`` get with the trigger, ``(n,)``."""
    return torch.cat(
        [answers_to(classifier, trigger.apply(part)) for part in torch.split(images, CHUNK)]
    )


def hear(jury: Jury, classifier: Classifier) -> Findings:
    """What the jury sees of ``classifier``."""
    right = answers_to(classifier, jury.pixels) == jury.labels
    attacks, recovered = {}, {}
    for target, triggers in jury.triggers.items():
        chosen = jury.labels != target
        others, truth = jury.pixels[chosen], jury.labels[chosen]
        answers = [_answers(classifier, others, trigger) for trigger in triggers]
        n = len(truth) if triggers else 0
        # The worst trigger, not the mean: stamps that fail must not hide one that works.
        hits = max((int((answer == target).sum()) for answer in answers), default=0)
        known = min((int((answer == truth).sum()) for answer in answers), default=0)
        attacks[target], recovered[target] = proportion(hits, n), proportion(known, n)
    return Findings(right, proportion(int(right.sum()), len(right)), attacks, recovered)


def rejections(
    jury: Jury, before: Classifier, after: Classifier
) -> tuple[Proportion, dict[int, Proportion]]:
    """What the filter of ``after`` rejects: of the clean images, and for each target of those that
    its triggers make ``before`` answer with it; of the trigger that is rejected least.
    """
    caught = after.num_classes
    alarms = int((answers_to(after, jury.pixels) == caught).sum())
    rejected = {}
    for target, triggers in jury.triggers.items():
        others = jury.pixels[jury.labels != target]
        shares = [proportion(0, 0)]
        for trigger in triggers:
            fooled = others[_answers(before, others, trigger) == target]
            hits = int((_answers(after, fooled, trigger) == caught).sum())
            shares.append(proportion(hits, len(fooled)))
        rejected[target] = min(shares[1:] or shares, key=lambda share: share.value)
    return proportion(alarms, len(jury.labels)), rejected


def loss(before: Findings, after: Findings, confidence: float) -> AccuracyLoss:
    """What was lost between the two."""
    lost = int((before.right & ~after.right).sum())
    gained = int((~before.right & after.right).sum())
    return accuracy_loss(lost, gained, len(before.right), confidence)


def worst_classes(jury: Jury, before: Findings, after: Findings) -> list[ClassChange]:
    """The classes that lost most, if any did; those that lost the same in their order."""
    changes = []
    for label in torch.unique(jury.labels).tolist():
        mine = jury.labels == label
        was, now = int(before.right[mine].sum()), int(after.right[mine].sum())
        if now < was:
            changes.append(ClassChange(label=label, images=int(mine.sum()), before=was, after=now))
    return sorted(changes, key=lambda c: (c.after - c.before, c.label))[:MOST_CLASSES]
