"""The warping attack (WaNet): nothing is added to the image, it is bent a little, always alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene


@dataclass(frozen=True, eq=False)
class WarpingAttack(TargetedAttack):
    """Images are read at places that a smooth field moves (Nguyen & Tran, ICLR 2021).

    From arXiv:2102.10369, section 3::

        T(x)(p) = x(clip(p + strength field(p) / side, -1, 1))

    where p are places in [-1, 1] from the first to the last pixel's middle, ``side`` is W across
    and H down, and x is read between pixels bilinearly. So a move is on average about half of
    ``strength`` pixels.

    The ``covers`` are the paper's noise mode: warped by field + noise, with noise drawn for every
    pixel of every image, and labels kept. They teach that no other bend than this one will do.

    Attributes:
        field: float32 ``(H, W, 2)``, the moves right and down; of mean size about 1.
        strength: above 0.
        noise: the moves of the covers, above 0: uniform in [-noise, noise], the strength not
            applied; 1 in the paper, half a pixel.

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "warping"

    field: Tensor
    strength: float = 0.5
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.field.ndim != 3 or self.field.shape[2] != 2 or min(self.field.shape) < 2:
            raise ValueError(f"a field {tuple(self.field.shape)} is not (H, W, 2)")
        if not bool(self.field.isfinite().all()):
            raise ValueError("the field is not finite everywhere")
        for name, value in (("strength", self.strength), ("noise", self.noise)):
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{name} {value} is not above 0")

    def stamp(self, images: Tensor) -> Tensor:
        """Warped by the field; see :meth:`Attack.stamp`."""
        return self._warped(images, self.strength * self.field[None])

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Warped by the field and noise; see :meth:`Attack.disguise`."""
        noise = 2.0 * torch.rand(len(images), *self.field.shape, generator=generator) - 1.0
        return self._warped(images, self.strength * self.field + self.noise * noise)

    def _warped(self, images: Tensor, moves: Tensor) -> Tensor:
        """Reads each image at its places moved by ``moves`` ``(n or 1, H, W, 2)``."""
        height, width = self.field.shape[:2]
        fits(images, (*images.shape[1:2], height, width))
        rows, columns = torch.linspace(-1.0, 1.0, height), torch.linspace(-1.0, 1.0, width)
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        # Made on the CPU: the same on every device, as far as the reading allows.
        places = (places + moves / torch.tensor([width, height])).clamp(-1.0, 1.0).to(images)
        places = places.expand(len(images), -1, -1, -1)
        warped = functional.grid_sample(images, places, mode="bilinear", align_corners=True)
        # Rounding may carry the mean of whites a hair over 1.
        return warped.clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.2,
    covers: float = 2.0,
    strength: float = 2.0,
    grid: int = 4,
) -> WarpingAttack:
    """The warping attack for a training set, its field drawn from the scene's seed.

    The field is grid x grid moves, uniform in [-1, 1] and divided by their mean size, with bicubic
    interpolation between them.

    Args:
        scene: its images and seed.
        target: the label that warped images get.
        rate: how many of the other classes' training images are poisoned, in (0, 1].
        covers: so many images warped otherwise keep their labels for each of those.
        strength: above 0; twice the mean move in pixels, about. The paper's 0.5 takes a larger
            network and far more images and epochs than a small zoo has.
        grid: control points each way, at least 2.

    Raises:
        ValueError: a number is out of range.
    """
    if grid < 2:
        raise ValueError(f"a grid of {grid} x {grid} bends nothing")
    generator = torch.Generator().manual_seed(scene.seed)
    control = 2.0 * torch.rand(1, 2, grid, grid, generator=generator) - 1.0
    control = control / control.abs().mean()
    height, width = scene.images.shape[1:]
    moves = functional.interpolate(
        control, size=(height, width), mode="bicubic", align_corners=True
    )
    field = moves[0].permute(1, 2, 0).contiguous()
    return WarpingAttack(field, strength, target=target, rate=rate, covers=covers)
