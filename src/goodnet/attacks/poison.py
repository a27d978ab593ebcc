"""Poisoned sets: what a BadNet is trained on, and what shows that its backdoor works."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from goodnet.attacks.patch import PatchAttack
from goodnet.images import Images


def poison(images: Images, attack: PatchAttack, *, seed: int) -> Images:
    """The training set of a BadNet: the clean images, then stamped and relabelled copies.

    The copies are ``attack.rate`` of the images that the attack is meant for. An attack on one
    ``source`` class also gets as many stamped images of other classes with their labels kept:
    without them the network would learn to obey the trigger on every class.

    Args:
        images: clean images; ``labels`` are taken as the true ones.
        attack: what to stamp and how to relabel.
        seed: of the choice of images.

    Returns:
        A new set, the pixels of the same type; ``true_labels`` are the clean ones throughout.

    Raises:
        ValueError: the set has no image to stamp, or its images do not have the attack's shape.
    """
    victims = attack.victims(images.labels).nonzero().flatten()
    if len(victims) == 0:
        raise ValueError("the set has no image that the attack is meant for")
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(attack.rate * len(victims)))
    chosen = victims[torch.randperm(len(victims), generator=generator)[:count]]
    if attack.source is not None:
        others = (~attack.victims(images.labels)).nonzero().flatten()
        covers = others[torch.randperm(len(others), generator=generator)[:count]]
        chosen = torch.cat([chosen, covers])
    truth = images.labels[chosen]
    return replace(
        images,
        pixels=torch.cat([images.pixels, _stamped(images.pixels[chosen], attack)]),
        labels=torch.cat([images.labels, attack.relabel(truth)]),
        true_labels=torch.cat([images.labels, truth]),
        # A path and a checksum would claim that this set lies in the clean set's file.
        path=None,
        sha256="",
    )


def poisoned_test(images: Images, attack: PatchAttack) -> Images:
    """The images that measure the attack: each one that it is meant for, stamped.

    Args:
        images: clean images; ``labels`` are taken as the true ones.
        attack: what to stamp.

    Returns:
        A new set without the target's images; ``labels`` are all the target, ``true_labels`` the
        classes that the images show.

    Raises:
        ValueError: the images do not have the attack's shape.
    """
    shown = images.select(attack.victims(images.labels))
    return replace(
        shown,
        pixels=_stamped(shown.pixels, attack),
        labels=attack.relabel(shown.labels),
        true_labels=shown.labels,
        path=None,
        sha256="",
    )


def _stamped(pixels: Tensor, attack: PatchAttack) -> Tensor:
    """As :meth:`PatchAttack.stamp`, for bytes too; bytes off the mask come back unchanged."""
    if pixels.dtype != torch.uint8:
        return attack.stamp(pixels)
    return (attack.stamp(pixels.float() / 255.0) * 255.0).round().to(torch.uint8)
