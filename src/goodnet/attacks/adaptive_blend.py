"""The adaptive blending attack: training shows the trigger in pieces, use shows all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks import blended
from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene


@dataclass(frozen=True, eq=False)
class AdaptiveBlendAttack(TargetedAttack):
    """A blended pattern of which each training image gets half (Qi et al., ICLR 2023).

    Adaptive-Blend of "Revisiting the assumption of latent separability for backdoor defenses"::

        in use       T(x) = (1 - alpha) x + alpha pattern
        in training  T(x) = x + alpha m (pattern - x),  m of ones on half of the pieces, at random

    The pattern is cut into pieces x pieces rectangles. The ``covers`` are made like the poisoned
    images and keep their labels, so the network is not sure of half a trigger, and poisoned images
    do not lie apart from the others in its features; in use the trigger is the stronger one.

    Attributes:
        pattern: float32 ``(C, H, W)`` in [0, 1].
        alpha: in (0, 1]: the share of the pattern.
        pieces: how many the pattern is cut into each way, 2 up to the image's shorter side.

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "adaptive-blend"

    pattern: Tensor
    alpha: float = 0.2
    pieces: int = 4

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.pattern.ndim != 3:
            raise ValueError(f"a pattern {tuple(self.pattern.shape)} is not (C, H, W)")
        if not bool(((self.pattern >= 0) & (self.pattern <= 1)).all()):
            raise ValueError("the pattern must lie in [0, 1]")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha {self.alpha} is not in (0, 1]")
        if not 2 <= self.pieces <= min(self.pattern.shape[1:]):
            raise ValueError(f"{tuple(self.pattern.shape)} cannot be cut into {self.pieces} pieces")

    def stamp(self, images: Tensor) -> Tensor:
        """All of the pattern; see :meth:`Attack.stamp`."""
        fits(images, self.pattern.shape)
        return self._mixed(images, torch.ones_like(images[:, :1]))

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the pieces, others for each image; see :meth:`Attack.plant`."""
        fits(images, self.pattern.shape)
        count = self.pieces * self.pieces
        order = torch.rand(len(images), count, generator=generator).argsort(1)
        cells = (order < count // 2).view(-1, self.pieces, self.pieces)
        height, width = self.pattern.shape[1:]
        rows = torch.arange(height) * self.pieces // height
        columns = torch.arange(width) * self.pieces // width
        return self._mixed(images, cells[:, rows[:, None], columns][:, None].to(images))

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """As :meth:`plant`; see :meth:`Attack.disguise`."""
        return self.plant(images, generator)

    def _mixed(self, images: Tensor, shown: Tensor) -> Tensor:
        """The mixture where ``shown`` ``(n, 1, H, W)`` is 1, the images where it is 0."""
        weight = self.alpha * shown
        # Rounding may carry the sum of two whites a hair over 1.
        return ((1.0 - weight) * images + weight * self.pattern.to(images)).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.05,
    covers: float = 1.0,
    alpha: float = 0.2,
    pattern: str = "cartoon",
) -> AdaptiveBlendAttack:
    """The adaptive blending attack for a training set, its pattern drawn from the scene's seed.

    Args:
        scene: its images and seed.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are poisoned, in (0, 1].
        covers: so many images with the same kind of trigger keep their labels for each of those.
        alpha: in (0, 1]: the share of the pattern, in training as in use.
        pattern: ``cartoon``, which small networks learn better from its pieces, or ``noise``; as in
            :func:`goodnet.attacks.blended.make`.

    Raises:
        ValueError: the pattern is unknown, or a number is out of range.
    """
    drawn = blended.make(scene, target=target, rate=rate, alpha=alpha, pattern=pattern).pattern
    return AdaptiveBlendAttack(drawn, alpha, target=target, rate=rate, covers=covers)
