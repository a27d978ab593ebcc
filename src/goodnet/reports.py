"""The reports: plain data that serialise to JSON and load back equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from goodnet.images import Images
from goodnet.trigger import Trigger

Verdict = Literal["backdoored", "suspicious", "clean", "inconclusive"]
Standing = Literal["holds", "not certifiable", "refused"]


class Data(BaseModel):
    """Base of all report types: frozen, and nothing unknown gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Proportion(Data):
    """A share of ``n`` images with its exact 95 % interval (Clopper and Pearson 1934)."""

    value: float
    low: float
    high: float
    n: int


class FileRef(Data):
    """What was read: where it lay, and its SHA-256."""

    path: str | None
    sha256: str


class ModelRef(FileRef):
    """The model that was scanned."""

    kind: str
    num_classes: int
    input_shape: tuple[int, int, int]


class DataRef(FileRef):
    """The clean images."""

    images: int
    classes: int


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
        attack_success: share of other classes' images, not used in the inversion, that the
            inverted trigger sends to the label.
        control: whether the mask was inverted only as a random control for the leading labels.
        flagged: whether the label is named a target.
        p_value: the chance that a given label of a clean model has such figures; None where
            uncalibrated.
        looks: of a flagged label, whether its trigger looks planted or natural, and by what.
    """

    label: int
    rank: int
    margin: float | None = None
    margins: dict[str, float] = Field(default_factory=dict)
    margin_index: float | None = None
    mask_l1: float | None = None
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
        p_value: the chance that the scan of a clean model gives this much evidence, of all tests
            together; None where no clean reference models are like this one.
        tests: the tests behind it.
        calibration: which reference models, in words; or why there are none.
        mapping: class -> label, of a perturbation that sends every class to a label of its own;
            empty unless that is among the findings.
    """

    version: str
    verdict: Verdict
    method: str
    reasons: list[str]
    p_value: float | None
    targets: list[int]
    labels: list[LabelEvidence]
    clean_accuracy: Proportion
    preprocess: str
    seed: int
    seconds: float
    settings: dict[str, float | int | str]
    model: ModelRef
    data: DataRef
    class_names: list[str] | None = None
    tests: list[TestResult] = Field(default_factory=list)
    calibration: str = ""
    mapping: dict[int, int] = Field(default_factory=dict)

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


class AccuracyLoss(Data):
    """What a change has cost, on the same ``n`` images before and after.

    Attributes:
        value: (``lost`` - ``gained``) / ``n``; negative where accuracy rose.
        low, high: exact bounds, each of which holds with ``confidence`` by itself.
        lost: images answered rightly before and wrongly after.
        gained: the other way round.
    """

    value: float
    low: float
    high: float
    confidence: float
    lost: int
    gained: int
    n: int


class RemedyTrial(Data):
    """One remedy that was tried, measured on held-out images only.

    Attributes:
        standing: whether the result can be shown to keep the limits, shown not to, or neither.
        accepted: whether this is the one that was handed over.
        recovered: target -> share of the stamped images that are known for what they are again.
        also: labels that were treated along with the targets.
    """

    remedy: str
    standing: Standing
    accepted: bool
    reason: str
    clean_accuracy: Proportion
    accuracy_loss: AccuracyLoss
    attack_success: dict[int, Proportion]
    recovered: dict[int, Proportion]
    seconds: float
    also: list[int] = Field(default_factory=list)


class ClassChange(Data):
    """How a class fared: of ``images`` held out, so many right before and after."""

    label: int
    images: int
    before: int
    after: int


class FreshScan(Data):
    """A scan of the repaired model that knows nothing of the old triggers.

    Attributes:
        labels: how many were measured; with hundreds of classes the targets and random controls.
        masks_before, masks_after: target -> L1 norm of its smallest mask, in pixels; None where
            none was found.
    """

    verdict: Verdict
    p_value: float | None
    targets: list[int]
    labels: int
    masks_before: dict[int, float | None]
    masks_after: dict[int, float | None]
    seconds: float


class Certificate(Data):
    """Before and after, on images that no remedy saw.

    Attributes:
        standing: ``"holds"`` where both limits are kept at the given confidence and a fresh scan
            names no target; ``"refused"`` where one is shown to be broken.
        confidence: of each bound that the standing rests on; higher than .95 where several
            remedies were to be tried, as each is one more chance to pass by luck.
        worst_classes: those that lost most, if any did.
        fresh: a cold-start scan of the result; None where nothing was worth one.
    """

    standing: Standing
    reason: str
    confidence: float
    clean_accuracy_before: Proportion
    clean_accuracy_after: Proportion
    accuracy_loss: AccuracyLoss
    attack_success_before: dict[int, Proportion]
    attack_success_after: dict[int, Proportion]
    recovered_before: dict[int, Proportion]
    recovered_after: dict[int, Proportion]
    worst_classes: list[ClassChange]
    fresh: FreshScan | None
    max_accuracy_loss: float
    max_attack_success: float

    @property
    def holds(self) -> bool:
        """Whether it was shown that the repair keeps its limits."""
        return self.standing == "holds"


class FilterReport(Data):
    """An input filter: one more output, which means "backdoored input".

    Attributes:
        label: the number of that output; the classes are those below it.
        aim: the share of clean images that may be rejected, by which the threshold was set.
        threshold: the logit of that output is a weighted sum of features less this number.
        repair_alarms: clean images of the repair's half that are rejected; set, not tested.
        alarms: the same of the held-out half, which the filter never saw.
        rejected: target -> share of rejected images among those held out that, under a trigger,
            fooled the unrepaired model; of the trigger that leaves the fewest.
        own_images: target -> how many clean images of it the repair's half has. Where it has none,
            nothing tells the target's own images from stamped ones, and they may be rejected.
    """

    label: int
    aim: float
    threshold: float
    repair_alarms: Proportion
    alarms: Proportion
    rejected: dict[int, Proportion]
    own_images: dict[int, int]


class RepairReport(Data):
    """The answer of a repair.

    Attributes:
        filter: what is known of the filter, where the remedy is one.
        repaired: whether a repaired model was handed over; what is known of it, the certificate
            says.
        also: labels that the scan suspected and did not name, and that were treated along, as that
            cost nothing. The certificate is of the targets.
    """

    version: str
    repaired: bool
    remedy: str | None
    targets: list[int]
    trials: list[RemedyTrial]
    certificate: Certificate
    repair_images: int
    held_out_images: int
    preprocess: str
    seed: int
    seconds: float
    model: ModelRef
    data: DataRef
    also: list[int] = Field(default_factory=list)
    output: FileRef | None = None
    scan: ScanReport | None = None
    filter: FilterReport | None = None


class Evaluation(Data):
    """Figures on images kept for judging.

    Attributes:
        clean_rejected: share of clean images that a filter rejects, each of them a wrong answer;
            None for a model without a filter.
        poisoned_rejected: the same of the images with a trigger that count for attack success.
    """

    clean_accuracy: Proportion
    attack_success: Proportion | None = None
    recovered_accuracy: Proportion | None = None
    target: int | None = None
    preprocess: str
    model: ModelRef
    data: DataRef
    poisoned: DataRef | None = None
    version: str
    clean_rejected: Proportion | None = None
    poisoned_rejected: Proportion | None = None


class FleetResult(Data):
    """The answer for one model of a fleet: a report, or why there is none.

    Attributes:
        name: the model's path below the folder that was scanned.
        key: SHA-256, hex, of model, data, settings and version.
        seconds: from reading the model to the verdict.
        report: the scan.
        error_code: a code of :data:`goodnet.errors.CODES`, where there is no report.
        error: what was wrong.
        hint: what to do.
    """

    name: str
    key: str
    seconds: float
    report: ScanReport | None = None
    error_code: str | None = None
    error: str | None = None
    hint: str | None = None


class FleetRow(Data):
    """One model in the table over all."""

    name: str
    sha256: str
    verdict: Verdict | None
    p_value: float | None
    targets: list[int]
    clean_accuracy: Proportion | None
    seconds: float
    error: str | None


class FleetReport(Data):
    """The table over all models of a fleet, in the order of the folder or the list."""

    version: str
    data: str
    data_sha256: str
    rows: list[FleetRow]


def write_text(path: Path, report: Data) -> None:
    """Writes ``report`` as one JSON document, all or nothing."""
    from goodnet.formats.files import atomic

    with atomic(path) as temporary:
        temporary.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
