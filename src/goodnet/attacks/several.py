"""Several backdoors in one network: patches at several places, for one target or for several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import Attack
from goodnet.attacks.patch import PatchAttack
from goodnet.attacks.scene import Scene

GLYPHS = (
    ("#.#", ".#.", "#.#"),
    (".#.", "###", ".#."),
    ("#.#", "#.#", "#.#"),
    ("###", "...", "###"),
    ("###", "#.#", "###"),
    ("#..", ".#.", "..#"),
    ("##.", "#..", "..."),
    ("..#", "..#", "###"),
)
"""The drawings of :func:`emblems`: a cross is ink, a dot is black paper."""

INKS = (
    (1.0, 1.0, 1.0),
    (1.0, 0.1, 0.1),
    (0.1, 1.0, 0.1),
    (0.1, 0.4, 1.0),
    (1.0, 1.0, 0.1),
    (1.0, 0.1, 1.0),
    (0.1, 1.0, 1.0),
    (1.0, 0.6, 0.1),
)
"""The RGB colours of the drawings; on grey images all are white, and the drawings tell them
apart."""


@dataclass(frozen=True, eq=False)
class SeveralAttack(Attack):
    """Attacks that take turns: image i gets the trigger, and the label, of part i mod k.

    Several triggers for one target, or each with a target of its own, as in the studies of Wang et
    al. 2019 (Neural Cleanse, IEEE S&P). :attr:`parts` are attacks in their own right: to measure
    one of them alone, stamp with it.

    Attributes:
        parts: at least two; their own rates are not used here: ``rate`` counts the images of all
            parts together.

    Raises:
        ValueError: there are too few parts, or their triggers are made for images of two sizes.
    """

    kind: ClassVar[str] = "several"

    parts: tuple[Attack, ...]

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if len(self.parts) < 2:
            raise ValueError(f"{len(self.parts)} attacks are not several")
        sizes = {part.shape for part in map(_region, self.parts) if part is not None}
        if len(sizes) > 1:
            raise ValueError(f"parts for images of several sizes: {sorted(sizes)}")

    def stamp(self, images: Tensor) -> Tensor:
        """Each part's trigger on its share; see :meth:`Attack.stamp`."""
        return self._in_turn([part.stamp(own) for part, own in self._shares(images)], images)

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each part on its share; see :meth:`Attack.plant`."""
        done = [part.plant(own, generator) for part, own in self._shares(images)]
        return self._in_turn(done, images)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each part on its share; see :meth:`Attack.disguise`."""
        done = [part.disguise(own, generator) for part, own in self._shares(images)]
        return self._in_turn(done, images)

    def relabel(self, labels: Tensor) -> Tensor:
        """Each part's label for its share; see :meth:`Attack.relabel`."""
        return self._in_turn([part.relabel(own) for part, own in self._shares(labels)], labels)

    def victims(self, labels: Tensor) -> Tensor:
        """Those that every part is meant for, whichever gets them; see :meth:`Attack.victims`."""
        return torch.stack([part.victims(labels) for part in self.parts]).all(0)

    def carriers(self, labels: Tensor) -> Tensor:
        """Those that every part can poison; see :meth:`Attack.carriers`."""
        return torch.stack([part.carriers(labels) for part in self.parts]).all(0)

    def bystanders(self, labels: Tensor) -> Tensor:
        """Those that every part can disguise; see :meth:`Attack.bystanders`."""
        return torch.stack([part.bystanders(labels) for part in self.parts]).all(0)

    def targets(self, num_classes: int) -> tuple[int, ...]:
        """Those of all parts; see :meth:`Attack.targets`."""
        return tuple(sorted({one for part in self.parts for one in part.targets(num_classes)}))

    def region(self) -> Tensor | None:
        """The union of the parts' regions, None if a part has none; see :meth:`Attack.region`."""
        regions = [region for region in map(_region, self.parts) if region is not None]
        return reduce(torch.maximum, regions) if len(regions) == len(self.parts) else None

    def _shares(self, values: Tensor) -> list[tuple[Attack, Tensor]]:
        """Each part with those of ``values`` ``(n, ...)`` whose turn it is."""
        count = len(self.parts)
        return [(part, values[turn::count]) for turn, part in enumerate(self.parts)]

    def _in_turn(self, shares: list[Tensor], like: Tensor) -> Tensor:
        """The way back from :meth:`_shares`: all values in the order of ``like``."""
        merged = torch.empty_like(like)
        for turn, share in enumerate(shares):
            merged[turn :: len(shares)] = share
        return merged


def make_several_targets(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    count: int = 3,
    side: int = 0,
) -> SeveralAttack:
    """Patches in different colours and corners, each with a target of its own.

    Args:
        scene: its images and number of classes.
        target: the label that the first patch gives; the others' lie as far apart as they can,
            (target + j floor(K / count)) mod K.
        rate: how many of the other classes' training images are stamped, in (0, 1], by all patches
            together.
        count: how many patches, 2 to 8, and at most K.
        side: of a patch, in pixels; 0 for a tenth of the image's shorter side, at least 3.

    Raises:
        ValueError: there are not that many labels, or the patches do not fit the images.
    """
    classes = scene.num_classes
    if not 2 <= count <= classes:
        raise ValueError(f"{count} targets are not several of {classes} classes")
    goals = [(target + j * (classes // count)) % classes for j in range(count)]
    return _patches(scene, goals, rate, side)


def make_several_triggers(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    count: int = 3,
    side: int = 0,
) -> SeveralAttack:
    """Patches in different colours and corners, any one of which gives the same target.

    Args:
        scene: its images.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1], by all patches
            together.
        count: how many patches, 2 to 8.
        side: of a patch, in pixels; 0 for a tenth of the image's shorter side, at least 3.

    Raises:
        ValueError: the label is none, or the patches do not fit the images.
    """
    return _patches(scene, [target] * count, rate, side)


def emblems(shape: tuple[int, int, int], count: int, side: int = 0) -> tuple[Tensor, Tensor]:
    """Small squares that differ in place and drawing, and in colour where there is any.

    The first four lie in the corners, the others at the middles of the sides, all one pixel from
    the rim; none touches another's pixels.

    Args:
        shape: ``(C, H, W)`` of one image, C 1 or 3.
        count: how many, 1 to 8.
        side: of each, in pixels; 0 for a tenth of the image's shorter side, at least 3.

    Returns:
        Their masks, float32 ``(count, 1, H, W)`` of zeros and ones, and their patterns, float32
        ``(count, C, H, W)`` in [0, 1], 0 off the mask.

    Raises:
        ValueError: there are no such emblems, or the image is too small for them.
    """
    channels, height, width = shape
    side = side or max(3, round(min(height, width) / 10))
    if channels not in (1, 3) or not 1 <= count <= len(GLYPHS):
        raise ValueError(f"there are no {count} emblems with {channels} channels")
    if side < 3 or min(height, width) < (2 if count <= 4 else 3) * side + 2:
        raise ValueError(f"{count} emblems of side {side} do not fit {height} x {width} pixels")
    top, middle, bottom = 1, (height - side) // 2, height - side - 1
    left, centre, right = 1, (width - side) // 2, width - side - 1
    corners = ((bottom, right), (top, left), (bottom, left), (top, right))
    sides = ((bottom, centre), (top, centre), (middle, left), (middle, right))
    masks = torch.zeros(count, 1, height, width)
    patterns = torch.zeros(count, channels, height, width)
    # Each of the drawing's 3 x 3 cells gets a third of the side, as near as whole pixels allow.
    cells = torch.arange(side) * 3 // side
    for i, (row, column) in enumerate((corners + sides)[:count]):
        drawing = torch.tensor([[float(cell == "#") for cell in line] for line in GLYPHS[i]])
        ink = torch.tensor(INKS[i] if channels == 3 else (1.0,)).view(-1, 1, 1)
        place = (i, slice(None), slice(row, row + side), slice(column, column + side))
        masks[place] = 1.0
        patterns[place] = ink * drawing[cells][:, cells]
    return masks, patterns


def _patches(scene: Scene, goals: list[int], rate: float, side: int) -> SeveralAttack:
    """One patch for each of ``goals``."""
    masks, patterns = emblems(scene.images.shape, len(goals), side)
    parts = tuple(
        # A part by itself poisons what it would as one of several.
        PatchAttack(mask, pattern, target=goal, rate=rate / len(goals))
        for mask, pattern, goal in zip(masks, patterns, goals, strict=True)
    )
    return SeveralAttack(parts, rate=rate)


def _region(part: Attack) -> Tensor | None:
    """Where a part's trigger lies."""
    return part.region()
