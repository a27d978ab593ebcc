"""What a verdict is made from, and what it is: plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from goodnet.reports import Family, TestResult, Verdict
from goodnet.scores import Scores
from goodnet.tables import SURE


@dataclass(frozen=True)
class Findings:
    """What a scan measured, as far as the verdict looks at it.

    Attributes:
        scores: of the labels.
        num_classes: K, of which some labels may not have been measured.
        images: clean images that the scan had.
        permutation: the statistic of the permutation, NaN where it could not be taken.
        mapping: class -> label of that permutation.
        ranked: whether the labels are leaders of a ranking, with controls.
        preferred: label -> margin under the change that favours it most; empty if not measured.
        tinted: label -> how far a colour filter leads to it, corroborated by what clean images lean
            to (:func:`goodnet.scores.corroborated`); empty if not measured.
        accuracy: share of the clean images that the model gets right.
        wanted: how many labels were to be measured, if there was not time for all; 0 for those that
            were.
        controls: of ranked labels, how many random ones tell what is usual; None if they are no
            fewer than there should be.
        inner: label -> what the network itself tells of it (:mod:`goodnet.inner`), of all labels.
        family: of networks (:func:`goodnet.family.family`).
        apart: makes the scores anew, with labels that are known already set apart from what is
            usual (:func:`goodnet.scores.combine`); None where nobody can.
    """

    scores: Scores
    num_classes: int
    images: int
    permutation: float = math.nan
    mapping: Mapping[int, int] = field(default_factory=dict)
    preferred: Mapping[int, float] = field(default_factory=dict)
    tinted: Mapping[int, float] = field(default_factory=dict)
    ranked: bool = False
    accuracy: float = 1.0
    wanted: int = 0
    controls: int | None = None
    inner: Mapping[int, float] = field(default_factory=dict)
    family: Family = "other"
    apart: Callable[[Collection[int]], Scores] | None = None

    @property
    def right(self) -> int:
        """How many of the images the model gets right."""
        return round(self.accuracy * self.images)

    @property
    def sure(self) -> bool:
        """Whether the model is right so often that it is held against models like that."""
        return self.accuracy >= SURE

    @property
    def compared(self) -> int:
        """How many labels were meant to be held against each other: what the score is made of, and
        its reference, hang on that, and not on how many there was time for.
        """
        return self.num_classes if self.ranked else self.wanted or len(self.scores.labels)


@dataclass(frozen=True)
class Decision:
    """The verdict and what it rests on.

    Attributes:
        verdict: "clean" here means that nothing was found; :func:`doubts` may yet overrule it.
        p_value: of the model; None while uncalibrated.
        tests: behind it.
        targets: labels that are named, the strongest first.
        suspects: labels that the tests which speak point to, where that is not enough to name them.
        label_p: label -> p-value of its score among single labels of clean models.
        mapping: of a permutation that was found.
        calibration: what the p-value rests on, or why there is none.
        reasons: in words.
    """

    verdict: Verdict
    p_value: float | None
    tests: list[TestResult]
    targets: list[int]
    suspects: list[int]
    label_p: dict[int, float]
    mapping: dict[int, int]
    calibration: str
    reasons: list[str]
