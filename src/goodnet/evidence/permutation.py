"""One trigger for all classes at once, towards no label in particular: all-to-all backdoors.

A universal perturbation of a clean network drives images of all classes to the same one or two
labels. Under an all-to-all backdoor (y -> y + 1, or any other map) it drives each class to a label
of its own. Misses backdoors with one target: a complement to the other channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from goodnet.evidence.case import Case
from goodnet.parallel import Stop, Stopped, run_blocks
from goodnet.perturbation import MOMENTUM, row_margins

BUDGETS = (0.09, 0.15)
"""L2 budgets, as shares of the square root of the number of values in an image."""

STARTS = 2
STEPS = 40

MOST_IMAGES = 32
"""So many of the images are enough to fit one perturbation to."""

SPREAD = 2.0
"""Weight of the entropy of the mean prediction, in units of the logarithm of the classes."""


@dataclass(frozen=True)
class Permutation:
    """What the strongest untargeted perturbation does.

    Attributes:
        statistic: of the images that change their label, how many fit a map that gives every class
            a label of its own, as a share of all; each half of the images is judged by the map of
            the other half. Near 1 under an all-to-all backdoor; lower when several classes go to
            one label, since only one of them can have it. NaN where no class has two images.
        flipped: the share of images that change their label.
        mapping: class -> the label that most of its images get, where most of them change.
        delta: the perturbation, float32 ``(C, H, W)``; None where nothing was measured.
    """

    statistic: float
    flipped: float
    mapping: dict[int, int] = field(default_factory=dict)
    delta: Tensor | None = None


def permutation(case: Case, held: Tensor, held_labels: Tensor) -> Permutation:
    """Looks for a perturbation that permutes the classes.

    Maximises, within an L2 ball, the mean over images of how far the true label's logit lies below
    the largest other one (up to a bound, so that no image counts for all), plus the entropy of the
    mean prediction, which keeps the perturbation from driving all images to one label.

    Args:
        case: the classifier, and the images that the perturbation is fitted to.
        held: float32 ``(n, C, H, W)`` in [0, 1], images that it is judged on.
        held_labels: int64 ``(n,)``.
    """
    shape = case.classifier.input_shape
    root = math.sqrt(math.prod(shape))
    trials = [(share * root, start) for share in BUDGETS for start in range(STARTS)]

    def measure(trial: tuple[float, int], stop: Stop) -> Permutation:
        budget, start = trial
        delta = _ascend(case, budget, case.seed * STARTS + start, stop)
        after = case.classifier.logits((held + delta).clamp(0.0, 1.0)).argmax(1)
        return read(held_labels, after, case.classifier.num_classes, delta)

    found = run_blocks(
        measure,
        trials,
        stage="looking for a permutation of the classes",
        size=lambda _: 1,
        workers=case.workers,
        progress=case.progress,
        deadline=case.deadline,
    )
    if not found:
        return Permutation(math.nan, math.nan)
    return max(found.values(), key=lambda p: -math.inf if math.isnan(p.statistic) else p.statistic)


def read(labels: Tensor, after: Tensor, classes: int, delta: Tensor | None = None) -> Permutation:
    """What a change of predictions amounts to.

    Args:
        labels: int64 ``(n,)``, the classes that the images show.
        after: int64 ``(n,)``, the labels that they get under the perturbation.
        classes: K.
        delta: the perturbation.
    """
    changed = after != labels
    sizes = torch.bincount(labels, minlength=classes)
    flipped = float(changed.float().mean()) if len(labels) else 0.0
    judged = sizes[labels] > 1
    if not bool(judged.any()):
        return Permutation(math.nan, flipped)
    halves = _halves(labels)
    fitting = torch.zeros_like(changed)
    for half in (0, 1):
        here = halves == half
        partner = _partners(labels[~here & changed], after[~here & changed], classes)
        fitting |= here & changed & (partner[labels] == after)
    agreed = float((fitting & judged).sum() / judged.sum())
    # How many images of each class (row) get each label (column) that is not their own.
    counts = _counts(labels[changed], after[changed], classes)
    mapping = {
        label: int(counts[label].argmax())
        for label in range(classes)
        if float(counts[label].max()) > 0.5 * float(sizes[label])
    }
    return Permutation(agreed, flipped, mapping, delta)


def _halves(labels: Tensor) -> Tensor:
    """0 or 1 for each image, in turn within its class."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        turns.append(seen[label] % 2)
    return torch.tensor(turns)


def _counts(labels: Tensor, after: Tensor, classes: int) -> Tensor:
    counts = torch.zeros(classes, classes)
    counts.index_put_((labels, after), torch.ones(()), accumulate=True)
    return counts


def _partners(labels: Tensor, after: Tensor, classes: int) -> Tensor:
    """For each class the label that it has to itself (-1: none), so that most images fit."""
    counts = _counts(labels, after, classes).numpy()
    partner = torch.full((classes,), -1)
    for row, column in zip(*linear_sum_assignment(counts, maximize=True), strict=True):
        if counts[row, column] > 0:
            partner[row] = int(column)
    return partner


def _ascend(case: Case, budget: float, seed: int, stop: Stop) -> Tensor:
    """The perturbation ``(C, H, W)`` that one random start leads to."""
    generator = torch.Generator().manual_seed(seed)
    delta: Tensor = torch.randn(case.classifier.input_shape, generator=generator)
    delta = 0.3 * budget * delta / delta.norm()
    velocity = torch.zeros_like(delta)
    rate = 4.0 * (1.0 - MOMENTUM) * 2.0 * budget / STEPS
    images, labels = case.fit[:MOST_IMAGES], case.fit_labels[:MOST_IMAGES]
    widest = math.log(case.classifier.num_classes)
    for _ in range(STEPS):
        if stop.is_set():
            raise Stopped
        delta.requires_grad_(True)
        logits = case.classifier((images + delta).clamp(0.0, 1.0))
        away = -row_margins(logits, labels)
        scale = away.detach().abs().median().clamp_min(1e-6)
        mean = logits.softmax(1).mean(0)
        entropy = -(mean * (mean + 1e-9).log()).sum() / widest
        goal = (away / scale).clamp_max(1.0).mean() + SPREAD * entropy
        (gradient,) = torch.autograd.grad(goal, delta)
        velocity = MOMENTUM * velocity + gradient / gradient.norm().clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta = delta * (budget / delta.norm().clamp_min(budget))
    return delta
