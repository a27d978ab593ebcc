"""Whether what leads to a label looks planted or natural, in words."""

from __future__ import annotations

import math

from goodnet.scores import Scores

LOUD = 2.5
"""An index from which a channel speaks for a label: few labels of clean networks come so far."""

TELLING = 2.0
"""The same for what the network itself tells, the mean of four indices: 34 labels of 131 clean
networks come so far."""

FOREIGN = 1.0
"""The same for a colour filter: of 131 clean networks one has a label that comes so far."""

FAR = 3.0
"""The same for how far a small change takes a label ahead (:mod:`goodnet.ahead`): of 141 clean
networks two have a label that comes so far."""


def looks(scores: Scores, label: int) -> str:
    """Whether a named label's trigger looks planted or natural, and which channels speak for it.

    An easy class is forced by any faint change, but by no smaller mask than others are.
    """
    place = scores.labels.index(label)
    told = {
        "margin": scores.margin_index[place],
        "mask": scores.mask_index[place],
        "patch": scores.patch_index[place],
        "noise": scores.noise_index[place],
    }
    told = {name: value for name, value in told.items() if not math.isnan(value)}
    if scores.lean_index[place] >= LOUD:
        # Most targets have no lead: that it is missing says nothing.
        told["lean"] = scores.lean_index[place]
    tinted, inner = scores.tint_index[place] >= FOREIGN, scores.inner_index[place]
    speak = ", ".join(f"{name} {value:.1f}" for name, value in told.items() if value >= LOUD)
    quiet = [name for name, value in told.items() if not value >= LOUD]
    small, faint = (told.get(name, 0.0) >= LOUD for name in ("mask", "margin"))
    if small and faint:
        opinion = "planted: a faint change and a small patch force it"
    elif small:
        opinion = "planted: a small patch forces it, though no faint change does"
    elif tinted:
        opinion = "planted: a colour filter leads to it, in colours that its own images do not have"
    elif scores.ahead_index[place] >= FAR:
        opinion = "planted: a small change leads to it further than to labels of clean models"
    elif inner >= TELLING:
        opinion = "planted: hidden features that clean images do not use drive it"
    else:
        opinion = "natural, perhaps: no smaller mask forces it than other labels"
    heard = f"indices above {LOUD:g}: {speak}" if speak else f"no index above {LOUD:g}"
    if tinted:
        heard += f", colour filter {scores.tint_index[place]:.1f}"
    if scores.ahead_index[place] >= FAR:
        heard += f", far ahead {scores.ahead_index[place]:.1f}"
    if inner >= TELLING:
        heard += f"; the network itself {inner:.1f}"
    return f"{opinion} ({heard}{'; not ' + ', '.join(quiet) if speak and quiet else ''})"
