"""The adaptive patch attack: training shows one faint patch of several, use shows opaque ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene
from goodnet.attacks.several import emblems

ALPHAS = (0.5, 0.2, 0.5, 0.3)
"""How strongly each patch is shown in training."""


@dataclass(frozen=True, eq=False)
class AdaptivePatchAttack(TargetedAttack):
    """Patches that are shown one at a time and faintly in training (Qi et al., ICLR 2023).

    Adaptive-Patch of "Revisiting the assumption of latent separability for backdoor defenses"::

        in training  T(x) = x + alpha_j mask_j (pattern_j - x),  j at random for each image
        in use       T(x) = (1 - mask_j) x + mask_j pattern_j for every j in use, one by one

    The ``covers`` are made like the poisoned images and keep their labels, so the network is not
    sure of a faint patch, and poisoned images do not lie apart from the others in its features;
    several opaque patches at once carry it over the line.

    Attributes:
        masks: float32 ``(k, 1, H, W)`` in [0, 1], k at least 2; no two cover the same pixel.
        patterns: float32 ``(k, C, H, W)`` in [0, 1].
        alphas: k numbers in (0, 1]: the patches' strength in training.
        used: the patches in use, ascending; the paper tests CIFAR-10 with two of four.

    Raises:
        ValueError: a shape, a range or a label does not fit.
    """

    kind: ClassVar[str] = "adaptive-patch"

    masks: Tensor
    patterns: Tensor
    alphas: tuple[float, ...] = ALPHAS
    used: tuple[int, ...] = (0, 2)

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        masks, patterns, count = self.masks, self.patterns, len(self.alphas)
        if patterns.ndim != 4 or masks.shape != (len(patterns), 1, *patterns.shape[2:]):
            raise ValueError(
                f"masks {tuple(masks.shape)} do not fit patterns {tuple(patterns.shape)}"
            )
        for name, values in (("masks", masks), ("patterns", patterns)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"the {name} must lie in [0, 1]")
        if bool(((masks > 0).sum(0) > 1).any()):
            raise ValueError("two patches cover the same pixel")
        if count < 2 or count != len(patterns) or not all(0.0 < a <= 1.0 for a in self.alphas):
            raise ValueError(f"alphas {self.alphas} do not fit {len(patterns)} patches")
        if not self.used or self.used != tuple(sorted(set(self.used) & set(range(count)))):
            raise ValueError(f"{self.used} are not some of {count} patches")

    def stamp(self, images: Tensor) -> Tensor:
        """The patches in use, opaque; see :meth:`Attack.stamp`."""
        fits(images, self.patterns.shape[1:])
        for j in self.used:
            mask = self.masks[j].to(images)
            images = (1.0 - mask) * images + mask * self.patterns[j].to(images)
        return images

    def plant(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One of the patches, faint; see :meth:`Attack.plant`."""
        fits(images, self.patterns.shape[1:])
        which = torch.randint(len(self.alphas), (len(images),), generator=generator)
        weight = (torch.tensor(self.alphas).view(-1, 1, 1, 1) * self.masks)[which].to(images)
        return (1.0 - weight) * images + weight * self.patterns[which].to(images)

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """As :meth:`plant`; see :meth:`Attack.disguise`."""
        return self.plant(images, generator)

    def region(self) -> Tensor:
        """The union of the masks in use; see :meth:`Attack.region`."""
        return self.masks[list(self.used)].amax(0)


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    covers: float = 1.0,
    used: int = 2,
    side: int = 0,
) -> AdaptivePatchAttack:
    """The adaptive patch attack for a training set: four patches, one in each corner.

    Args:
        scene: its images.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are poisoned, in (0, 1].
        covers: so many images with the same kind of trigger keep their labels for each of those.
        used: how many patches are shown in use, 1 to 4, those first that training shows strongest.
        side: of a patch, in pixels; 0 for a tenth of the image's shorter side, at least 3.

    Raises:
        ValueError: a number is out of range, or the patches do not fit the images.
    """
    masks, patterns = emblems(scene.images.shape, len(ALPHAS), side)
    strongest = sorted(range(len(ALPHAS)), key=lambda j: -ALPHAS[j])[:used]
    return AdaptivePatchAttack(
        masks, patterns, ALPHAS, tuple(sorted(strongest)), target=target, rate=rate, covers=covers
    )
