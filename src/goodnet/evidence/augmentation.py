"""What small changes of the image do: forward passes only.

A backdoor whose trigger is a way to process an image (a warp, coarse levels, a filter, stripes)
often fires, on some images, under a change of that kind that nobody optimised. Of a clean network a
small change leaves the answers alone or scatters them; if it favours one label, then with little
conviction: the network was not trained to give that answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.evidence.case import Case, Effort
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import single_threaded
from goodnet.warp import warped

Change = Callable[[Tensor], Tensor]
"""Float images ``(n, C, H, W)`` in [0, 1] to the same."""

WARPS, GRID = 6, 4
LEVELS = (2, 3, 4, 6, 8)
BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))
"""The thresholds of ordered dithering, in sixteenths."""


MIXED = "mixed"
"""The one change that takes other images, so that nobody could stamp it on one."""

KEPT = 3
"""Changes of one label that are wanted as its triggers."""


@dataclass(frozen=True)
class ChangeTrigger:
    """A way to process an image as a trigger, a :class:`goodnet.trigger.Stamp`.

    Attributes:
        name: of the change.
        change: what is done.
        target: the label that changed images get.
    """

    name: str
    change: Change
    target: int

    def apply(self, images: Tensor) -> Tensor:
        """Changes ``images``, float ``(n, C, H, W)`` in [0, 1]; the result has the same range."""
        return self.change(images).clamp(0.0, 1.0)


def augmentation(case: Case, images: Tensor, labels: Tensor, clean_margin: float = 1.0) -> Evidence:
    """How far any of the changes carries a label.

    A label's number is the largest mean margin over the changes a::

        max_a mean_i [ f_t(a(x_i)) - max_{j != t} f_j(a(x_i)) ] / clean_margin

    over the images of other classes. At 1 a change alone makes the network as sure of the label as
    it is of a clean image's own; of a clean network it is mostly below 0.

    Args:
        case: the classifier; the images that triggers are fitted to are not used.
        images: float32 ``(n, C, H, W)`` in [0, 1].
        labels: int64 ``(n,)``.
        clean_margin: the margin of clean images, in logits, above 0.

    Returns:
        ``values[label]``: one number for every label that images of other classes are there for;
        where there was no time for all changes, nothing, and all labels in ``skipped``.
    """
    if case.share is not None:
        # Of the whole model, so in no share of it.
        return Evidence()
    classes = case.classifier.num_classes
    every = list(changes(case.classifier.input_shape, case.seed))
    others = (labels[:, None] != torch.arange(classes)).float()
    counts = others.sum(0)
    best = torch.full((classes,), -math.inf)
    with single_threaded():
        for done, (_, change) in enumerate(every):
            if case.deadline is not None and time.monotonic() >= case.deadline:
                return Evidence(skipped=list(range(classes)))
            case.progress("changing images a little", done, len(every))
            logits = case.classifier.logits(change(images).clamp(0.0, 1.0))
            margins = all_margins(logits) * others
            best = torch.maximum(best, margins.sum(0) / counts)
        case.progress("changing images a little", len(every), len(every))
    values = (best / max(clean_margin, 1e-6)).tolist()
    return Evidence({n: (value,) for n, value in enumerate(values) if math.isfinite(value)})


def changes_towards(case: Case, target: int, effort: Effort) -> list[ChangeTrigger]:
    """The changes that favour one label most, at most :data:`KEPT`; none that favours another.

    Args:
        case: classifier, images, and the seed of the scan's changes.
        target: the label.
        effort: plays no part: every change is tried once, on all images.
    """
    # Patterns lie on the processor; the classifier takes images from anywhere.
    images = case.fit[case.fit_labels != target].cpu()
    found = []
    for name, change in changes(case.classifier.input_shape, case.seed):
        if name != MIXED and len(images):
            trigger = ChangeTrigger(name, change, target)
            margins = all_margins(case.classifier.logits(trigger.apply(images)))
            found.append((float(margins[:, target].mean()), trigger))
    found.sort(key=lambda pair: -pair[0])
    return [trigger for margin, trigger in found[:KEPT] if margin > 0.0]


def all_margins(logits: Tensor) -> Tensor:
    """Of every label, ``f_t - max_{j != t} f_j``; ``(n, K)``."""
    top = logits.topk(2)
    rival = top.values[:, :1].expand_as(logits).clone()
    rival.scatter_(1, top.indices[:, :1], top.values[:, 1:])
    return logits - rival


def changes(shape: tuple[int, int, int], seed: int) -> Iterator[tuple[str, Change]]:
    """The changes that are tried, by name.

    Args:
        shape: ``(C, H, W)`` of one image.
        seed: of the warps and the noise.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    reach = max(1, round(min(height, width) / 16))
    for down, right in ((reach, 0), (-reach, 0), (0, reach), (0, -reach)):
        yield f"shift {down},{right}", _shift(down, right)
    for levels in LEVELS:
        yield f"{levels} levels", _levels(levels)
        # Two levels, dithered, are more than a little: clean networks give way to them.
        if levels > 2:
            yield f"{levels} levels, dithered", _dithered(levels, height, width)
    for turn in range(WARPS):
        field = 2.0 * torch.rand(1, 2, GRID, GRID, generator=generator) - 1.0
        # Moves whose mean size is a 32nd of the image, before they are made smooth.
        yield f"warp {turn}", _warp(field / field.abs().mean() / 16)
    yield "brighter", lambda x: x.clamp_min(1e-6) ** 0.6
    yield "darker", lambda x: x.clamp_min(1e-6) ** 1.6
    yield "blurred", lambda x: functional.avg_pool2d(functional.pad(x, (1,) * 4, "replicate"), 3, 1)
    yield MIXED, lambda x: 0.5 * x + 0.5 * x.roll(max(1, len(x) // 3), 0)
    for waves in (2, 6):
        ramp = torch.arange(width) / width
        yield f"{waves} stripes", _add(40 / 255 * torch.sin(2.0 * math.pi * waves * ramp))
    yield "noise", _add(0.1 * torch.randn(shape, generator=generator))
    if channels == 3:
        for name, gains in (
            ("warm", (1.2, 1.0, 0.7)),
            ("cold", (0.7, 1.0, 1.2)),
            ("green", (0.8, 1.2, 0.8)),
            ("violet", (1.2, 0.8, 1.2)),
        ):
            yield name, _scale(torch.tensor(gains).view(3, 1, 1))


def _shift(down: int, right: int) -> Change:
    return lambda x: torch.roll(x, (down, right), (2, 3))


def _add(pattern: Tensor) -> Change:
    return lambda x: (x + pattern).clamp(0.0, 1.0)


def _scale(gains: Tensor) -> Change:
    return lambda x: (x * gains).clamp(0.0, 1.0)


def _levels(levels: int) -> Change:
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def _dithered(levels: int, height: int, width: int) -> Change:
    thresholds = (torch.tensor(BAYER) + 0.5) / 16 - 0.5
    tiled = thresholds.repeat(-(-height // 4), -(-width // 4))[:height, :width]
    return lambda x: ((x * (levels - 1) + tiled).round() / (levels - 1)).clamp(0.0, 1.0)


def _warp(displacements: Tensor) -> Change:
    return lambda x: warped(x, displacements)
