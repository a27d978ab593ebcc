"""Every attack by its name. A new one is one new file and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from goodnet.attacks import (
    adaptive_blend,
    adaptive_patch,
    all_to_all,
    blended,
    dynamic,
    low_frequency,
    painted,
    patch,
    quantisation,
    several,
    sinusoidal,
    source_specific,
    tint,
    trojan,
    warping,
)
from goodnet.attacks.base import Attack
from goodnet.attacks.scene import Scene

Option = str | int | float | bool
"""What an option of an attack can be."""

ATTACKS: dict[str, Callable[..., Attack]] = {
    "patch": patch.make,
    "several-targets": several.make_several_targets,
    "several-triggers": several.make_several_triggers,
    "all-to-all": all_to_all.make,
    "blended": blended.make,
    "sinusoidal": sinusoidal.make,
    "trojan": trojan.make,
    "warping": warping.make,
    "dynamic": dynamic.make,
    "quantisation": quantisation.make,
    "low-frequency": low_frequency.make,
    "tint": tint.make,
    "source-specific": source_specific.make,
    "adaptive-blend": adaptive_blend.make,
    "adaptive-patch": adaptive_patch.make,
    "painted": painted.make,
}
"""Name -> its ``make(scene, *, target, rate, ...)``."""


def make_attack(name: str, scene: Scene, *, target: int, options: Mapping[str, Option]) -> Attack:
    """An attack for a training set.

    Args:
        name: one of :data:`ATTACKS`.
        scene: the training set, the number of classes, the seed.
        target: the label that stamped images get (the first one of several); with ``all-to-all``
            it says nothing.
        options: further arguments of the attack's ``make``, ``rate`` among them.

    Raises:
        ValueError: the name, an option or a value is none that the attack knows.
    """
    if name not in ATTACKS:
        raise ValueError(f"the attack {name!r} is none of {', '.join(ATTACKS)}")
    if not 0 <= target < scene.num_classes:
        raise ValueError(f"target {target} is none of the {scene.num_classes} labels")
    known = option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(known)}")
    try:
        return ATTACKS[name](scene, target=target, **options)
    except TypeError as error:
        raise ValueError(f"an option of {name} has a value of the wrong type: {error}") from error


def option_names(name: str) -> tuple[str, ...]:
    """The options of an attack, as :func:`make_attack` takes them."""
    parameters = inspect.signature(ATTACKS[name]).parameters
    return tuple(option for option in parameters if option not in ("scene", "target"))
