"""What judges a repair: images, and the same under each trigger, that no remedy saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.images import Images
from goodnet.pipelines.conclude import answers_to
from goodnet.remedies.surroundings import shifted
from goodnet.reports import AccuracyLoss, ClassChange, Proportion
from goodnet.statistics import accuracy_loss, proportion
from goodnet.trigger import NOBODY, Stamp, Trigger, kind
from goodnet.warp import WarpTrigger

NO_MAP: Mapping[int, int] = MappingProxyType({})
REPAIR_SHARE, LARGER_SHARE, FEW = 0.5, 2 / 3, 100
"""The share of the clean images that a remedy may use; the rest judges it. A larger one where there
are so few that nothing can be certified anyway."""

WORKS = 0.5
"""A trigger that succeeds less often on the unrepaired model cannot show that a repair does."""

AS_WELL = 0.9
"""Of the success of a label's best perturbation. One too faint to set the backdoor off leads
where the class is near by itself: of a network with three targets 75 % of images after a repair,
when the larger ones led 3 % and none."""

CHUNK = 512
"""Images that are stamped at a time: thousands, under four triggers each, fill a gigabyte."""

COPIES, MOST_COPIES = 8, 4096
"""Shifted copies of each image, and of all: one of each where these are more."""

LEAST_CONTROLS, MOST_USUAL = 3, 0.25
"""Innocent labels that tell what is usual, and the most that is."""

MOST_CLASSES = 5
"""That are told of, of those that lost."""


@dataclass(frozen=True)
class Jury:
    """Held-out images ``(n, C, H, W)`` in [0, 1] with their labels ``(n,)``.

    Attributes:
        triggers: target -> its triggers that work on the unrepaired model, of perturbations (that
            work about as well as any) and of warps the least; those of a map of the classes are
            :data:`goodnet.trigger.NOBODY`'s.
        stronger: target -> further ones, larger than it takes.
        natural: target -> further ones that lead there and do not tell of the backdoor: a
            certificate speaks of them as well, but no repair is refused by them.
        mapping: class -> label of that map.
        controls: innocent label -> triggers of it, of kinds that have a fixed size: by those a
            repair is told what such changes do to a network without a backdoor.
        allowed: kind and size -> what those do on the unrepaired model: a repair that makes a
            network easier to lead is not forgiven for it.
    """

    pixels: Tensor
    labels: Tensor
    triggers: dict[int, list[Stamp]]
    mapping: Mapping[int, int] = field(default_factory=dict)
    controls: Mapping[int, Sequence[Stamp]] = field(default_factory=dict)
    allowed: Mapping[object, float] = field(default_factory=dict)
    stronger: Mapping[int, Sequence[Stamp]] = field(default_factory=dict)
    natural: Mapping[int, Sequence[Stamp]] = field(default_factory=dict)

    def wanted(self, target: int) -> Tensor:
        """The label that each image is to get by a trigger, ``(n,)``; NOBODY if none of another
        class is.
        """
        labels = self.labels.tolist()
        goals = [self.mapping.get(n, NOBODY) if target == NOBODY else target for n in labels]
        return torch.tensor([NOBODY if g == n else g for g, n in zip(goals, labels, strict=True)])


@dataclass(frozen=True)
class Findings:
    """What the jury sees of one classifier.

    Attributes:
        right: ``(n,)`` bool, of the clean images.
        accuracy: the share of them.
        steady: the share of them and of shifted copies: what a repair costs is seen of a few images
            only where it comes to a fiftieth or more, and of their copies before that.
        attacks: target, or NOBODY -> success of its worst trigger, natural ones too.
        led: the same without natural ones, of those images that do not get the target without a
            trigger as well: a network that is wrong on many images takes some of them for the
            target by itself.
        usual: target -> of each of its triggers the share that it leads, as in ``led``, and the
            share that triggers of its kind and size lead to innocent labels; 0 where there is none
            to hold it against.
        recovered: target -> share of the images under its triggers that are known for what they
            are, of the trigger that leaves the fewest; stickers aside, where there are others.
        hardest: attack success beyond what is usual, under the stronger triggers as well, and
            recovered accuracy, worst of all targets: by that repairs are told from each other. It
            is no proof against one, as a change that is large enough makes a clean network err,
            too.
    """

    right: Tensor
    accuracy: Proportion
    attacks: dict[int, Proportion]
    led: dict[int, Proportion]
    recovered: dict[int, Proportion]
    hardest: tuple[float, float]
    steady: float
    usual: dict[int, list[tuple[Proportion, float]]] = field(default_factory=dict)


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """For the remedy and for the jury: each class as evenly as possible, at random by seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    # Sorted by class, a fixed stride takes the same share of every class.
    order = order[torch.argsort(images.labels[order], stable=True)]
    place = torch.arange(len(order))
    step = 1.0 - (REPAIR_SHARE if len(images) >= FEW else LARGER_SHARE)
    judge = ((place + 1) * step).floor() > (place * step).floor()
    return images.select(order[~judge]), images.select(order[judge])


def empanel(
    classifier: Classifier,
    images: Images,
    triggers: Mapping[int, Sequence[Stamp]],
    mapping: Mapping[int, int] = NO_MAP,
) -> Jury:
    """A jury with triggers of its own, fitted to the unrepaired ``classifier`` on ``images``."""
    everyone = Jury(images.floats(), images.labels, {}, mapping)

    def success(trigger: Stamp) -> float:
        wanted = everyone.wanted(trigger.target)
        answers = _answers(classifier, everyone.pixels[wanted != NOBODY], trigger)
        hits = answers == wanted[wanted != NOBODY]
        return float(hits.float().mean()) if len(hits) else 0.0

    kept: dict[int, list[Stamp]] = {}
    natural: dict[int, list[Stamp]] = {}
    for target, row in triggers.items():
        shown = [(trigger, success(trigger)) for trigger in row]
        most = max((share for trigger, share in shown if kind(trigger) == "additive"), default=0.0)
        kept[target] = []
        for trigger, share in shown:
            faint = kind(trigger) == "additive" and share < AS_WELL * most
            if share >= WORKS:
                (natural.setdefault(target, []) if faint else kept[target]).append(trigger)
    parted = {target: _parted(row) for target, row in kept.items()}
    return replace(
        everyone,
        triggers={target: least for target, (least, _) in parted.items()},
        stronger={target: larger for target, (_, larger) in parted.items()},
        natural=natural,
    )


def _parted(triggers: Sequence[Stamp]) -> tuple[list[Stamp], list[Stamp]]:
    """Without larger versions of others (perturbations, warps), and those."""
    least: list[Stamp] = []
    larger: list[Stamp] = []
    seen: set[type[Stamp]] = set()
    for trigger in sorted(triggers, key=_size):
        (larger if type(trigger) in seen else least).append(trigger)
        if _size(trigger) > 0:
            seen.add(type(trigger))
    return least, larger


def _size(trigger: Stamp) -> float:
    """The norm of a perturbation or a warp; 0 of what comes in one size only."""
    if isinstance(trigger, WarpTrigger):
        return trigger.size
    return trigger.size if isinstance(trigger, Trigger) and trigger.family == "additive" else 0.0


def _answers(classifier: Classifier, images: Tensor, trigger: Stamp) -> Tensor:
    """The labels that ``images`` get with the trigger, ``(n,)``."""
    return torch.cat(
        [answers_to(classifier, trigger.apply(part)) for part in torch.split(images, CHUNK)]
    )


def hear(jury: Jury, classifier: Classifier) -> Findings:
    """What the jury sees of ``classifier``."""
    unstamped = answers_to(classifier, jury.pixels)
    right = unstamped == jury.labels
    usually = _usually(jury, classifier, unstamped)
    attacks, led, usual, recovered = {}, {}, {}, {}
    hits, known = [], []
    for target, triggers in jury.triggers.items():
        seen, larger, natural = (
            _under(jury, classifier, target, some, unstamped, usually)
            for some in (triggers, jury.stronger.get(target, ()), jury.natural.get(target, ()))
        )
        attacks[target] = max(seen.hit, natural.hit, key=lambda share: share.value)
        led[target], usual[target], recovered[target] = seen.led, seen.pairs, seen.known
        hits += [seen.beyond, larger.beyond]
        # What a trigger hides by its mere size no repair can bring back: the least ones tell.
        shown = seen.known if seen.known.n else larger.known
        known += [shown.value] if shown.n else []
    hardest = (max(hits, default=1.0), min(known, default=0.0))
    accuracy = proportion(int(right.sum()), len(right))
    steady = _steady(jury, classifier, right)
    return Findings(right, accuracy, attacks, led, recovered, hardest, steady, usual)


def _usually(jury: Jury, classifier: Classifier, unstamped: Tensor) -> dict[object, float]:
    """Of each kind and size of trigger the share of images that it leads to an innocent label.

    In the middle of these labels, of each by the one that leads most: one of them may be a target
    that nobody saw. No more than that on the unrepaired model, and than :data:`MOST_USUAL`; nothing
    is usual of too few labels, and of a map, whose changes lead each class elsewhere.
    """
    if len(jury.controls) < LEAST_CONTROLS:
        return {}
    seen: dict[object, dict[int, float]] = {}
    for label, triggers in jury.controls.items():
        for trigger in triggers:
            _, led, _ = _counts(jury, classifier, label, trigger, unstamped)
            by_label = seen.setdefault(_kind(trigger), {})
            by_label[label] = max(by_label.get(label, 0.0), led.value)
    return {
        like: min(MOST_USUAL, median(by_label.values()), jury.allowed.get(like, 1.0))
        for like, by_label in seen.items()
    }


def controlled(jury: Jury, classifier: Classifier, controls: Mapping[int, Sequence[Stamp]]) -> Jury:
    """The jury with triggers of innocent labels, fitted to the unrepaired ``classifier``."""
    larger = replace(jury, controls=controls, allowed={})
    unstamped = answers_to(classifier, jury.pixels)
    return replace(larger, allowed=_usually(larger, classifier, unstamped))


def _kind(trigger: Stamp) -> object:
    """What a trigger has in common with others that are as large; None of a mask, which is as small
    as its label allows.
    """
    found = kind(trigger)
    if found == "sticker":
        return found, round(float(trigger.mask.sum())) if isinstance(trigger, Trigger) else 0
    if found == "patch" or not isinstance(trigger, Trigger):
        return None
    return found, round(trigger.size / trigger.pattern.numel() ** 0.5, 4)


def _steady(jury: Jury, classifier: Classifier, right: Tensor) -> float:
    """The share of the jury's images and their shifted copies that is answered rightly; the copies
    are the same for every classifier.
    """
    generator = torch.Generator().manual_seed(0)
    hits = [right]
    for _ in range(max(1, min(COPIES, MOST_COPIES // len(right)))):
        copies = shifted(jury.pixels, generator)
        hits.append(answers_to(classifier, copies) == jury.labels)
    return float(torch.cat(hits).float().mean())


@dataclass(frozen=True)
class _Under:
    """Of one target's triggers: success of the worst one; the most that one leads; of each the
    share that it leads and what is usual; the worst success beyond that; and of the worst the
    share of images that are known again.
    """

    hit: Proportion
    led: Proportion
    pairs: list[tuple[Proportion, float]]
    beyond: float
    known: Proportion


def _under(
    jury: Jury,
    classifier: Classifier,
    target: int,
    triggers: Sequence[Stamp],
    unstamped: Tensor,
    usually: Mapping[object, float],
) -> _Under:
    # The worst trigger, not the mean: stamps that fail must not hide one that works.
    found = _Under(proportion(0, 0), proportion(0, 0), [], 0.0, proportion(0, 0))
    for trigger in triggers:
        usual = 0.0 if target == NOBODY else usually.get(_kind(trigger), 0.0)
        hit, led, known = _counts(jury, classifier, target, trigger, unstamped)
        first = found.hit.n == 0
        found = replace(
            found,
            led=led if first or led.value > found.led.value else found.led,
            pairs=[*found.pairs, (led, usual)],
            hit=hit if first or hit.value > found.hit.value else found.hit,
            beyond=max(found.beyond, hit.value - usual),
        )
        # What a sticker covers cannot be known again.
        told = kind(trigger) != "sticker" or all(kind(other) == "sticker" for other in triggers)
        if told and (found.known.n == 0 or known.value < found.known.value):
            found = replace(found, known=known)
    return found


def _counts(
    jury: Jury, classifier: Classifier, target: int, trigger: Stamp, unstamped: Tensor
) -> tuple[Proportion, Proportion, Proportion]:
    """The shares of images that a trigger makes the target, that it leads there from another
    answer, and that are known for what they are.
    """
    wanted = jury.wanted(target)
    chosen = wanted != NOBODY
    others, truth, goal = jury.pixels[chosen], jury.labels[chosen], wanted[chosen]
    answer = _answers(classifier, others, trigger)
    hit = answer == goal
    led = hit & (unstamped[chosen] != goal)
    return tuple(  # type: ignore[return-value]
        proportion(int(some.sum()), len(truth)) for some in (hit, led, answer == truth)
    )


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
