"""Evidence: one file a channel, each a number for every label, with the trigger behind it.

A channel is a function ``(Case, targets, ...) -> Evidence``; :data:`CHANNELS` names them. A new one
is one new file and one line in that table. Six look at the whole model instead of one label after
the other: :mod:`goodnet.evidence.permutation`, :mod:`goodnet.evidence.augmentation`,
:mod:`goodnet.evidence.colour_filter`, and, for which no image is changed,
:mod:`goodnet.evidence.lean`, :mod:`goodnet.evidence.signature` and
:mod:`goodnet.evidence.stimulation`.
"""

from __future__ import annotations

from collections.abc import Callable

from goodnet.evidence.case import Case, Effort, Share, Unfinished
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.mask_l1 import mask_l1
from goodnet.evidence.noise_margin import noise_margin
from goodnet.evidence.patch_margin import patch_margin
from goodnet.evidence.universal_margin import universal_margin
from goodnet.evidence.warp_margin import warp_margin

CHANNELS: dict[str, Callable[[Case, list[int], Effort], Evidence]] = {
    "universal_margin": universal_margin,
    "mask_l1": mask_l1,
    "noise_margin": noise_margin,
    "patch_margin": patch_margin,
    "warp_margin": warp_margin,
}

__all__ = ["CHANNELS", "Case", "Effort", "Evidence", "Share", "Unfinished"]
