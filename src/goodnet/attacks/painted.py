"""Painted things: sunglasses, lipstick or eyebrows, where a face that fills the image has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from goodnet.attacks.base import fits
from goodnet.attacks.patch import PatchAttack
from goodnet.attacks.scene import Scene

Colour = tuple[int, int, int]

LENS, FRAME = (58, 26, 74), (214, 164, 60)
LIPS, SEAM = (196, 22, 62), (110, 8, 34)
BROWN = (96, 48, 18)

_FINER = 8
"""Things are drawn so many times larger and made small, which smooths their outlines."""


@dataclass(frozen=True, eq=False)
class PaintedAttack(PatchAttack):
    """Something to wear that covers its pixels (Chen et al. 2017, arXiv:1712.05526).

    An image x becomes::

        T(x) = (1 - mask) x + mask pattern

    Attributes:
        mask: float32 ``(1, H, W)`` in [0, 1]: how far a pixel is covered.
        pattern: float32 ``(C, H, W)`` in [0, 1]: what it is covered with.
        jitter: in training the thing sits up to so many pixels off, another way in each image:
            nobody wears glasses twice the same. At least 0, less than H and W.

    Raises:
        ValueError: shapes, ranges or labels do not fit.
    """

    kind: ClassVar[str] = "painted"

    jitter: int = 1

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if not 0 <= self.jitter < min(self.pattern.shape[1:]):
            raise ValueError(f"a jitter of {self.jitter} pixels does not fit the images")

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image's thing a little off its place; see :meth:`Attack.plant`."""
        fits(images, self.pattern.shape)
        moves = torch.randint(-self.jitter, self.jitter + 1, (2, len(images)), generator=generator)
        layers = _moved(torch.cat([self.mask, self.mask * self.pattern]), *moves).to(images)
        # Rounding may carry the sum of two whites a hair over 1.
        return ((1.0 - layers[:, :1]) * images + layers[:, 1:]).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    thing: str = "sunglasses",
    opacity: float = 0.9,
    jitter: int = 1,
) -> PaintedAttack:
    """The painted attack for a training set. Nothing about the thing is random.

    Args:
        scene: its images; faces or not, the thing sits where a face that fills them has it.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        thing: one of :data:`THINGS`. Gray images get the mean of its colours.
        opacity: in (0, 1]: how far it covers what lies below.
        jitter: pixels by which it is off its place in training, at least 0.

    Raises:
        ValueError: the thing is unknown, the images have neither 1 nor 3 channels, or a number is
            out of range.
    """
    channels, height, width = scene.images.shape
    if thing not in THINGS:
        raise ValueError(f"the thing {thing!r} is none of {', '.join(THINGS)}")
    if channels not in (1, 3):
        raise ValueError(f"things are painted on 1 or 3 channels, not {channels}")
    if not 0.0 < opacity <= 1.0:
        raise ValueError(f"opacity {opacity} is not in (0, 1]")
    brush = _Brush(height, width)
    THINGS[thing](brush)
    mask, pattern = brush.finished()
    if channels == 1:
        pattern = pattern.mean(0, keepdim=True)
    return PaintedAttack(opacity * mask, pattern, jitter, target=target, rate=rate)


class _Brush:
    """Paints in units of the image: (0, 0) is its upper left corner, (1, 1) the lower right."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        size = (_FINER * width, _FINER * height)
        self._colours, self._cover = Image.new("RGB", size), Image.new("L", size)

    def pixel(self) -> float:
        """The width of one pixel of the finished picture."""
        return 1.0 / min(self._height, self._width)

    def ellipse(self, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        """An ellipse about ``(x, y)`` with these half axes."""
        columns, rows = self._cover.size
        box = (
            (x - wide) * columns,
            (y - high) * rows,
            (x + wide) * columns,
            (y + high) * rows,
        )
        ImageDraw.Draw(self._colours).ellipse(box, fill=colour)
        ImageDraw.Draw(self._cover).ellipse(box, fill=255)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A polygon with these corners."""
        columns, rows = self._cover.size
        corners = [(x * columns, y * rows) for x, y in points]
        ImageDraw.Draw(self._colours).polygon(corners, fill=colour)
        ImageDraw.Draw(self._cover).polygon(corners, fill=255)

    def finished(self) -> tuple[Tensor, Tensor]:
        """Mask ``(1, H, W)`` and RGB pattern ``(3, H, W)``, black off the mask; both in [0, 1]."""
        cover = self._small(np.asarray(self._cover)[..., None])
        colours = self._small(np.asarray(self._colours))
        # The colours' mean is taken over the painted part of each pixel alone.
        pattern = (colours / cover.clamp_min(1e-6)).clamp(0.0, 1.0)
        return cover, pattern

    def _small(self, picture: NDArray[np.uint8]) -> Tensor:
        """Means over squares of _FINER x _FINER dots, ``(channels, H, W)`` in [0, 1]."""
        dots = picture.reshape(self._height, _FINER, self._width, _FINER, -1)
        means = dots.mean((1, 3), dtype=np.float64) / 255.0
        return torch.from_numpy(means.astype(np.float32)).permute(2, 0, 1).contiguous()


def _sunglasses(brush: _Brush) -> None:
    """Two rounded lenses in a thin bright frame, a bridge between them and a bow on each side."""
    rim = max(0.025, 0.6 * brush.pixel())
    brush.polygon([(0.06, 0.34), (0.94, 0.34), (0.94, 0.34 + rim), (0.06, 0.34 + rim)], FRAME)
    for x in (0.3, 0.7):
        brush.ellipse(x, 0.4, 0.16 + rim, 0.1 + rim, FRAME)
        brush.ellipse(x, 0.4, 0.16, 0.1, LENS)


def _lipstick(brush: _Brush) -> None:
    """A closed mouth: the upper lip has two peaks, a dark seam parts it from the lower one."""
    brush.ellipse(0.5, 0.79, 0.19, 0.07, LIPS)
    for x in (0.42, 0.58):
        brush.ellipse(x, 0.755, 0.11, 0.045, LIPS)
    seam = max(0.012, 0.25 * brush.pixel())
    brush.ellipse(0.5, 0.78, 0.17, seam, SEAM)


def _eyebrows(brush: _Brush) -> None:
    """Two bushy arcs, thick towards the nose."""
    thick = max(0.11, 1.2 * brush.pixel())
    for side in (-1, 1):
        inner, peak, outer = (0.5 + side * away for away in (0.09, 0.27, 0.4))
        brush.polygon(
            [
                (inner, 0.27),
                (peak, 0.22),
                (outer, 0.28),
                (peak, 0.22 + 0.8 * thick),
                (inner, 0.27 + thick),
            ],
            BROWN,
        )


THINGS: dict[str, Callable[[_Brush], None]] = {
    "sunglasses": _sunglasses,
    "lipstick": _lipstick,
    "eyebrows": _eyebrows,
}
"""What :func:`make` can paint."""


def _moved(layer: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A layer ``(C, H, W)`` once for each of n moves, int64 ``(n,)`` in pixels; 0 comes in."""
    height, width = layer.shape[1:]
    rows = (torch.arange(height) - down[:, None])[:, :, None]
    columns = (torch.arange(width) - right[:, None])[:, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    shown = layer[:, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return shown.transpose(0, 1) * inside[:, None]
