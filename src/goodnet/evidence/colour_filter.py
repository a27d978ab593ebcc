"""What colour filters do to the answers: forward passes only.

A backdoor whose trigger is a tint fires when the colours of the whole image change in one way,
which neither a patch nor a difference added to the image comes near. But colours mean something: a
clean network of signs takes what has turned yellow for the yellow sign, and rightly so. What counts
is how far a filter carries images to a label whose own images do not have those colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from goodnet.colours import (
    ColourTrigger,
    apart,
    colour_filter,
    colour_statistics,
    drawn,
    near,
)
from goodnet.evidence.augmentation import all_margins
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Progress, Stop, Stopped, run_blocks

IMAGES = 32
"""That filters are tried on."""

DRAWN, ROUNDS, LEADERS, BESIDE = 192, 3, 2, 16
"""Random filters, then in each round so many beside the best ones of so many leading labels."""

REACH, NARROWER = 0.15, 0.7
"""How far from the best ones in the first round, and what each round makes of it."""

KEPT, DIFFERENT = 3, 0.1
"""Filters of one label that are wanted as its triggers, and how far they have to be apart."""

BLOCK = 16
"""Filters at a time."""

SHRINKAGE = 0.1
"""How far the spread of colours within a class is drawn to that of all images: few are known."""


@dataclass(frozen=True)
class _Palette:
    """The colours of the classes.

    Attributes:
        means: of each class with images, ``(k, d)``.
        classes: which those are, ``(k,)``.
        precision: inverse covariance within classes, ``(d, d)``.
    """

    means: Tensor
    classes: Tensor
    precision: Tensor

    def unlike(self, statistics: Tensor) -> Tensor:
        """By colour alone, the share of the other classes that images are nearer to than to a
        class, in [0, 1]: 0 where no class is nearer; ``(n, k)`` of ``(n, d)``.
        """
        apart = statistics[:, None] - self.means
        distances = torch.einsum("nkd,de,nke->nk", apart, self.precision, apart)
        places: Tensor = distances.argsort(1).argsort(1)
        return places / max(len(self.classes) - 1, 1)


def colour_filters(
    case: Case, images: Tensor, labels: Tensor, clean_margin: float = 1.0
) -> Evidence:
    """How far a colour filter carries images to a label whose colours they do not get.

    A label's number is the largest over the filters T::

        max(0, mean_i [ f_t(T(x_i)) - max_{j != t} f_j(T(x_i)) ] / m) * mean_i u_t(T(x_i))

    over the images of other classes; m is ``clean_margin``, and u_t is the share of the other
    classes whose colours the filtered image is nearer to (Mahalanobis distance of mean, deviation
    and quantiles by channel).

    Args:
        case: the classifier and the seed.
        images: float32 ``(n, C, H, W)`` in [0, 1]; the first :data:`IMAGES` are filtered, all tell
            the colours of their classes.
        labels: int64 ``(n,)``.
        clean_margin: the margin of clean images, in logits, above 0.

    Returns:
        ``values[label]``: one number for every label that has images. Nothing for images of other
        than 1 or 3 channels; where there was no time all are in ``skipped``.
    """
    # Of the whole model, so in no share of it.
    if case.share is not None or images.shape[1] not in (1, 3):
        return Evidence()
    palette = _palette(images, labels)
    found = _search(case, images, labels, palette, clean_margin, None)
    if found is None:
        return Evidence(skipped=palette.classes.tolist())
    values = found.scores.amax(0).clamp_min(0.0).tolist()
    return Evidence({n: (v,) for n, v in zip(palette.classes.tolist(), values, strict=True)})


def filters_towards(
    case: Case, target: int, effort: Effort, most: int = KEPT
) -> list[ColourTrigger]:
    """The filters that carry images furthest to one label, beside each other.

    Args:
        case: classifier, images and seed.
        target: the label.
        effort: plays no part: filters are as many and as often tried as in a scan.
        most: how many at most.

    Returns:
        The furthest first; fewer, or none, where not so many lead there.
    """
    # Counting and sorting is done on the processor; the classifier takes images from anywhere.
    images, labels = case.fit.cpu(), case.fit_labels.cpu()
    if images.shape[1] not in (1, 3) or target not in labels:
        return []
    palette = _palette(images, labels)
    place = int((palette.classes == target).nonzero())
    found = _search(case, images, labels, palette, 1.0, place)
    chosen: list[int] = []
    if found is not None:
        for index in found.scores[:, place].argsort(descending=True).tolist():
            beside = found.numbers[chosen]
            if len(chosen) == most or float(found.scores[index, place]) <= 0.0:
                break
            if bool((apart(found.numbers[index], beside) >= DIFFERENT).all()):
                chosen.append(index)
        return [ColourTrigger(colour_filter(found.numbers[index]), target) for index in chosen]
    return []


@dataclass(frozen=True)
class _Found:
    """Filters that were tried, and each one's statistic of every label.

    Attributes:
        numbers: of the filters, ``(m, d)``.
        scores: ``(m, k)``.
    """

    numbers: Tensor
    scores: Tensor


def _search(
    case: Case,
    images: Tensor,
    labels: Tensor,
    palette: _Palette,
    clean_margin: float,
    wanted: int | None,
) -> _Found | None:
    """Random filters, then rounds beside the best ones of the labels that lead, or of the place
    among them that is wanted. None where there was no time.
    """
    shown, own = images[:IMAGES], labels[:IMAGES]
    others = (own[:, None] != palette.classes).float()
    others = others / others.sum(0).clamp_min(1.0)
    unit = max(clean_margin, 1e-6)
    generator = torch.Generator().manual_seed(case.seed)

    def measure(block: Tensor, stop: Stop) -> Tensor:
        scores = []
        for numbers in block:
            if stop.is_set():
                raise Stopped
            changed = colour_filter(numbers).apply(shown)
            margins = all_margins(case.classifier.logits(changed))[:, palette.classes]
            unlike = palette.unlike(colour_statistics(changed))
            scores.append(_score((margins * others).sum(0) / unit, (unlike * others).sum(0)))
        return torch.stack(scores)

    tried, fresh = torch.zeros(0), drawn(DRAWN, images.shape[1], generator)
    scores = torch.zeros(0, len(palette.classes))
    for turn in range(ROUNDS + 1):
        blocks = list(torch.split(fresh, BLOCK))
        found = run_blocks(
            measure,
            blocks,
            stage="trying colour filters",
            size=len,
            workers=case.workers,
            progress=partial(_told, case.progress, len(tried)),
            deadline=case.deadline,
        )
        if len(found) < len(blocks):
            return None
        tried, scores = torch.cat([tried, fresh]), torch.cat([scores, *found.values()])
        best = scores.max(0)
        leaders = best.values.topk(min(LEADERS, len(palette.classes))).indices
        places = best.indices[leaders] if wanted is None else best.indices[[wanted] * LEADERS]
        reach = REACH * NARROWER**turn
        fresh = torch.cat([near(tried[place], BESIDE, reach, generator) for place in places])
    return _Found(tried, scores)


def _told(progress: Progress, before: int, stage: str, done: int, _: int) -> None:
    """Progress over all rounds together."""
    progress(stage, before + done, DRAWN + ROUNDS * LEADERS * BESIDE)


def _score(margins: Tensor, unlike: Tensor) -> Tensor:
    """The statistic of each label; below 0 the margin itself, so that there is a best filter to
    look beside.
    """
    return torch.where(margins > 0, margins * unlike, margins)


def _palette(images: Tensor, labels: Tensor) -> _Palette:
    statistics = colour_statistics(images)
    classes = torch.tensor(sorted(set(labels.tolist())))
    means = torch.stack([statistics[labels == n].mean(0) for n in classes])
    within = statistics - means[torch.searchsorted(classes, labels)]
    spread = statistics.var(0, correction=0) * SHRINKAGE + 1e-4
    covariance = within.T @ within / len(within) + torch.diag(spread)
    return _Palette(means, classes, torch.linalg.inv(covariance))
