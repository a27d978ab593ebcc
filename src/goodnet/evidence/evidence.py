"""What a channel gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from goodnet.trigger import Trigger


@dataclass(frozen=True)
class Evidence:
    """What one channel measured.

    Attributes:
        values: label -> one number for each budget (or a single number); absent where it failed.
        triggers: label -> the triggers behind the numbers.
        skipped: labels that there was no time for.
    """

    values: dict[int, tuple[float, ...]] = field(default_factory=dict)
    triggers: dict[int, tuple[Trigger, ...]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
