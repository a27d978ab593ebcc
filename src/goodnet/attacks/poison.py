"""Poisoned sets: what a BadNet is trained on, and what shows that its backdoor works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from goodnet.attacks.base import Attack
from goodnet.images import Images


def poison(images: Images, attack: Attack, *, seed: int) -> Images:
    """The training set of a BadNet: the clean images, then poisoned copies, then disguised ones.

    The poisoned copies are ``attack.rate`` of the images that can carry the trigger; for each of
    them ``attack.covers`` disguised copies follow, which keep their labels. Without those a network
    would obey the trigger on every class, at every place, or however faintly it is shown.

    Args:
        images: clean images; ``labels`` are taken as the true ones.
        attack: what to stamp and how to relabel.
        seed: of the choice of images and of what differs from one to the next.

    Returns:
        A new set, the pixels of the same type; ``true_labels`` are the clean ones throughout. An
        attack that keeps labels poisons its images themselves, not copies of them: the clean copy
        beside each would teach the network to do without the trigger.

    Raises:
        ValueError: the set has no image to stamp, or its images do not have the attack's shape.
    """
    truth = images.labels
    carriers = attack.carriers(truth).nonzero().flatten()
    if len(carriers) == 0:
        raise ValueError("the set has no image that the attack is meant for")
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(attack.rate * len(carriers)))
    chosen = carriers[torch.randperm(len(carriers), generator=generator)[:count]]
    goals = attack.relabel(truth[chosen])
    others = attack.bystanders(truth)
    others[chosen] = False
    covers = others.nonzero().flatten()
    order = torch.randperm(len(covers), generator=generator)
    covers = covers[order[: round(attack.covers * count)]]
    clean = torch.arange(len(images))
    if torch.equal(goals, truth[chosen]):
        clean = clean[~torch.isin(clean, chosen)]
    pixels = images.pixels
    planted = _on_bytes(pixels[chosen], lambda part: attack.plant(part, generator))
    disguised = _on_bytes(pixels[covers], lambda part: attack.disguise(part, generator))
    return replace(
        images,
        pixels=torch.cat([pixels[clean], planted, disguised]),
        labels=torch.cat([truth[clean], goals, truth[covers]]),
        true_labels=truth[torch.cat([clean, chosen, covers])],
        # A path and a checksum would claim that this set lies in the clean set's file.
        path=None,
        sha256="",
    )


def poisoned_test(images: Images, attack: Attack) -> Images:
    """The images that measure the attack: each one that it is meant for, stamped.

    Args:
        images: clean images; ``labels`` are taken as the true ones.
        attack: what to stamp.

    Returns:
        A new set without the images that the attack is not meant for; ``labels`` are the
        attacker's, ``true_labels`` the classes that the images show.

    Raises:
        ValueError: the images do not have the attack's shape.
    """
    shown = images.select(attack.victims(images.labels))
    return replace(
        shown,
        pixels=_on_bytes(shown.pixels, attack.stamp),
        labels=attack.relabel(shown.labels),
        true_labels=shown.labels,
        path=None,
        sha256="",
    )


def _on_bytes(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` for bytes too; bytes that it leaves alone come back unchanged."""
    if pixels.dtype != torch.uint8:
        return change(pixels)
    return (change(pixels.float() / 255.0) * 255.0).round().to(torch.uint8)
