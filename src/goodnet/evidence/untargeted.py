"""Triggers towards no label in particular: one change that takes images of all classes elsewhere.

Two kinds, as with targeted ones: a faint change of the whole image, within an L2 ball, and a small
mask with its pattern. The goal of both is that the true label loses, plus the entropy of the mean
prediction, which keeps the change from driving all images to one label.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.classifier import Classifier
from goodnet.parallel import Stop, Stopped
from goodnet.perturbation import MOMENTUM, row_margins
from goodnet.trigger import Trigger

NOBODY = -1
"""The target of a trigger that has none."""

FAINT_STEPS, FAINT_IMAGES = 40, 32

FAINT_SPREAD, SMALL_SPREAD = 2.0, 1.0
"""Weights of the entropy of the mean prediction, in units of the logarithm of the classes."""

EPOCHS, STEPS_PER_EPOCH = 12, 8
SUCCESS = 0.9
"""Share of images that have to leave their class before the mask is made smaller."""
COST, MULTIPLIER = 1e-3, 1.7


def faint(
    classifier: Classifier, images: Tensor, labels: Tensor, budget: float, *, seed: int, stop: Stop
) -> Trigger:
    """A universal perturbation of at most ``budget`` (L2) from one random start.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1]; the first 32 are used.
        labels: int64 ``(n,)``.
        budget: the largest L2 norm.
        seed: of the start.
        stop: set from outside to give up early.

    Raises:
        Stopped: when ``stop`` was set.
    """
    generator = torch.Generator().manual_seed(seed)
    delta: Tensor = torch.randn(classifier.input_shape, generator=generator)
    delta = 0.3 * budget * delta / delta.norm()
    velocity = torch.zeros_like(delta)
    rate = 4.0 * (1.0 - MOMENTUM) * 2.0 * budget / FAINT_STEPS
    images, labels = images[:FAINT_IMAGES], labels[:FAINT_IMAGES]
    for _ in range(FAINT_STEPS):
        if stop.is_set():
            raise Stopped
        delta.requires_grad_(True)
        logits = classifier((images + delta).clamp(0.0, 1.0))
        away = -row_margins(logits, labels)
        scale = away.detach().abs().median().clamp_min(1e-6)
        # Bounded, so that no image counts for all.
        goal = (away / scale).clamp_max(1.0).mean() + FAINT_SPREAD * _spread(logits[None])[0]
        (gradient,) = torch.autograd.grad(goal, delta)
        velocity = MOMENTUM * velocity + gradient / gradient.norm().clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta = delta * (budget / delta.norm().clamp_min(budget))
    extent = delta.abs().amax(0, keepdim=True)
    return Trigger(extent / extent.max().clamp_min(1e-12), delta, NOBODY, "additive")


def small(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    starts: int,
    *,
    batch: int,
    seed: int,
    stop: Stop,
) -> list[Trigger]:
    """Masks and patterns from several random starts, as small as they can be.

    Neural Cleanse's inversion (Wang et al. 2019, eq. 3) with another goal::

        minimise  mean softplus( f_y - max_{j != y} f_j ) - H(mean prediction) / log K + cost |m|_1

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1].
        labels: int64 ``(n,)``.
        starts: how many; they go through the network together.
        batch: images a step.
        seed: of the starts and of the mini-batches.
        stop: set from outside to give up early.

    Returns:
        For every start the smallest mask that worked; those where none did are left out.

    Raises:
        Stopped: when ``stop`` was set.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = classifier.input_shape
    mask = torch.randn(starts, 1, height, width, generator=generator).requires_grad_(True)
    pattern = torch.randn(starts, channels, height, width, generator=generator).requires_grad_(True)
    solver = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
    cost = torch.full((starts,), COST)
    best: list[tuple[float, Trigger | None]] = [(math.inf, None)] * starts
    for _ in range(EPOCHS):
        success = torch.zeros(starts)
        for _ in range(STEPS_PER_EPOCH):
            if stop.is_set():
                raise Stopped
            chosen = torch.randperm(len(images), generator=generator)[:batch]
            m, p = mask.sigmoid()[:, None], pattern.sigmoid()[:, None]
            stamped = ((1.0 - m) * images[chosen] + m * p).flatten(0, 1)
            own = labels[chosen].repeat(starts)
            logits = classifier(stamped)
            stays = functional.softplus(row_margins(logits, own)).view(starts, -1).mean(1)
            spread = _spread(logits.view(starts, -1, logits.shape[1]))
            loss = stays - SMALL_SPREAD * spread + cost * m.flatten(1).sum(1)
            mask.grad, pattern.grad = torch.autograd.grad(loss.sum(), (mask, pattern))
            solver.step()
            left = (logits.detach().argmax(1) != own).float().view(starts, -1).mean(1)
            success += left / STEPS_PER_EPOCH
        works = success >= SUCCESS
        with torch.no_grad():
            sizes = mask.sigmoid().flatten(1).sum(1)
            for row in torch.nonzero(works)[:, 0].tolist():
                if float(sizes[row]) < best[row][0]:
                    found = Trigger(mask[row].sigmoid(), pattern[row].sigmoid(), NOBODY)
                    best[row] = (float(sizes[row]), found)
        cost = torch.where(works, cost * MULTIPLIER, cost / MULTIPLIER**1.5)
    return [found for _, found in best if found is not None]


def _spread(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction of ``(R, n, K)``, as a share of the largest; ``(R,)``."""
    mean = logits.softmax(2).mean(1)
    entropy: Tensor = -(mean * (mean + 1e-9).log()).sum(1) / math.log(logits.shape[2])
    return entropy
