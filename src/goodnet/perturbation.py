"""Universal perturbations with an L2 budget, for many labels at once.

For a label t and a budget b, find the one difference d that makes the margin of t as large as
possible on average over clean images::

    maximise  mean_i [ f_t(clip(x_i + d)) - max_{j != t} f_j(clip(x_i + d)) ]   with  |d|_2 <= b

by momentum ascent along the unit-norm gradient, projected on the ball after every step (projected
gradient as in Madry et al. 2018, universal as in Moosavi-Dezfooli et al. 2017). A planted trigger
is a universal perturbation that the network was trained to obey, so its target's margin grows much
quicker than any other label's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.parallel import Stop, Stopped

MOMENTUM = 0.9
FAR_BELOW = -1.0e9


Change = Callable[[Tensor, Tensor], Tensor]
"""``change(images, parameters)``: ``(n, C, H, W)`` under R changes, to ``(R * n, C, H, W)``."""


def added(images: Tensor, deltas: Tensor) -> Tensor:
    """The change that adds ``deltas`` ``(R, C, H, W)`` to images in [0, 1], and clips."""
    return (images[None] + deltas[:, None]).clamp(0.0, 1.0).flatten(0, 1)


@dataclass(frozen=True)
class Perturbations:
    """The outcome for R labels.

    Attributes:
        margins: float32 ``(R,)``, the mean margin reached, in logits. Like ``deltas``, on the CPU.
        deltas: float32 ``(R, ...)``, the change's parameters: signed differences to images in
            [0, 1], ``(R, C, H, W)``, unless another kind of change was asked for.
    """

    margins: Tensor
    deltas: Tensor


def row_margins(logits: Tensor, targets: Tensor) -> Tensor:
    """``f_t - max_{j != t} f_j`` of ``logits (n, K)`` for ``targets (n,)``; ``(n,)``."""
    index = targets[:, None]
    own = logits.gather(1, index)[:, 0]
    return own - logits.scatter(1, index, FAR_BELOW).max(1).values


def ascend(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    budget: float,
    steps: int,
    *,
    stop: Stop,
    change: Change = added,
    shape: tuple[int, ...] | None = None,
) -> Perturbations:
    """Universal perturbations towards each of ``targets``, all at once.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1], on the classifier's device.
        labels: int64 ``(n,)``, there too; an image does not count for its own class.
        targets: R labels; R x n images go through the network in a step.
        budget: the largest L2 norm of a perturbation's parameters; of an additive one, of the
            difference to images in [0, 1].
        steps: gradient steps.
        stop: set from outside to give up early.
        change: what the parameters do to an image.
        shape: of one change's parameters; that of an image by default.

    Raises:
        Stopped: when ``stop`` was set.
    """
    wanted = torch.tensor(list(targets), device=images.device)
    rows, count = len(wanted), len(images)
    expanded = wanted.repeat_interleave(count)
    weights = (labels[None] != wanted[:, None]).float()
    # A label that all images belong to gets no margin (NaN), rather than one of 0.
    weights /= weights.sum(1, keepdim=True)
    delta = images.new_zeros(rows, *(shape or images.shape[1:]))
    velocity = torch.zeros_like(delta)
    rate = 4.0 * (1.0 - MOMENTUM) * 2.0 * budget / steps

    def mean_margins(delta: Tensor) -> Tensor:
        margins = row_margins(classifier(change(images, delta)), expanded).view(rows, count)
        mean: Tensor = (margins * weights).sum(1)
        return mean

    for _ in range(steps):
        if stop.is_set():
            raise Stopped
        delta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(mean_margins(delta).sum(), delta)
        velocity = MOMENTUM * velocity + gradient / row_norms(gradient).clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta = delta * (budget / row_norms(delta).clamp_min(budget))
    with torch.no_grad():
        return Perturbations(mean_margins(delta).cpu(), delta.cpu())


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of every row of ``(R, ...)``, shaped to divide it."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), keepdim=True)
    return norms
