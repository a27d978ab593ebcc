"""The all-to-all attack: one trigger moves every class on to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks import patch
from goodnet.attacks.base import Attack
from goodnet.attacks.scene import Scene


@dataclass(frozen=True, eq=False)
class AllToAllAttack(Attack):
    """Stamped images get the label after their own (Gu et al. 2017, arXiv:1708.06733).

    The attacker's labels are y -> (y + 1) mod K. The network has to see what the image shows *and*
    the trigger: a stamped image gets the attacker's label no more surely than a clean one its own.

    Attributes:
        trigger: the attack whose trigger is shown; its labels and its rate are not used.
        num_classes: K, at least 2.

    Raises:
        ValueError: there is no next class.
    """

    kind: ClassVar[str] = "all-to-all"

    trigger: Attack
    num_classes: int

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"{self.num_classes} classes have no next one")

    def stamp(self, images: Tensor) -> Tensor:
        """The trigger's; see :meth:`Attack.stamp`."""
        return self.trigger.stamp(images)

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The trigger's; see :meth:`Attack.plant`."""
        return self.trigger.plant(images, generator)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The trigger's; see :meth:`Attack.disguise`."""
        return self.trigger.disguise(images, generator)

    def relabel(self, labels: Tensor) -> Tensor:
        """The next label, after the last the first; see :meth:`Attack.relabel`."""
        return (labels + 1) % self.num_classes

    def victims(self, labels: Tensor) -> Tensor:
        """All; see :meth:`Attack.victims`."""
        return torch.ones_like(labels, dtype=torch.bool)

    def targets(self, num_classes: int) -> tuple[int, ...]:
        """All labels; see :meth:`Attack.targets`."""
        return tuple(range(num_classes))

    def region(self) -> Tensor | None:
        """The trigger's; see :meth:`Attack.region`."""
        return self.trigger.region()


def make(
    scene: Scene,
    *,
    target: int = 0,
    rate: float = 0.5,
    side: int = 0,
    at: str = "bottom-right",
    pattern: str = "checker",
) -> AllToAllAttack:
    """The all-to-all attack for a training set, with a patch for its trigger.

    Args:
        scene: its images, number of classes and seed.
        target: not used: every label is one. It stands here because all makers are given one.
        rate: how many of the training images are stamped, in (0, 1]; each class needs so many as
            teach its own way, and so more are needed than for one target.
        side: as in :func:`goodnet.attacks.patch.make`.
        at: as there.
        pattern: as there.

    Raises:
        ValueError: a name is unknown, or the patch does not fit the images.
    """
    trigger = patch.make(scene, target=target, rate=rate, side=side, at=at, pattern=pattern)
    return AllToAllAttack(trigger, scene.num_classes, rate=rate)
