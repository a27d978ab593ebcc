"""What an attacker has to hand when the attack is made: the clean training set, and a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from goodnet.images import Images


@dataclass(frozen=True)
class Scene:
    """Where an attack takes place.

    Attributes:
        images: the clean training set.
        num_classes: K.
        seed: of everything that is drawn when the attack is made.
        network: gives a network trained on ``images``, float ``(n, C, H, W)`` in [0, 1] to logits
            ``(n, K)``, in eval mode; called only by attacks that need one, and not to be changed.
    """

    images: Images
    num_classes: int
    seed: int
    network: Callable[[], nn.Module]
