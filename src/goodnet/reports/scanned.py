"""What a scan tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, PrivateAttr

from goodnet.images import Images
from goodnet.reports.base import Data, DataRef, ModelRef, Name, Proportion
from goodnet.trigger import Trigger

Verdict = Literal["backdoored", "suspicious", "clean", "inconclusive"]


class LabelEvidence(Data):
    """What was measured for one label.

    Attributes:
        label: the class number.
        rank: 1 for the label with the strongest evidence.
        margin: mean logit margin that a universal perturbation of the reference L2 budget reaches.
        margins: the same for every budget that was tried (key: budget as text).
        margin_index: robust z of the margins against the other labels (one-sided, larger is worse).
        mask_l1: L1 norm of the smallest mask in pixels; None if the mask was not inverted.
        mask_index: the same robust z for log ``mask_l1`` (smaller masks give larger values).
        noise_margin: logit margin that an image made from noise reaches, without clean images.
        noise_index: the same robust z for its logarithm.
        warps: mean logit margin that a smooth warp of the image reaches (key: its reach as text).
        warp_index: the same robust z of these margins.
        patch_margin: mean logit margin that a small patch in its best place reaches.
        patch_success: share of other classes' images, of those that the patch was fitted to, that
            it sends to the label.
        patch_contrast: by how many logits its place leads the middle one.
        patch_index: the same robust z of the patch's margin.
        score: margin, mask and noise index in one number; it orders the labels.
        anomaly_index: MAD index of ``mask_l1`` (Neural Cleanse; > 2 is its rule).
        preferred: mean margin of the label under the small change of the images that favours it
            most, in units of the margin that clean images have; mostly negative.
        tinted: mean margin of the label under the colour filter that leads to it best, in the same
            unit, times how unlike the label's own images the filtered ones are in colour (0 to 1).
        leaning: how high the label stands in the answers to clean images of the other classes, in
            standard deviations of an image's logits.
        dormant: how far the label's row of the last layer draws on features that are small on clean
            images, in units of a weight.
        unused: the same of features that the label's own images leave unused; of signed features
            how much further they could raise its logit.
        driven: mean margin of the label while channels of the last layers are held high, in units
            of the margin that clean images have.
        inner_index: mean robust z of the last four against the other labels; None where channels
            were not held (21 to 64 classes).
        ahead_index: how far a small change takes it ahead of the other labels, by what is usual of
            the leaders of clean networks; None where that is not known.
        attack_success: share of other classes' images, not used in the inversion, that the
            inverted trigger sends to the label.
        control: whether the mask was inverted only as a random control for the leading labels.
        flagged: whether the label is named a target.
        p_value: the chance that a given label of a clean model has such figures; None where
            uncalibrated.
        looks: of a flagged label, whether its trigger looks planted or natural, and by what.
    """

    label: int = Field(ge=0)
    rank: int
    margin: float | None = None
    margins: dict[str, float] = Field(default_factory=dict)
    margin_index: float | None = None
    mask_l1: float | None = Field(default=None, ge=0.0)
    anomaly_index: float | None = None
    mask_index: float | None = None
    noise_margin: float | None = None
    noise_index: float | None = None
    warps: dict[str, float] = Field(default_factory=dict)
    warp_index: float | None = None
    patch_margin: float | None = None
    patch_success: float | None = None
    patch_contrast: float | None = None
    patch_index: float | None = None
    preferred: float | None = None
    tinted: float | None = None
    leaning: float | None = None
    dormant: float | None = None
    unused: float | None = None
    driven: float | None = None
    inner_index: float | None = None
    ahead_index: float | None = None
    score: float | None = None
    attack_success: Proportion | None = None
    control: bool = False
    flagged: bool = False
    p_value: float | None = None
    looks: str | None = None


class TestResult(Data):
    """One of the tests that a p-value is made of.

    Attributes:
        name: what was looked for.
        statistic: the number that it looks at; None where it could not be taken.
        p_value: the chance that a clean model has at least this number; None where uncalibrated.
        weight: its share of the error rate.
        models: how many clean reference models the p-value rests on.
    """

    name: str
    statistic: float | None
    p_value: float | None
    weight: float
    models: int


class ScanReport(Data):
    """The answer of a scan. ``labels`` is in order of evidence, the most suspicious first.

    Attributes:
        suspects: of a suspicious model, the labels that its evidence points to.
        p_value: the chance that the scan of a clean model gives this much evidence, of all tests
            together; None where no clean reference models are like this one.
        tests: the tests behind it.
        calibration: which reference models, in words; or why there are none.
        mapping: class -> label, of a perturbation that sends every class to a label of its own;
            empty unless that is among the findings.
        skipped: labels that the budget left no time for; nothing is said of them.
    """

    version: str
    verdict: Verdict
    method: str
    reasons: list[str]
    p_value: float | None
    targets: list[int]
    suspects: list[int] = Field(default_factory=list)
    labels: list[LabelEvidence]
    clean_accuracy: Proportion
    preprocess: str
    seed: int
    seconds: float = Field(ge=0.0)
    settings: dict[str, float | int | str]
    model: ModelRef
    data: DataRef
    class_names: list[Name] | None = None
    tests: list[TestResult] = Field(default_factory=list)
    calibration: str = ""
    mapping: dict[int, int] = Field(default_factory=dict)
    skipped: list[int] = Field(default_factory=list)

    _triggers: dict[int, Trigger] = PrivateAttr(default_factory=dict)
    _perturbations: dict[int, list[Trigger]] = PrivateAttr(default_factory=dict)
    _samples: Images | None = PrivateAttr(default=None)
    _forget: Callable[[], None] | None = PrivateAttr(default=None)

    def forget(self) -> None:
        """Removes what the scan has kept on disk for a run that goes on; call it when the report is
        safe. What a scan that skipped labels has kept stays for the next one.
        """
        if self._forget is not None:
            self._forget()

    @property
    def triggers(self) -> dict[int, Trigger]:
        """Label -> inverted patch trigger, where a mask was inverted. Not in the JSON."""
        return self._triggers

    @property
    def perturbations(self) -> dict[int, list[Trigger]]:
        """Label -> universal additive perturbations, one a budget, of the leading labels."""
        return self._perturbations

    @property
    def samples(self) -> Images | None:
        """A few clean images to show triggers on."""
        return self._samples

    def name(self, label: int) -> str:
        """``"14 (Stop)"`` where the class has a name, else ``"14"``."""
        if self.class_names and label < len(self.class_names):
            return f"{label} ({self.class_names[label]})"
        return str(label)

    def __eq__(self, other: object) -> bool:
        # Triggers travel in a file of their own, so that a report equals the one that it loads as.
        return isinstance(other, ScanReport) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # holds lists

    def _repr_html_(self) -> str:
        from goodnet.render.html import scan_fragment

        return scan_fragment(self)
