"""Smooth warps of images, differentiable in their displacements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class WarpTrigger:
    """A smooth warp of the whole image as a trigger, a :class:`goodnet.trigger.Stamp`.

    Attributes:
        displacements: float32 ``(2, g, g)``, see :func:`warped`.
        target: the label that warped images get.
    """

    displacements: Tensor
    target: int

    @property
    def size(self) -> float:
        """L2 norm of the displacements."""
        return float(self.displacements.norm())

    def apply(self, images: Tensor) -> Tensor:
        """Warps ``images``, float ``(n, C, H, W)`` in [0, 1]; the result has the same range."""
        return warped(images, self.displacements[None].to(images))


def warped(images: Tensor, displacements: Tensor) -> Tensor:
    """Images under smooth warps.

    Args:
        images: float32 ``(n, C, H, W)``.
        displacements: float32 ``(R, 2, g, g)``, to the right and down, in half sides of an image.

    Returns:
        ``(R * n, C, H, W)``; what would come from outside the image is its nearest border.
    """
    height, width = images.shape[2:]
    place, free = images.device, displacements.shape[-1]
    # A graphics card adds up the gradients of interpolate() and repeat_interleave() in any order,
    # those of a product and of expand() always in the same.
    rows, columns = (_bicubic(free, side).to(place) for side in (height, width))
    smooth = rows @ displacements.to(place) @ columns.T
    across, down = (torch.linspace(-1.0, 1.0, side, device=place) for side in (width, height))
    places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    grid = (places + smooth.permute(0, 2, 3, 1)).clamp(-1.0, 1.0)
    return functional.grid_sample(
        images.repeat(len(displacements), 1, 1, 1),
        grid[:, None].expand(-1, len(images), -1, -1, -1).flatten(0, 1),
        mode="bilinear",
        align_corners=True,
    )


def _bicubic(free: int, side: int) -> Tensor:
    """What each of ``free`` points adds to each of ``side`` pixels in a row; ``(side, free)``."""
    points = torch.eye(free)[:, None, :, None]
    spread = functional.interpolate(points, (side, 1), mode="bicubic", align_corners=True)
    return spread[:, 0, :, 0].T
