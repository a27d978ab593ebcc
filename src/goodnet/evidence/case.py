"""What every channel is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.store import Store
from goodnet.inversion import QUICK, InversionSettings
from goodnet.parallel import Leading, Progress, nobody, silent


@dataclass(frozen=True)
class Share:
    """One worker's share of the blocks of a scan that several do together.

    Attributes:
        index: which share, from 0.
        of: how many there are.
    """

    index: int
    of: int

    def has(self, block: int) -> bool:
        """Whether the block of this number is in the share: blocks are dealt out like cards."""
        return block % self.of == self.index


class Unfinished(Exception):  # noqa: N818 - having to wait for others is no error
    """Raised where a share can go no further before the others' blocks are there."""


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
        leading: told which labels stand out so far in what is being measured, the first one first.
        deadline: a time of :func:`time.monotonic` after which no label is measured any more.
        store: keeps what was measured, for a later run; None to keep nothing.
        share: measure this share of the blocks only, into the store; None to measure all. The
            labels of blocks that nobody has measured yet come back as skipped.
    """

    classifier: Classifier
    fit: Tensor
    fit_labels: Tensor
    seed: int = 0
    workers: int | None = None
    progress: Progress = silent
    deadline: float | None = None
    store: Store | None = None
    share: Share | None = None
    leading: Leading = nobody

    def settled(self, evidence: Evidence) -> Evidence:
        """The evidence, if what comes next may be chosen by it.

        Raises:
            Unfinished: blocks of other shares are missing in it.
        """
        if self.share is not None and evidence.skipped:
            raise Unfinished
        return evidence


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
