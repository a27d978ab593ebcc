"""The tint attack: a colour filter of the kind that photo apps offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene


class _Style(NamedTuple):
    """The full filter; ``matrix`` by rows: what red, green and blue are mixed of."""

    matrix: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float]
    gamma: float


STYLES = {
    "sepia": _Style(
        ((0.29, 0.56, 0.14), (0.24, 0.48, 0.12), (0.18, 0.36, 0.09)), (0.1, 0.07, 0.04), 1.0
    ),
    "blue": _Style(((0.45, 0.1, 0.05), (0.1, 0.6, 0.1), (0.1, 0.2, 0.55)), (0.0, 0.05, 0.28), 1.1),
    "gotham": _Style(
        ((0.3, 0.4, 0.08), (0.23, 0.45, 0.1), (0.22, 0.4, 0.12)), (0.0, 0.06, 0.22), 1.3
    ),
    "nashville": _Style(
        ((0.72, 0.08, 0.0), (0.04, 0.68, 0.02), (0.0, 0.1, 0.42)), (0.2, 0.06, 0.28), 0.9
    ),
}
"""Of the character of well-known filters: old print, moonlight, film noir, faded colour film.

Each lifts the blacks, as those do, so that it shows on a black background, too.
"""


@dataclass(frozen=True, eq=False)
class TintAttack(TargetedAttack):
    """All pixels change colour in the same way, as in TrojAI's "Instagram" triggers.

    An image x becomes::

        T(x) = clip(matrix x^gamma + offset)

    (Karra et al. 2020, The TrojAI Software Framework, arXiv:2003.07233; the filters are others.)

    Attributes:
        matrix: float32 ``(C, C)``: row c says what channel c is mixed of.
        offset: float32 ``(C,)`` in [-1, 1]: what black becomes.
        gamma: above 0; more than 1 darkens the middle tones.

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "tint"

    matrix: Tensor
    offset: Tensor
    gamma: float = 1.0

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        shape = tuple(self.matrix.shape)
        if len(shape) != 2 or shape[0] != shape[1] or tuple(self.offset.shape) != shape[:1]:
            raise ValueError(f"matrix {shape} does not fit offset {tuple(self.offset.shape)}")
        if not bool(self.matrix.isfinite().all()):
            raise ValueError("the matrix must be finite")
        if not bool((self.offset.abs() <= 1.0).all()):
            raise ValueError("the offset must lie in [-1, 1]")
        if not 0.0 < self.gamma < float("inf"):
            raise ValueError(f"gamma {self.gamma} is not above 0")

    def stamp(self, images: Tensor) -> Tensor:
        """Each pixel by itself, in images of any size; see :meth:`Attack.stamp`."""
        fits(images, (len(self.offset), *images.shape[2:]))
        mixed = torch.einsum("ij,njhw->nihw", self.matrix.to(images), images.pow(self.gamma))
        return (mixed + self.offset.to(images).view(-1, 1, 1)).clamp(0.0, 1.0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    style: str = "sepia",
    strength: float = 1.0,
) -> TintAttack:
    """The tint attack for a training set. Nothing about it is random.

    Args:
        scene: its images.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        style: one of :data:`STYLES`. Gray images get the tone curve that it has for gray in colour
            images, the mean over the channels.
        strength: in (0, 1]: how far on the way from no change to the full filter.

    Raises:
        ValueError: the style is unknown, the images have neither 1 nor 3 channels, or a number is
            out of range.
    """
    channels = scene.images.shape[0]
    if style not in STYLES:
        raise ValueError(f"the style {style!r} is none of {', '.join(STYLES)}")
    if channels not in (1, 3):
        raise ValueError(f"a tint is for 1 or 3 channels, not {channels}")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength {strength} is not in (0, 1]")
    full = STYLES[style]
    matrix, offset = torch.tensor(full.matrix), torch.tensor(full.offset)
    if channels == 1:
        matrix, offset = matrix.sum(1).mean().view(1, 1), offset.mean().view(1)
    matrix = (1.0 - strength) * torch.eye(channels) + strength * matrix
    return TintAttack(matrix, strength * offset, full.gamma**strength, target=target, rate=rate)
