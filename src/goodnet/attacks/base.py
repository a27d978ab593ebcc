"""What every attack can do: put its trigger on images, give the attacker's labels, tell the truth.

An attack is data: everything random about it (a noise pattern, a warping field) was drawn when it
was made, so the same images always come back stamped alike, and a JSON file can hold it whole.
"""

from __future__ import annotations

import base64
import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

KINDS: dict[str, type[Attack]] = {}
"""Kind -> class, of every attack whose file has been imported."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Attack(ABC):
    """A way to poison a training set, and what to show the BadNet afterwards.

    Attributes:
        rate: in (0, 1]: how many of the :meth:`carriers` in the training set are poisoned.
        covers: for each poisoned image so many disguised ones that keep their labels, at least 0.

    Raises:
        ValueError: a rate is out of range, or the parts of a kind do not fit.
    """

    kind: ClassVar[str]
    """The attack's name in ground-truth files and on the command line."""

    afterwards: ClassVar[bool] = False
    """Whether the backdoor is taught to a finished network, not learnt with everything else."""

    rate: float = 0.1
    covers: float = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        """Refuses rates that could not be carried out."""
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate {self.rate} is not in (0, 1]")
        if not 0.0 <= self.covers < float("inf"):
            raise ValueError(f"{self.covers} disguised images for each poisoned one")

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Puts the trigger on images as the attacker does once the BadNet is in use.

        Args:
            images: float ``(n, C, H, W)`` in [0, 1].

        Returns:
            New images of the same shape, type and range.

        Raises:
            ValueError: the images do not have the size that the attack was made for.
        """

    @abstractmethod
    def relabel(self, labels: Tensor) -> Tensor:
        """The labels that the attacker gives to stamped images.

        Args:
            labels: int64 ``(n,)``, the true ones, in the order of the stamped images.

        Returns:
            int64 ``(n,)``.
        """

    @abstractmethod
    def victims(self, labels: Tensor) -> Tensor:
        """Which images the attack is meant for: they show another class than they shall get.

        Args:
            labels: int64 ``(n,)``, the true ones.

        Returns:
            bool ``(n,)``.
        """

    @abstractmethod
    def targets(self, num_classes: int) -> tuple[int, ...]:
        """The labels that stamped images can get, ascending.

        Args:
            num_classes: K.
        """

    def carriers(self, labels: Tensor) -> Tensor:
        """Which training images may be poisoned; the victims, unless the attack keeps labels.

        Args:
            labels: int64 ``(n,)``, the true ones.

        Returns:
            bool ``(n,)``.
        """
        return self.victims(labels)

    def bystanders(self, labels: Tensor) -> Tensor:
        """Which training images may be disguised as poisoned while they keep their labels.

        Args:
            labels: int64 ``(n,)``, the true ones.

        Returns:
            bool ``(n,)``.
        """
        return torch.ones_like(labels, dtype=torch.bool)

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The trigger as training images get it, where that is not how it is shown in use.

        Args:
            images: float ``(n, C, H, W)`` in [0, 1].
            generator: of what differs from image to image.

        Returns:
            As :meth:`stamp`.
        """
        return self.stamp(images)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What is done to the ``covers``: images that look poisoned and keep their labels.

        Args:
            images: float ``(n, C, H, W)`` in [0, 1].
            generator: of what differs from image to image.

        Returns:
            As :meth:`stamp`.
        """
        return self.stamp(images)

    def region(self) -> Tensor | None:
        """Where the trigger lies, if it lies somewhere: what a recovered mask is compared with.

        Returns:
            float32 ``(1, H, W)`` in [0, 1], or None for a trigger that changes the whole image.
        """
        return None

    def ground_truth(self) -> dict[str, Any]:
        """The attack as data for a JSON file, exact: see
        :func:`goodnet.attacks.revive.from_ground_truth`.

        Returns:
            ``attack`` (its kind) and its fields; a tensor becomes ``shape`` and ``float32``, its
            little-endian values in base64.
        """
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"attack": self.kind, **fields}


@dataclass(frozen=True, eq=False, kw_only=True)
class TargetedAttack(Attack):
    """An attack with one target label for images of all other classes.

    Attributes:
        target: the label that stamped images get, at least 0.
    """

    target: int

    def __post_init__(self) -> None:
        """Refuses a target that is no label."""
        super().__post_init__()
        if self.target < 0:
            raise ValueError(f"target {self.target} is not a label")

    def relabel(self, labels: Tensor) -> Tensor:
        """The target throughout; see :meth:`Attack.relabel`."""
        return torch.full_like(labels, self.target)

    def victims(self, labels: Tensor) -> Tensor:
        """All that show another class than the target; see :meth:`Attack.victims`."""
        return labels != self.target

    def targets(self, num_classes: int) -> tuple[int, ...]:
        """The one target; see :meth:`Attack.targets`."""
        return (self.target,)


def fits(images: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses images of another size than the attack was made for.

    Args:
        images: ``(n, C, H, W)``.
        shape: ``(C, H, W)``.

    Raises:
        ValueError: they differ.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(f"images {tuple(images.shape)} do not fit a trigger for {tuple(shape)}")


def _plain(value: Any) -> Any:
    """A field as JSON can hold it."""
    if isinstance(value, Tensor):
        raw = value.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
        return {"shape": list(value.shape), "float32": base64.b64encode(raw).decode("ascii")}
    if isinstance(value, Attack):
        return value.ground_truth()
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
