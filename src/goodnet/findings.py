"""What a verdict is made from, and what it is: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from goodnet.reports import TestResult, Verdict
from goodnet.scores import Scores
from goodnet.tables import SURE


@dataclass(frozen=True)
class Findings:
    """What a scan measured, as far as the verdict looks at it.

    Attributes:
        scores: of the labels.
        num_classes: K, of which some labels may not have been measured.
        images: clean images that the scan could use.
        permutation: the statistic of the permutation, NaN where it could not be taken.
        mapping: class -> label of that permutation.
        ranked: whether the labels are leaders of a ranking, with controls.
        preferred: label -> margin under the change that favours it most; empty if not measured.
        tinted: label -> how far a colour filter leads to it, corroborated by what clean images lean
            to (:func:`goodnet.scores.corroborated`); empty if not measured.
        accuracy: share of the clean images that the model gets right.
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

    @property
    def sure(self) -> bool:
        """Whether the model is right so often that it is held against models like that."""
        return self.accuracy >= SURE

    @property
    def tested(self) -> int:
        """How many labels could have been the highest: all, or those that the user asked for."""
        return self.num_classes if self.ranked else len(self.scores.labels)


@dataclass(frozen=True)
class Decision:
    """The verdict and what it rests on.

    Attributes:
        verdict: "clean" here means that nothing was found; :func:`doubts` may yet overrule it.
        p_value: of the model; None while uncalibrated.
        tests: behind it.
        targets: labels that are named, the strongest first.
        label_p: label -> p-value of its score among single labels of clean models.
        mapping: of a permutation that was found.
        calibration: what the p-value rests on, or why there is none.
        reasons: in words.
    """

    verdict: Verdict
    p_value: float | None
    tests: list[TestResult]
    targets: list[int]
    label_p: dict[int, float]
    mapping: dict[int, int]
    calibration: str
    reasons: list[str]
