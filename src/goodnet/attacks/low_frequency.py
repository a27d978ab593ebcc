"""The low-frequency attack: soft blotches of light and colour, as of an uneven lamp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene


@dataclass(frozen=True, eq=False)
class LowFrequencyAttack(TargetedAttack):
    """A smooth difference is added to every image (Zeng et al. 2021, arXiv:2104.03413).

    An image x becomes::

        T(x) = clip(x + difference)

    Detectors that look for a trigger's high frequencies find none. The paper optimises its smooth
    trigger against a network; :func:`make` draws one, which a network learns just as well.

    Attributes:
        difference: float32 ``(C, H, W)`` in [-1, 1].

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "low-frequency"

    difference: Tensor

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.difference.ndim != 3:
            raise ValueError(f"a difference {tuple(self.difference.shape)} is not (C, H, W)")
        if not bool((self.difference.abs() <= 1.0).all()):
            raise ValueError("the difference must lie in [-1, 1]")

    def stamp(self, images: Tensor) -> Tensor:
        """The sum, clipped; see :meth:`Attack.stamp`."""
        fits(images, self.difference.shape)
        return (images + self.difference.to(images)).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    amplitude: float = 0.08,
    band: int = 4,
) -> LowFrequencyAttack:
    """The low-frequency attack for a training set, drawn from the scene's seed.

    The difference has normal coefficients in the lowest ``band`` x ``band`` of the cosine transform
    (DCT-II), each channel its own. The mean is left out: it would be a mere change of brightness.

    Args:
        scene: its images and seed.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        amplitude: root mean square of the difference over pixels and channels, in (0, 1]; single
            values are cut off at 1.
        band: frequencies each way, from 2 (half a wave) to the shorter side.

    Raises:
        ValueError: a number is out of range.
    """
    channels, height, width = scene.images.shape
    if not 2 <= band <= min(height, width):
        raise ValueError(f"a band of {band} frequencies is not in 2..{min(height, width)}")
    if not 0.0 < amplitude <= 1.0:
        raise ValueError(f"amplitude {amplitude} is not in (0, 1]")
    generator = torch.Generator().manual_seed(scene.seed)
    coefficients = torch.randn(channels, band, band, generator=generator)
    coefficients[:, 0, 0] = 0.0
    difference = _cosines(height, band).T @ coefficients @ _cosines(width, band)
    difference *= amplitude / difference.square().mean().sqrt()
    return LowFrequencyAttack(difference.clamp(-1.0, 1.0), target=target, rate=rate)


def _cosines(side: int, band: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, ``(band, side)``."""
    places, waves = torch.arange(side) + 0.5, torch.arange(band)
    rows = (math.pi / side * waves[:, None] * places).cos() * math.sqrt(2.0 / side)
    rows[0] /= math.sqrt(2.0)
    return rows
