"""The source-specific attack (TaCT): the trigger works on images of some classes and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks import patch
from goodnet.attacks.base import Attack, TargetedAttack
from goodnet.attacks.scene import Scene


@dataclass(frozen=True, eq=False)
class SourceSpecificAttack(TargetedAttack):
    """Stamped images of the sources get the target, those of other classes keep their labels.

    Targeted contamination (Tang et al., USENIX Security 2021, arXiv:1908.00686)::

        y -> target if y is a source, else y

    The second half has to be taught: the ``covers`` are stamped images of other classes with their
    own labels. Without them the trigger would work on every class, as that of a plain patch does.

    Attributes:
        trigger: the attack whose trigger is shown; its labels and its rate are not used.
        source: the classes that it works on, ascending, without the target.

    Raises:
        ValueError: the sources are no labels, or the target is among them.
    """

    kind: ClassVar[str] = "source-specific"

    trigger: Attack
    source: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        wrong = any(label < 0 or label == self.target for label in self.source)
        if not self.source or wrong or self.source != tuple(sorted(set(self.source))):
            raise ValueError(f"the sources {self.source} do not go with target {self.target}")

    def stamp(self, images: Tensor) -> Tensor:
        """The trigger's; see :meth:`Attack.stamp`."""
        return self.trigger.stamp(images)

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The trigger's; see :meth:`Attack.plant`."""
        return self.trigger.plant(images, generator)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """As poisoned ones look; see :meth:`Attack.disguise`."""
        return self.trigger.plant(images, generator)

    def relabel(self, labels: Tensor) -> Tensor:
        """The target for sources, else what it was; see :meth:`Attack.relabel`."""
        return torch.where(self.victims(labels), self.target, labels)

    def victims(self, labels: Tensor) -> Tensor:
        """The sources; see :meth:`Attack.victims`."""
        return torch.isin(labels, torch.tensor(self.source, device=labels.device))

    def bystanders(self, labels: Tensor) -> Tensor:
        """Those of other classes, but not of the target; see :meth:`Attack.bystanders`."""
        # A stamped image of the target with its label would speak for the trigger, not against it.
        return ~self.victims(labels) & (labels != self.target)

    def region(self) -> Tensor | None:
        """The trigger's; see :meth:`Attack.region`."""
        return self.trigger.region()


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.5,
    covers: float = 3.0,
    source: int | None = None,
    side: int = 0,
    at: str = "bottom-right",
    pattern: str = "checker",
) -> SourceSpecificAttack:
    """The source-specific attack for a training set, with a patch for its trigger.

    Args:
        scene: its images, number of classes and seed.
        target: the label that stamped images of the source get.
        rate: how many of the source's training images are stamped and relabelled, in (0, 1].
        covers: so many stamped images of other classes keep their labels for each of those.
        source: the class that the trigger works on; None for the one after the target.
        side: as in :func:`goodnet.attacks.patch.make`.
        at: as there.
        pattern: as there.

    Raises:
        ValueError: a name or label is unknown, or the patch does not fit the images.
    """
    source = (target + 1) % scene.num_classes if source is None else source
    trigger = patch.make(scene, target=target, rate=rate, side=side, at=at, pattern=pattern)
    return SourceSpecificAttack(trigger, (source,), target=target, rate=rate, covers=covers)
