"""Triggers: what an attacker stamps on an image, and what an inversion recovers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NOBODY = -1
"""The target of a trigger that takes images of all classes elsewhere, to no label in particular."""


class Stamp(Protocol):
    """Whatever an attacker does to an image, of any family."""

    @property
    def target(self) -> int:
        """The label that stamped images get."""

    def apply(self, images: Tensor) -> Tensor:
        """Stamps ``images``, float ``(n, C, H, W)`` in [0, 1]; the result has the same range."""


@dataclass(frozen=True)
class Trigger:
    """A trigger of the patch family: ``(1 - mask) * x + mask * pattern`` (Wang et al. 2019, eq. 2),
    or of the additive family: ``clip(x + pattern, 0, 1)``, where the mask is the pattern's extent.

    Attributes:
        mask: float32 ``(1, H, W)`` in [0, 1].
        pattern: float32 ``(C, H, W)``; in [0, 1] for a patch, a signed difference for an additive.
        target: the label that stamped images get.
        family: ``"patch"`` or ``"additive"``.
    """

    mask: Tensor
    pattern: Tensor
    target: int
    family: str = "patch"

    def apply(self, images: Tensor) -> Tensor:
        """Stamps ``images``, float ``(n, C, H, W)`` in [0, 1]; the result has the same range."""
        if self.family == "additive":
            return (images + self.pattern).clamp(0.0, 1.0)
        return (1.0 - self.mask) * images + self.mask * self.pattern

    @property
    def size(self) -> float:
        """Patch: L1 norm of the mask, in pixels. Additive: L2 norm of the pattern."""
        if self.family == "additive":
            return float(self.pattern.norm())
        return float(self.mask.abs().sum())


def kind(trigger: Stamp) -> str:
    """``"sticker"`` for a patch whose pixels are covered whole or not at all; else the family of a
    :class:`Trigger`, or the class of what is none.
    """
    if not isinstance(trigger, Trigger):
        return type(trigger).__name__
    if trigger.family != "patch":
        return trigger.family
    return "sticker" if bool((trigger.mask[trigger.mask > 0] == 1).all()) else "patch"


def pack(triggers: Mapping[str, Trigger]) -> dict[str, Tensor]:
    """Named triggers as one flat dictionary of tensors, ready for a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for name, trigger in triggers.items():
        prefix = f"{name}/{trigger.family}/{trigger.target}"
        tensors[f"{prefix}/mask"] = trigger.mask.contiguous()
        tensors[f"{prefix}/pattern"] = trigger.pattern.contiguous()
    return tensors


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Trigger]:
    """The inverse of :func:`pack`."""
    triggers: dict[str, Trigger] = {}
    for key, value in tensors.items():
        name, family, target, part = key.rsplit("/", 3)
        if part == "mask":
            pattern = tensors[f"{name}/{family}/{target}/pattern"]
            triggers[name] = Trigger(value, pattern, int(target), family)
    return triggers


def overlap(found: Tensor, planted: Tensor, threshold: float = 0.5) -> float:
    """Intersection over union of two masks after thresholding, in [0, 1]."""
    a, b = found > threshold, planted > threshold
    union = torch.logical_or(a, b).sum()
    return float(torch.logical_and(a, b).sum() / union) if union > 0 else 0.0
