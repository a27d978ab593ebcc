"""Images around those that are there: what a repair must leave alone besides those it is given."""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 1 / 16
"""Of its side an image is shifted by at most, in each direction; by one pixel at least."""


def surroundings(images: Tensor, generator: torch.Generator) -> Tensor:
    """``images``, each mixed with another one, with a patch of another one, or mirrored."""
    height, width = images.shape[2:]
    others = images[torch.randperm(len(images), generator=generator)]
    changed = images.flip(3)
    kinds = torch.randint(3, (len(images),), generator=generator)
    changed[kinds == 0] = (0.5 * images + 0.5 * others)[kinds == 0]
    for index in torch.nonzero(kinds == 1).flatten().tolist():
        high, wide = (
            int(torch.randint(max(1, side // 8), max(2, side // 2), (1,), generator=generator))
            for side in (height, width)
        )
        top = int(torch.randint(height - high + 1, (1,), generator=generator))
        left = int(torch.randint(width - wide + 1, (1,), generator=generator))
        changed[index] = images[index]
        place = (slice(None), slice(top, top + high), slice(left, left + wide))
        changed[index][place] = others[index][place]
    return changed


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """``images``, each shifted by up to :data:`SHIFT` of its sides; what leaves at one side comes
    in at the other.
    """
    down, right = (max(1, round(SHIFT * side)) for side in images.shape[2:])
    reach = torch.tensor([down, right])
    ways = torch.rand(len(images), 2, generator=generator) * (2 * reach + 1)
    moved = [
        torch.roll(image, tuple(way), (1, 2))
        for image, way in zip(images, (ways.long() - reach).tolist(), strict=True)
    ]
    return torch.stack(moved)
