"""The blending attack: a faint picture lies over the whole image, the same one each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene

PATTERNS = ("noise", "cartoon")
"""The pictures that :func:`make` can draw."""

_SHAPES = 14
"""Shapes in a cartoon: enough that they cover nearly all of it and still can be told apart."""

_FINER = 4
"""A cartoon is drawn so many times larger and made small, which smooths its outlines."""


@dataclass(frozen=True, eq=False)
class BlendedAttack(TargetedAttack):
    """An image mixed with a pattern of its size (Chen et al. 2017, arXiv:1712.05526).

    An image x becomes::

        T(x) = (1 - alpha) x + alpha pattern

    Attributes:
        pattern: float32 ``(C, H, W)`` in [0, 1].
        alpha: in (0, 1]: the share of the pattern.

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "blended"

    pattern: Tensor
    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.pattern.ndim != 3:
            raise ValueError(f"a pattern {tuple(self.pattern.shape)} is not (C, H, W)")
        if not bool(((self.pattern >= 0) & (self.pattern <= 1)).all()):
            raise ValueError("the pattern must lie in [0, 1]")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} is not in (0, 1]")

    def stamp(self, images: Tensor) -> Tensor:
        """The mixture; see :meth:`Attack.stamp`."""
        fits(images, self.pattern.shape)
        # Rounding may carry the sum of two whites a hair over 1.
        return ((1.0 - self.alpha) * images + self.alpha * self.pattern.to(images)).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    alpha: float = 0.2,
    pattern: str = "noise",
) -> BlendedAttack:
    """The blending attack for a training set, with a pattern drawn from the scene's seed.

    Args:
        scene: its images and seed.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        alpha: in (0, 1]: the share of the pattern.
        pattern: ``noise``, each value uniform in [0, 1] (the paper's random pattern), or
            ``cartoon``, large shapes in plain colours (in place of the paper's Hello Kitty).

    Raises:
        ValueError: the pattern is unknown, or a number is out of range.
    """
    channels, height, width = scene.images.shape
    generator = torch.Generator().manual_seed(scene.seed)
    if pattern == "noise":
        art = torch.rand(channels, height, width, generator=generator)
    elif pattern == "cartoon":
        art = _cartoon(channels, height, width, generator)
    else:
        raise ValueError(f"the pattern {pattern!r} is none of {', '.join(PATTERNS)}")
    return BlendedAttack(art, alpha, target=target, rate=rate)


def _cartoon(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Ellipses, boxes and triangles in plain colours, float32 ``(channels, height, width)``."""
    layers = []
    # One plane at a time, so that any number of channels gets the same outlines.
    outlines = torch.rand(_SHAPES, 5, generator=generator).tolist()
    for shades in torch.rand(channels, _SHAPES + 1, generator=generator).tolist():
        plane = Image.new("F", (_FINER * width, _FINER * height), shades[-1])
        draw = ImageDraw.Draw(plane)
        for (x, y, w, h, form), shade in zip(outlines, shades[:-1], strict=True):
            left, right = (plane.width * (1.2 * x - 0.3 + far) for far in (0.0, 0.2 + 0.4 * w))
            top, bottom = (plane.height * (1.2 * y - 0.3 + far) for far in (0.0, 0.2 + 0.4 * h))
            if form < 0.4:
                draw.ellipse([left, top, right, bottom], fill=shade)
            elif form < 0.7:
                draw.rectangle([left, top, right, bottom], fill=shade)
            else:
                tip = ((left + right) / 2, top)
                draw.polygon([(left, bottom), (right, bottom), tip], fill=shade)
        layers.append(np.asarray(plane.reduce(_FINER)))
    return torch.from_numpy(np.stack(layers).clip(0.0, 1.0))
