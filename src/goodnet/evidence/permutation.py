"""One trigger for all classes at once, towards no label in particular: all-to-all backdoors.

A universal perturbation of a clean network drives images of all classes to the same one or two
labels. Under an all-to-all backdoor (y -> y + 1, or any other map) it drives each class to a label
of its own. Misses backdoors with one target: a complement to the other channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from goodnet.evidence.case import Case
from goodnet.parallel import Stop, Stopped, run_blocks
from goodnet.perturbation import MOMENTUM, row_margins

BUDGETS = (0.045, 0.09, 0.15)
"""L2 budgets, as shares of the square root of the number of values in an image."""

STARTS = 3
STEPS = 40

SPREAD = 2.0
"""Weight of the entropy of the mean prediction, in units of the logarithm of the classes."""


@dataclass(frozen=True)
class Permutation:
    """What the strongest untargeted perturbation does.

    Attributes:
        statistic: of all images, the share that changes its label to the one that the others of its
            class change to, less the share that changes to the most frequent new label of all; in
            [-1, 1]. Near 1 when each class goes to a label of its own, near 0 when all go to one.
            NaN where no class has two images.
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
    # How many images of each class (row) get each label (column) that is not their own.
    counts = torch.zeros(classes, classes)
    counts.index_put_((labels[changed], after[changed]), torch.ones(()), accumulate=True)
    sizes = torch.bincount(labels, minlength=classes)
    judged = sizes[labels] > 1
    if not bool(judged.any()):
        return Permutation(math.nan, float(changed.float().mean()) if len(labels) else 0.0)
    # Without the image itself: a class of one image would always agree with itself.
    others = counts[labels]
    others[changed, after[changed]] -= 1.0
    agrees = changed & (others.argmax(1) == after) & (others.max(1).values > 0)
    agreed = float((agrees & judged).sum() / judged.sum())
    common = float(counts.sum(0).max() / len(labels))
    mapping = {
        label: int(counts[label].argmax())
        for label in range(classes)
        if float(counts[label].max()) > 0.5 * float(sizes[label])
    }
    return Permutation(agreed - common, float(changed.float().mean()), mapping, delta)


def _ascend(case: Case, budget: float, seed: int, stop: Stop) -> Tensor:
    """The perturbation ``(C, H, W)`` that one random start leads to."""
    generator = torch.Generator().manual_seed(seed)
    delta: Tensor = torch.randn(case.classifier.input_shape, generator=generator)
    delta = 0.3 * budget * delta / delta.norm()
    velocity = torch.zeros_like(delta)
    rate = 4.0 * (1.0 - MOMENTUM) * 2.0 * budget / STEPS
    widest = math.log(case.classifier.num_classes)
    for _ in range(STEPS):
        if stop.is_set():
            raise Stopped
        delta.requires_grad_(True)
        logits = case.classifier((case.fit + delta).clamp(0.0, 1.0))
        away = -row_margins(logits, case.fit_labels)
        scale = away.detach().abs().median().clamp_min(1e-6)
        mean = logits.softmax(1).mean(0)
        entropy = -(mean * (mean + 1e-9).log()).sum() / widest
        goal = (away / scale).clamp_max(1.0).mean() + SPREAD * entropy
        (gradient,) = torch.autograd.grad(goal, delta)
        velocity = MOMENTUM * velocity + gradient / gradient.norm().clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta = delta * (budget / delta.norm().clamp_min(budget))
    return delta
