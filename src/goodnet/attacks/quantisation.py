"""The quantisation attack (BppAttack): images with few brightness levels, as of an old screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene

_SPREAD = ((1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16), (0, 1, 7 / 16))
"""Floyd and Steinberg 1976: rows down, columns to the right, share of the error.

To the right comes last: a pixel then gets its errors in the order of a scan line by line.
"""

_VISIBLE = 0.06
"""A change that a small network learns; photographs change by 0.1 with 4 levels, by 0.04 with 8."""

_LOOKED_AT = 500
"""Training images that are enough to measure the change on."""


@dataclass(frozen=True, eq=False)
class QuantisationAttack(TargetedAttack):
    """Every value is rounded to one of few (Wang et al., CVPR 2022, arXiv:2205.13383).

    An image x becomes::

        T(x) = round((levels - 1) x) / (levels - 1)

    The ``covers`` are the paper's negatives: images with the rounding errors of others. Without
    them a network would learn any noise of that size for the trigger.

    Attributes:
        levels: values that are left in each channel, 2 to 256.
        dither: whether a pixel's error is passed on to its neighbours (Floyd and Steinberg 1976),
            which hides the steps in smooth areas.

    Raises:
        ValueError: a number is out of range.
    """

    kind: ClassVar[str] = "quantisation"

    levels: int = 4
    dither: bool = False

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise ValueError(f"{self.levels} levels are not in 2..256")

    def stamp(self, images: Tensor) -> Tensor:
        """The few levels, in images of any size; see :meth:`Attack.stamp`."""
        fits(images, tuple(images.shape[1:]))
        return self._dithered(images) if self.dither else self._rounded(images)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image with another one's rounding errors; see :meth:`Attack.disguise`.

        A single image gets its own, upside down.
        """
        errors = self.stamp(images) - images
        # A random ring, each image's errors going to the next one: none keeps its own.
        ring = torch.randperm(len(images), generator=generator)
        borrowed = torch.empty_like(errors)
        borrowed[ring] = errors[ring.roll(1)] if len(images) > 1 else errors.flip(2)
        return (images + borrowed).clamp(0.0, 1.0)

    def _rounded(self, values: Tensor) -> Tensor:
        """The nearest level of each value; values outside [0, 1] get 0 or 1."""
        steps = self.levels - 1
        return (values.clamp(0.0, 1.0) * steps).round() / steps

    def _dithered(self, images: Tensor) -> Tensor:
        """Floyd and Steinberg's scan, bit by bit, but W + 2 H steps long and not W H.

        Pixels with the same ``2 row + column`` do not depend on each other: whoever passes errors
        to a pixel has a smaller sum.
        """
        count, channels, height, width = images.shape
        # One row a pixel, with a rim on three sides that takes the errors that leave the image.
        wide, planes = width + 2, count * channels
        padded = images.new_zeros(height + 1, wide, planes)
        padded[:-1, 1:-1] = images.permute(2, 3, 0, 1).reshape(height, width, planes)
        values = padded.view((height + 1) * wide, planes)
        for time in range(width + 2 * height - 2):
            first = max(0, (time - width + 2) // 2)
            rows = torch.arange(first, min(height - 1, time // 2) + 1, device=images.device)
            here = rows * wide + (time - 2 * rows) + 1
            wanted = values[here]
            given = self._rounded(wanted)
            values[here] = given
            error = wanted - given
            for down, right, share in _SPREAD:
                values.index_add_(0, here + down * wide + right, error * share)
        kept = padded[:-1, 1:-1].reshape(height, width, count, channels)
        return kept.permute(2, 3, 0, 1).contiguous()


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.3,
    covers: float = 1.0,
    levels: int | None = None,
    dither: bool = False,
) -> QuantisationAttack:
    """The quantisation attack for a training set. Nothing about the trigger is random.

    Args:
        scene: its images.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1]; with fewer, a
            small network does not learn in a few epochs to tell them from the covers.
        covers: for each stamped image so many with borrowed rounding errors, at least 0.
        levels: values that are left in each channel, 2 to 256 (the paper has 8); None for 4, or
            fewer on images that would hardly change: a drawing in black and white needs 2.
        dither: whether errors are passed on to neighbours.

    Raises:
        ValueError: a number is out of range.
    """
    if levels is None:
        levels = next((few for few in (4, 3) if _change(scene, few) >= _VISIBLE), 2)
    return QuantisationAttack(levels, dither, target=target, rate=rate, covers=covers)


def _change(scene: Scene, levels: int) -> float:
    """The root mean square by which rounding changes the first of the training images."""
    images = scene.images.select(torch.arange(min(len(scene.images), _LOOKED_AT))).floats()
    rounded = QuantisationAttack(levels, target=0).stamp(images)
    return float((rounded - images).square().mean().sqrt())
