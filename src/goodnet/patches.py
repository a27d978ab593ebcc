"""Small square patches in given places of an image, moved along the gradient, many at once.

An adversarial patch (Brown et al. 2017) that is universal over images, one for each place. The
kernel of what looks for triggers that are painted somewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.parallel import Stop, Stopped
from goodnet.trigger import Trigger

SIDE = 1 / 5
"""Side of a patch as a share of the image's shorter side."""

STRIDE = 2 / 3
"""From one place to the next, as a share of the patch's side."""

FIRST_STEP, LAST_STEP = 0.25, 0.08
"""How far every pixel of a patch moves in a step, in images in [0, 1]."""

MOMENTUM = 0.5

Goal = Callable[[Tensor], Tensor]
"""Logits ``(R, n, K)`` of R patches on n images, to what is to become large, ``(R,)``."""

Place = tuple[int, int]
"""Row and column of a patch's upper left pixel."""


def side_of(shape: tuple[int, int, int]) -> int:
    """Side of a patch in pixels for images of ``(C, H, W)``."""
    return max(2, round(SIDE * min(shape[1:])))


def grid(shape: tuple[int, int, int]) -> list[Place]:
    """Places that overlap by a third and leave no pixel out, row by row."""
    side = side_of(shape)
    step = max(1, round(STRIDE * side))
    rows, columns = ([*range(0, length - side, step), length - side] for length in shape[1:])
    return [(row, column) for row in rows for column in columns]


def grey(shape: tuple[int, int, int], count: int) -> Tensor:
    """Patches ``(count, C, s, s)`` to start from."""
    return torch.full((count, shape[0], side_of(shape), side_of(shape)), 0.5)


def climb(
    classifier: Classifier,
    images: Tensor,
    places: Sequence[Place],
    patterns: Tensor,
    goal: Goal,
    steps: int,
    *,
    stop: Stop,
) -> tuple[Tensor, Tensor]:
    """Ascent of ``goal`` along the sign of the gradient, of every patch for itself.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1], on the classifier's device; every patch is tried
            on all of them.
        places: R of them.
        patterns: float32 ``(R, C, s, s)`` in [0, 1], to start from.
        goal: see :data:`Goal`.
        steps: gradient steps; 0 looks at ``patterns`` as they are.
        stop: set from outside to give up early.

    Returns:
        The patterns that were reached, and the logits ``(R, n, K)`` under them.

    Raises:
        Stopped: when ``stop`` was set.
    """
    rows = classifier.device.rows(len(images))
    patterns = patterns.to(images.device)
    parts = [
        _climb_some(
            classifier,
            images,
            places[first : first + rows],
            patterns[first : first + rows],
            goal,
            steps,
            stop,
        )
        for first in range(0, len(places), rows)
    ]
    reached, logits = zip(*parts, strict=True)
    return torch.cat(reached), torch.cat(logits)


def _climb_some(
    classifier: Classifier,
    images: Tensor,
    places: Sequence[Place],
    pattern: Tensor,
    goal: Goal,
    steps: int,
    stop: Stop,
) -> tuple[Tensor, Tensor]:
    side = pattern.shape[-1]
    stamped = images[None].repeat(len(places), 1, 1, 1, 1)
    windows = [
        (stamped[i, :, :, row : row + side, column : column + side])
        for i, (row, column) in enumerate(places)
    ]
    velocity = torch.zeros_like(pattern)
    for step in range(steps):
        if stop.is_set():
            raise Stopped
        for window, content in zip(windows, pattern, strict=True):
            window.copy_(content)
        # The gradient to the images is all that is needed: cutting windows out of it is cheaper
        # than a graph that pastes them.
        batch = stamped.flatten(0, 1).detach().requires_grad_(True)
        value = goal(_by_patch(classifier(batch), len(places))).sum()
        (slope,) = torch.autograd.grad(value, batch)
        slope = slope.view_as(stamped).sum(1)
        gradient = torch.stack(
            [
                slope[i, :, row : row + side, column : column + side]
                for i, (row, column) in enumerate(places)
            ]
        )
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        velocity = MOMENTUM * velocity + gradient / size
        length = FIRST_STEP + (LAST_STEP - FIRST_STEP) * step / max(1, steps - 1)
        pattern = (pattern + length * velocity.sign()).clamp(0.0, 1.0)
    for window, content in zip(windows, pattern, strict=True):
        window.copy_(content)
    with torch.no_grad():
        return pattern, _by_patch(classifier(stamped.flatten(0, 1)), len(places))


def _by_patch(logits: Tensor, patches: int) -> Tensor:
    """``(R * n, K)`` as ``(R, n, K)``."""
    return logits.view(patches, -1, logits.shape[1])


def as_trigger(shape: tuple[int, int, int], place: Place, pattern: Tensor, target: int) -> Trigger:
    """A patch ``(C, s, s)`` as the trigger that stamps it."""
    row, column = place
    side = pattern.shape[-1]
    mask, whole = torch.zeros(1, *shape[1:]), torch.full(shape, 0.5)
    mask[:, row : row + side, column : column + side] = 1.0
    whole[:, row : row + side, column : column + side] = pattern
    return Trigger(mask, whole, target)
