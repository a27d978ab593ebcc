"""What every channel is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.store import Store
from goodnet.inversion import QUICK, InversionSettings
from goodnet.parallel import Progress, silent


@dataclass(frozen=True)
class Case:
    """The classifier under suspicion and the clean images, split for the scan.

    Attributes:
        classifier: the network.
        fit: float32 ``(n, C, H, W)`` in [0, 1]: the images that triggers are fitted to.
        fit_labels: int64 ``(n,)``.
        seed: of everything random.
        workers: threads, or None for one a core.
        progress: told how many labels are done.
        deadline: a time of :func:`time.monotonic` after which no label is measured any more.
        store: keeps what was measured, for a later run; None to keep nothing.
    """

    classifier: Classifier
    fit: Tensor
    fit_labels: Tensor
    seed: int = 0
    workers: int | None = None
    progress: Progress = silent
    deadline: float | None = None
    store: Store | None = None


@dataclass(frozen=True)
class Effort:
    """How much a channel may spend on a label.

    Attributes:
        images: how many of the images each label is tried on.
        steps: gradient steps per budget (universal margin).
        budgets: L2 budgets as shares of the square root of the number of values in an image: .045
            is a change of .045 in every pixel and channel if it were spread evenly.
        inversion: the schedule of the mask inversion.
        purpose: what the progress callback is told.
        keep_triggers: whether the triggers are wanted besides the numbers; those of thousands of
            labels take memory.
    """

    images: int = 24
    steps: int = 16
    budgets: tuple[float, ...] = (0.0225, 0.045, 0.09)
    inversion: InversionSettings = QUICK
    purpose: str = "measuring"
    keep_triggers: bool = True


Channel = Callable[[Case, list[int], Effort], Evidence]
