"""What a repair tells."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from goodnet.reports.base import Data, DataRef, FileRef, ModelRef, Proportion
from goodnet.reports.scanned import ScanReport, Verdict

Standing = Literal["holds", "not certifiable", "refused"]


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
        standing: whether the result can be shown to keep the limits, shown not to (of attack
            success: by more than is usual of labels without a backdoor), or neither.
        accepted: whether this is the one that was handed over.
        attack_success: target, or -1 for a map of all classes -> share of stamped images that get
            what the attack wants, under the worst of the least triggers that worked before.
        recovered: the same -> share of the stamped images that are known for what they are again.
        also: labels that were treated along with the targets.
        again: labels that a fresh scan of an earlier result named, and that were treated by the
            triggers that lead that result to them as well.
        made: whether there is a result at all; else the figures are those of the BadNet.
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
    again: list[int] = Field(default_factory=list)
    made: bool = True


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
        attack_success_before, attack_success_after, recovered_before, recovered_after: as of a
            :class:`RemedyTrial`.
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
