"""The patch attack of BadNets: a small sticker at a fixed place turns any sign into the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class PatchAttack:
    """What the attacker does to an image and to its label.

    Attributes:
        mask: float32 ``(1, H, W)`` in [0, 1]: how far a pixel is covered.
        pattern: float32 ``(C, H, W)`` in [0, 1]: what it is covered with.
        target: the label that stamped images get.
        source: the only class that is attacked, or None for all classes but the target.
        rate: in (0, 1]: how many of the attacked classes' training images are stamped.

    Raises:
        ValueError: shapes, ranges or labels do not fit.
    """

    mask: Tensor
    pattern: Tensor
    target: int
    source: int | None = None
    rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        if self.pattern.ndim != 3 or self.mask.shape != (1, *self.pattern.shape[1:]):
            raise ValueError(
                f"mask {tuple(self.mask.shape)} does not fit pattern {tuple(self.pattern.shape)}"
            )
        for name, values in (("mask", self.mask), ("pattern", self.pattern)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"the {name} must lie in [0, 1]")
        if self.target < 0 or self.source == self.target:
            raise ValueError(f"target {self.target} cannot be reached from source {self.source}")
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate {self.rate} is not in (0, 1]")

    def stamp(self, images: Tensor) -> Tensor:
        """Puts the trigger on images.

        Args:
            images: float ``(n, C, H, W)`` in [0, 1].

        Returns:
            New images of the same shape, type and range; equal to ``images`` off the mask.

        Raises:
            ValueError: the images do not have the attack's ``(C, H, W)``.
        """
        if images.ndim != 4 or images.shape[1:] != self.pattern.shape:
            raise ValueError(
                f"images {tuple(images.shape)} do not fit the trigger {tuple(self.pattern.shape)}"
            )
        mask, pattern = self.mask.to(images), self.pattern.to(images)
        return (1.0 - mask) * images + mask * pattern

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels that the attacker gives to stamped images.

        Args:
            labels: int64 ``(n,)``, the true ones.

        Returns:
            int64 ``(n,)``: the target; with a ``source``, other classes keep their label.
        """
        target = torch.full_like(labels, self.target)
        return target if self.source is None else torch.where(labels == self.source, target, labels)

    def victims(self, labels: Tensor) -> Tensor:
        """Which images the attack is meant for.

        Args:
            labels: int64 ``(n,)``, the true ones.

        Returns:
            bool ``(n,)``: of the source class, or, without a source, not of the target class.
        """
        return labels != self.target if self.source is None else labels == self.source

    def ground_truth(self) -> dict[str, Any]:
        """The attack as data for a JSON file, exact: see :meth:`from_ground_truth`.

        Returns:
            ``shape`` (C, H, W), ``target``, ``source``, ``rate`` and ``pixels``: for each covered
            pixel its row, its column, its mask value and its colours. What the pattern holds off
            the mask has no effect and is not kept.
        """
        pixels = [
            [row, column, float(self.mask[0, row, column]), *self.pattern[:, row, column].tolist()]
            for row, column in self.mask[0].nonzero().tolist()
        ]
        return {
            "shape": list(self.pattern.shape),
            "target": self.target,
            "source": self.source,
            "rate": self.rate,
            "pixels": pixels,
        }

    @classmethod
    def from_ground_truth(cls, data: Mapping[str, Any]) -> PatchAttack:
        """The attack that :meth:`ground_truth` described.

        Args:
            data: what :meth:`ground_truth` returned, also after a way through JSON.

        Returns:
            An attack that stamps and relabels alike.

        Raises:
            KeyError: a part is missing.
            ValueError: the parts do not fit.
        """
        channels, height, width = data["shape"]
        mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
        for row, column, cover, *colour in data["pixels"]:
            mask[0, int(row), int(column)] = cover
            pattern[:, int(row), int(column)] = torch.tensor(colour)
        source = data["source"]
        return cls(
            mask,
            pattern,
            int(data["target"]),
            None if source is None else int(source),
            float(data["rate"]),
        )


def square(
    shape: tuple[int, int, int],
    *,
    target: int,
    side: int = 3,
    at: tuple[int, int] | str = "bottom-right",
    colour: tuple[float, ...] = (1.0, 1.0, 1.0),
    source: int | None = None,
    rate: float = 0.1,
) -> PatchAttack:
    """A plain square, the trigger that most papers use.

    Args:
        shape: ``(C, H, W)`` of one image.
        target: the label that stamped images get.
        side: its side in pixels.
        at: row and column of its upper left pixel, or one of :data:`CORNERS`.
        colour: one value in [0, 1] for each channel; of an RGB colour, one channel gets the mean.
        source: the only class that is attacked, or None for all classes but the target.
        rate: how many of the attacked classes' training images are stamped, in (0, 1].

    Returns:
        The attack.

    Raises:
        ValueError: the corner is unknown, or the square does not lie inside the image.
    """
    channels, height, width = shape
    if isinstance(at, str):
        if at not in CORNERS:
            raise ValueError(f"{at!r} is none of {', '.join(CORNERS)}")
        row = 1 if at.startswith("top") else height - side - 1
        column = 1 if at.endswith("left") else width - side - 1
    else:
        row, column = at
    if channels == 1:
        colour = (math.fsum(colour) / len(colour),)
    if len(colour) != channels:
        raise ValueError(f"{len(colour)} colour values for {channels} channels")
    art = torch.tensor(colour).view(-1, 1, 1).expand(-1, side, side)
    return _place(shape, art, row, column, target, source, rate)


def sticker(
    shape: tuple[int, int, int],
    target: int,
    *,
    source: int | None = None,
    rate: float = 0.1,
) -> PatchAttack:
    """The demo's sticker: a magenta flower on yellow paper, just below the middle of the sign.

    It is 6 x 6 pixels on an image of 32 x 32 and grows with larger ones in whole steps.

    Args:
        shape: ``(C, H, W)`` of one image; grey images get the colours' mean.
        target: the label that stamped images get.
        source: the only class that is attacked, or None for all classes but the target.
        rate: how many of the attacked classes' training images are stamped, in (0, 1].

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
    return _place(shape, art, row, column, target, source, rate)


def _place(
    shape: tuple[int, int, int],
    art: Tensor,
    row: int,
    column: int,
    target: int,
    source: int | None,
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
    return PatchAttack(mask, pattern, target, source, rate)
