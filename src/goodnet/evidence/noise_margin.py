"""The margin that a label reaches from noise, without a single clean image.

Catches what makes a network overconfident in its target whatever the trigger looks like, large and
opaque triggers too (Wang, Xiang, Miller and Kesidis 2024, "MM-BD"); misses all-to-all backdoors.
The p-value of that paper is wrong in size and is not used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goodnet.evidence.blocks import over_blocks
from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop, Stopped
from goodnet.perturbation import MOMENTUM, row_margins

STARTS = 6
"""Random images that each label climbs from; the best one counts."""

STEPS = 50

STRIDE = 1 / 160
"""Length of a step, as a share of the square root of the number of values in an image."""


def noise_margin(case: Case, targets: list[int], effort: Effort) -> Evidence:
    """The largest margin of each label over all images in [0, 1] that the ascent finds.

    For a label t: max over x in [0, 1] of f_t(x) - max_{j != t} f_j(x) (MM-BD, eq. 2), by momentum
    ascent along the unit-norm gradient from several random images.

    Args:
        case: the classifier; its images are not used.
        targets: the labels to measure.
        effort: what the progress callback is told.

    Returns:
        ``values[label]``: one number, in logits. No triggers: the images found are no triggers.
    """
    shape = case.classifier.input_shape
    generator = torch.Generator().manual_seed(case.seed)
    # The same starts for every label: what differs between labels is the network's doing.
    starts = torch.rand(STARTS, *shape, generator=generator).to(case.fit.device)
    stride = STRIDE * math.sqrt(math.prod(shape))

    def measure(block: list[int], stop: Stop) -> Evidence:
        margins = zip(block, _climb(case, starts, block, stride, stop), strict=True)
        return Evidence({target: (value,) for target, value in margins if math.isfinite(value)})

    rows = case.classifier.device.rows(STARTS)
    return over_blocks("noise_margin", case, targets, rows, effort, measure)


def _climb(
    case: Case, starts: Tensor, targets: list[int], stride: float, stop: Stop
) -> list[float]:
    """The best margin that each target reaches."""
    images = starts.repeat(len(targets), 1, 1, 1)
    wanted = torch.tensor(targets, device=starts.device).repeat_interleave(len(starts))
    velocity = torch.zeros_like(images)
    for _ in range(STEPS):
        if stop.is_set():
            raise Stopped
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            row_margins(case.classifier(images), wanted).sum(), images
        )
        norms = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
        velocity = MOMENTUM * velocity + gradient / norms.clamp_min(1e-12)
        images = (images.detach() + stride * velocity).clamp(0.0, 1.0)
    with torch.no_grad():
        margins = row_margins(case.classifier(images), wanted)
    best: list[float] = margins.view(len(targets), -1).max(1).values.tolist()
    return best
