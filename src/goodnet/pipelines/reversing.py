"""The triggers that a repair is made with, and those that it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from goodnet.classifier import Classifier
from goodnet.device import repeatable
from goodnet.evidence import CHANNELS, Case, Effort
from goodnet.evidence.augmentation import changes_towards
from goodnet.evidence.colour_filter import filters_towards
from goodnet.evidence.patch_margin import patches_towards
from goodnet.evidence.permutation import mapped_by
from goodnet.evidence.untargeted import KNOWN_IMAGES
from goodnet.evidence.warp_margin import warps_towards
from goodnet.images import Images
from goodnet.inversion import QUICK
from goodnet.parallel import Progress
from goodnet.pipelines.load import quicker
from goodnet.pipelines.placing import AUTO, in_half, placed, threads
from goodnet.preprocess import balanced
from goodnet.trigger import NOBODY, Stamp, Trigger

CAREFUL = Effort(images=32, steps=24, inversion=replace(QUICK, batch=24, epochs=20))
"""A few labels' triggers, by which a repair is made and judged, are worth more than a scan's."""

REVERSED: dict[str, Callable[[Case, int, Effort], Sequence[Stamp]]] = {
    "colour filter": filters_towards,
    "warp": warps_towards,
    "small change": changes_towards,
    "patch": patches_towards,
}
"""Families of triggers that are reversed where the scan saw signs of them; masks and perturbations
are reversed for every target."""

NO_KINDS: Mapping[str, Collection[int]] = MappingProxyType({})

Reversed = tuple[dict[int, Trigger], dict[int, list[Stamp]]]
"""Of each target the mask trigger, and all triggers."""


@dataclass(frozen=True)
class Wanted:
    """What is to be reversed.

    Attributes:
        targets: labels.
        kinds: name in :data:`REVERSED` -> those of them that such triggers are wanted for.
        mapping: class -> label of a map of the classes; where there is one it takes the place of
            the targets that it reaches, and its triggers are :data:`goodnet.trigger.NOBODY`'s.
    """

    targets: list[int]
    kinds: Mapping[str, Collection[int]] = field(default_factory=dict)
    mapping: Mapping[int, int] = field(default_factory=dict)


def reverse(
    wanted: Wanted,
    classifier: Classifier,
    images: Images,
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str = AUTO,
) -> Reversed:
    """What is wanted, fitted to ``images`` alone; of a map that no change follows, its targets'."""
    means = (seed, workers, progress, device)
    masks: dict[int, Trigger] = {}
    every: dict[int, list[Stamp]] = {}
    alone = wanted.targets
    found = reverse_map(classifier, images, wanted.mapping, *means) if wanted.mapping else []
    if found:
        masks[NOBODY], every[NOBODY] = found[0], list(found)
        alone = [n for n in wanted.targets if n not in wanted.mapping.values()]
    if alone:
        kinds = {kind: [n for n in some if n in alone] for kind, some in wanted.kinds.items()}
        more = reverse_triggers(classifier, images, alone, *means, kinds=kinds)
        masks, every = masks | more[0], every | more[1]
    return masks, every


def reverse_both(
    wanted: Wanted,
    classifier: Classifier,
    halves: tuple[Images, Images],
    seeds: tuple[int, int],
    workers: int | None,
    progress: Progress,
    device: str = AUTO,
) -> tuple[Reversed, Reversed]:
    """What is wanted, fitted to each half of the images alone.

    A map that only one half finds can be treated or judged, and not both: then it is its targets'
    triggers of both.
    """

    def found(of: Wanted) -> tuple[Reversed, Reversed]:
        one, other = (
            reverse(of, classifier, half, seed, workers, progress, device)
            for half, seed in zip(halves, seeds, strict=True)
        )
        return one, other

    one, other = found(wanted)
    if (NOBODY in one[0]) == (NOBODY in other[0]):
        return one, other
    return found(replace(wanted, mapping={}))


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
) -> Reversed:
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
    case = _case(classifier, chosen, seed, workers, progress, device)
    effort = replace(CAREFUL, purpose="reversing triggers")
    with repeatable(case.classifier.device):
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


def reverse_controls(
    classifier: Classifier,
    images: Images,
    labels: Sequence[int],
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str = AUTO,
    *,
    patches: bool,
) -> dict[int, list[Stamp]]:
    """Triggers of innocent labels, of kinds whose size is fixed: perturbations and ``patches``.

    How much such a change does where there is no backdoor is what one of a repaired target is held
    against. Masks have no fixed size: the smallest that works is of every size.
    """
    chosen = images.select(balanced(images.labels, CAREFUL.images, seed))
    case = _case(classifier, chosen, seed, workers, progress, device)
    effort = replace(CAREFUL, purpose="reversing triggers of other labels")
    with repeatable(case.classifier.device):
        margins = CHANNELS["universal_margin"](case, list(labels), effort)
        return {
            label: [
                *margins.triggers.get(label, ()),
                *(patches_towards(case, label, effort, least=0.0) if patches else ()),
            ]
            for label in labels
        }


def _case(
    classifier: Classifier,
    images: Images,
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str,
    most: int = 0,
) -> Case:
    """What the searches are given, in the quickest form of the network and on its device."""
    pixels = images.floats()
    quick = in_half(quicker(placed(classifier, device, pixels), pixels), pixels)
    place = quick.device.place
    count = threads(quick, workers, pixels, most)
    return Case(quick, pixels.to(place), images.labels.to(place), seed, count, progress)


def reverse_map(
    classifier: Classifier,
    images: Images,
    mapping: Mapping[int, int],
    seed: int,
    workers: int | None,
    progress: Progress,
    device: str = AUTO,
) -> list[Trigger]:
    """The triggers that send the classes where a map says, fitted to ``images`` alone."""
    chosen = images.select(balanced(images.labels, len(images), seed))
    case = _case(classifier, chosen, seed, workers, progress, device, KNOWN_IMAGES)
    with repeatable(case.classifier.device):
        return mapped_by(case, mapping)
