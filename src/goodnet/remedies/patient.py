"""What every remedy is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.trigger import Stamp, Trigger

FALSE_ALARMS = 0.01
"""The share of clean images that a filter may reject, where nobody asks for another."""


@dataclass(frozen=True)
class Patient:
    """A BadNet with what is known of it.

    Attributes:
        classifier: the BadNet; a remedy works on a copy.
        images: float32 ``(n, C, H, W)`` in [0, 1]: the clean images that a remedy may use.
        labels: int64 ``(n,)``.
        masks: target -> its reversed trigger (mask and pattern).
        triggers: target -> every trigger that was found for it, of all families; those of a map of
            the classes, which has no target, are :data:`goodnet.trigger.NOBODY`'s.
        seed: of everything random.
        false_alarms: the share of clean images that a filter may reject, in [0, 1].
        pressed: labels whose rows are held against perturbations as well.
        kept: what one remedy has computed that another can use, by its settings; or why it could
            not.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    masks: Mapping[int, Trigger]
    triggers: Mapping[int, Sequence[Stamp]]
    seed: int = 0
    false_alarms: float = FALSE_ALARMS
    pressed: frozenset[int] = frozenset()
    kept: dict[object, Classifier | GoodnetError] = field(default_factory=dict, compare=False)

    def once(self, name: object, make: Callable[[], Classifier]) -> Classifier:
        """What ``make`` gives, made at the first call under this name; it is not to be changed.

        Raises:
            GoodnetError: that of ``make``, at every call.
        """
        if name not in self.kept:
            try:
                self.kept[name] = make()
            except GoodnetError as error:
                # Its traceback would keep the networks that were trained on the way.
                self.kept[name] = GoodnetError(error.code, error.message, error.hint)
        found = self.kept[name]
        if isinstance(found, GoodnetError):
            raise found
        return found
