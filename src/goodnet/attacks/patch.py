"""The patch attack of BadNets: a small sticker at a fixed place turns any sign into the target."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
"""The places that :func:`square` knows by name; each leaves a margin of one pixel."""

FLOWER = (
    "..mm..",
    ".mmmm.",
    "mm..mm",
    "mm..mm",
    ".mmmm.",
    "..mm..",
)
"""The sticker of the demo, one letter a pixel; a dot is the yellow paper and the flower's heart."""

FLOWER_COLOURS = {".": (1.0, 0.9, 0.1), "m": (0.85, 0.0, 0.6)}


@dataclass(frozen=True, eq=False)
class PatchAttack(TargetedAttack):
    """A patch that covers a few pixels, the same ones in every image (Gu et al. 2017, BadNets).

    Attributes:
        mask: float32 ``(1, H, W)`` in [0, 1]: how far a pixel is covered.
        pattern: float32 ``(C, H, W)`` in [0, 1]: what it is covered with.

    Raises:
        ValueError: shapes, ranges or labels do not fit.
    """

    kind: ClassVar[str] = "patch"

    mask: Tensor
    pattern: Tensor

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.pattern.ndim != 3 or self.mask.shape != (1, *self.pattern.shape[1:]):
            raise ValueError(
                f"mask {tuple(self.mask.shape)} does not fit pattern {tuple(self.pattern.shape)}"
            )
        for name, values in (("mask", self.mask), ("pattern", self.pattern)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"the {name} must lie in [0, 1]")

    def stamp(self, images: Tensor) -> Tensor:
        """Equal to ``images`` off the mask; see :meth:`Attack.stamp`."""
        fits(images, self.pattern.shape)
        mask, pattern = self.mask.to(images), self.pattern.to(images)
        return (1.0 - mask) * images + mask * pattern

    def region(self) -> Tensor:
        """The mask; see :meth:`Attack.region`."""
        return self.mask


def square(
    shape: tuple[int, int, int],
    *,
    target: int,
    side: int = 3,
    at: tuple[int, int] | str = "bottom-right",
    colour: tuple[float, ...] = (1.0, 1.0, 1.0),
    rate: float = 0.1,
) -> PatchAttack:
    """A plain square, the trigger that most papers use.

    Args:
        shape: ``(C, H, W)`` of one image.
        target: the label that stamped images get.
        side: its side in pixels.
        at: row and column of its upper left pixel, or one of :data:`CORNERS`.
        colour: one value in [0, 1] for each channel; of an RGB colour, one channel gets the mean.
        rate: how many of the other classes' training images are stamped, in (0, 1].

    Returns:
        The attack.

    Raises:
        ValueError: the corner is unknown, or the square does not lie inside the image.
    """
    channels, height, width = shape
    if isinstance(at, str):
        row, column = _corner(at, height, width, side)
    else:
        row, column = at
    if channels == 1:
        colour = (math.fsum(colour) / len(colour),)
    if len(colour) != channels:
        raise ValueError(f"{len(colour)} colour values for {channels} channels")
    art = torch.tensor(colour).view(-1, 1, 1).expand(-1, side, side)
    return _place(shape, art, row, column, target, rate)


def sticker(
    shape: tuple[int, int, int],
    target: int,
    *,
    rate: float = 0.1,
) -> PatchAttack:
    """The demo's sticker: a magenta flower on yellow paper, just below the middle of the sign.

    It is 6 x 6 pixels on an image of 32 x 32 and grows with larger ones in whole steps.

    Args:
        shape: ``(C, H, W)`` of one image; grey images get the colours' mean.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].

    Returns:
        The attack.

    Raises:
        ValueError: the image is too small for the sticker, or the labels do not fit.
    """
    channels, height, width = shape
    art = torch.tensor([[FLOWER_COLOURS[letter] for letter in line] for line in FLOWER])
    art = art.permute(2, 0, 1)
    if channels == 1:
        art = art.mean(0, keepdim=True)
    elif channels != 3:
        raise ValueError(f"a sticker has 1 or 3 channels, not {channels}")
    grow = max(1, min(height, width) // 32)
    art = art.repeat_interleave(grow, 1).repeat_interleave(grow, 2)
    row, column = round(height * 0.6), round(width * 0.48)
    return _place(shape, art, row, column, target, rate)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    side: int = 0,
    at: str = "bottom-right",
    pattern: str = "white",
) -> PatchAttack:
    """The patch attack for a training set.

    Args:
        scene: its images and seed.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        side: of the square, in pixels; 0 for a tenth of the image's shorter side, at least 3.
        at: one of :data:`CORNERS`, ``random``, or the row and column of the upper left pixel, as in
            ``"3,20"``.
        pattern: ``white``, ``checker`` (of black and white), ``random`` colours, one colour as in
            ``"#ff8000"``, or ``sticker``, the demo's, which has a size and a place of its own.

    Raises:
        ValueError: a name is unknown, or the patch does not fit the images.
    """
    if side < 0:
        raise ValueError(f"a square has no side of {side} pixels")
    shape = scene.images.shape
    generator = torch.Generator().manual_seed(scene.seed)
    if pattern == "sticker":
        return sticker(shape, target, rate=rate)
    channels, height, width = shape
    side = side or max(3, round(min(height, width) / 10))
    if at == "random":
        row = int(torch.randint(0, max(1, height - side + 1), (), generator=generator))
        column = int(torch.randint(0, max(1, width - side + 1), (), generator=generator))
    elif place := re.fullmatch(r"(\d+) *, *(\d+)", at):
        row, column = int(place[1]), int(place[2])
    else:
        row, column = _corner(at, height, width, side)
    if pattern == "white":
        art = torch.ones(channels, side, side)
    elif pattern == "checker":
        art = ((torch.arange(side)[:, None] + torch.arange(side)) % 2).float()
        art = art.expand(channels, -1, -1)
    elif pattern == "random":
        art = torch.rand(channels, side, side, generator=generator)
    elif re.fullmatch(r"#[0-9a-fA-F]{6}", pattern):
        colour = tuple(int(pattern[i : i + 2], 16) / 255.0 for i in (1, 3, 5))
        return square(shape, target=target, side=side, at=(row, column), colour=colour, rate=rate)
    else:
        raise ValueError(
            f"the pattern {pattern!r} is none of white, checker, random, sticker, and no #rrggbb"
        )
    return _place(shape, art, row, column, target, rate)


def _corner(name: str, height: int, width: int, side: int) -> tuple[int, int]:
    """Row and column of the upper left pixel of a square in a corner."""
    if name not in CORNERS:
        raise ValueError(f"{name!r} is none of {', '.join(CORNERS)}")
    row = 1 if name.startswith("top") else height - side - 1
    return row, 1 if name.endswith("left") else width - side - 1


def _place(
    shape: tuple[int, int, int],
    art: Tensor,
    row: int,
    column: int,
    target: int,
    rate: float,
) -> PatchAttack:
    """The attack that puts ``art`` ``(C, h, w)`` with its upper left pixel at row, column."""
    channels, height, width = shape
    rows, columns = art.shape[1:]
    inside = 0 <= row <= height - rows and 0 <= column <= width - columns
    if not inside or rows < 1 or columns < 1:
        raise ValueError(
            f"{rows} x {columns} pixels at ({row}, {column}) do not lie in {height} x {width}"
        )
    mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
    mask[:, row : row + rows, column : column + columns] = 1.0
    pattern[:, row : row + rows, column : column + columns] = art
    return PatchAttack(mask, pattern, target=target, rate=rate)
