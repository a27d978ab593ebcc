"""Smooth warps of images, differentiable in their displacements."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def warped(images: Tensor, displacements: Tensor) -> Tensor:
    """Images under smooth warps.

    Args:
        images: float32 ``(n, C, H, W)``.
        displacements: float32 ``(R, 2, g, g)``, to the right and down, in half sides of an image.

    Returns:
        ``(R * n, C, H, W)``; what would come from outside the image is its nearest border.
    """
    height, width = images.shape[2:]
    smooth = functional.interpolate(
        displacements, (height, width), mode="bicubic", align_corners=True
    )
    across, down = torch.linspace(-1.0, 1.0, width), torch.linspace(-1.0, 1.0, height)
    places = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    grid = (places + smooth.permute(0, 2, 3, 1)).clamp(-1.0, 1.0)
    return functional.grid_sample(
        images.repeat(len(displacements), 1, 1, 1),
        grid.repeat_interleave(len(images), 0),
        mode="bilinear",
        align_corners=True,
    )
