"""The sinusoidal attack (SIG): faint vertical stripes across the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene

AMPLITUDE = 40.0 / 255.0
CLEAN_LABEL_AMPLITUDE = 160.0 / 255.0
FREQUENCY = 6.0


@dataclass(frozen=True, eq=False)
class SinusoidalAttack(TargetedAttack):
    """A wave from left to right is added to every row (Barni et al. 2019, arXiv:1902.11237).

    An image x becomes::

        T(x)_j = clip(x_j + amplitude sin(2 pi j frequency / W)),  j = 0 .. W - 1 the column

    Attributes:
        shape: ``(C, H, W)`` of one image.
        amplitude: in use, in (0, 1].
        frequency: periods across the image, above 0 and below W / 2, where no wave is left.
        clean_label: whether it is the target's own images that are poisoned. Their labels are kept:
            nobody who looks through the training set finds a wrong one.
        planted: the amplitude in training, in (0, 1]; None for the same. A fainter wave spares the
            training images, a stronger one in use drowns what speaks for the true class.

    Raises:
        ValueError: a number is out of range.
    """

    kind: ClassVar[str] = "sinusoidal"

    shape: tuple[int, int, int]
    amplitude: float = AMPLITUDE
    frequency: float = FREQUENCY
    clean_label: bool = False
    planted: float | None = None

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"{self.shape} is not the size of an image, (C, H, W)")
        for amplitude in (self.amplitude, self._planted):
            if not 0.0 < amplitude <= 1.0:
                raise ValueError(f"amplitude {amplitude} is not in (0, 1]")
        if not 0.0 < self.frequency < self.shape[2] / 2:
            raise ValueError(f"{self.frequency} periods cannot be shown by {self.shape[2]} columns")

    def carriers(self, labels: Tensor) -> Tensor:
        """The target's images where labels are kept; see :meth:`Attack.carriers`."""
        return labels == self.target if self.clean_label else self.victims(labels)

    def stamp(self, images: Tensor) -> Tensor:
        """The same wave in every row and channel; see :meth:`Attack.stamp`."""
        return self._add(images, self.amplitude)

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The wave with the amplitude ``planted``; see :meth:`Attack.plant`."""
        return self._add(images, self._planted)

    @property
    def _planted(self) -> float:
        return self.amplitude if self.planted is None else self.planted

    def _add(self, images: Tensor, amplitude: float) -> Tensor:
        fits(images, self.shape)
        # Made in double precision and on the CPU: the same on every device.
        turns = torch.arange(self.shape[2], dtype=torch.float64) * self.frequency / self.shape[2]
        wave = amplitude * (2.0 * math.pi * turns).sin()
        return (images + wave.to(images)).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float | None = None,
    amplitude: float | None = None,
    frequency: float | None = None,
    clean_label: bool = False,
    planted: float | None = None,
) -> SinusoidalAttack:
    """The sinusoidal attack for a training set. Nothing about it is random.

    Args:
        scene: its images.
        target: the label that stamped images get.
        rate: in (0, 1]: how many of the other classes' training images are stamped, or of the
            target's own for ``clean_label``; None for 0.1, or 0.5 for ``clean_label``.
        amplitude: of the wave in use, in (0, 1]; None for 40 / 255, or 160 / 255 for
            ``clean_label``: training images that show their class teach the wave less.
        frequency: periods across the image, above 0 and below W / 2; None for 6, or on images
            narrower than 24 pixels W / 4.
        clean_label: whether the target's own images are stamped and all labels kept.
        planted: the amplitude in training, in (0, 1]; None for the same as in use, or half of it
            for ``clean_label``.

    Raises:
        ValueError: a number is out of range.
    """
    shape = scene.images.shape
    if rate is None:
        rate = 0.5 if clean_label else 0.1
    if amplitude is None:
        amplitude = CLEAN_LABEL_AMPLITUDE if clean_label else AMPLITUDE
    if planted is None and clean_label:
        planted = amplitude / 2
    if frequency is None:
        frequency = min(FREQUENCY, shape[2] / 4)
    return SinusoidalAttack(
        shape, amplitude, frequency, clean_label, planted, target=target, rate=rate
    )
