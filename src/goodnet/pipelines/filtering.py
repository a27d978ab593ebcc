"""What a repair says of an input filter: who cannot have one, and what it does when judged."""

from __future__ import annotations

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.formats.network import cannot_widen
from goodnet.head import find_head
from goodnet.pipelines import jury as juries
from goodnet.pipelines.conclude import answers_to
from goodnet.remedies import Patient
from goodnet.reports import FilterReport, Standing
from goodnet.statistics import proportion

MOSTLY = 0.5
"""A filter that rejects fewer of the stamped images is none."""


def check(classifier: Classifier, remedy: str) -> None:
    """Refuses at once what would be refused after the work.

    Raises:
        GoodnetError: M015 for a model that has a filter, or whose format can have none.
    """
    if classifier.filtered:
        raise GoodnetError(
            "M015",
            "the model has a filter already: its last output means 'backdoored input'",
            "repair the model that it was made from",
        )
    if remedy == "filter" and classifier.network.widen is None:
        raise cannot_widen(f"it came as {classifier.network.kind}")


def report(cured: Classifier, patient: Patient, jury: juries.Jury) -> FilterReport | None:
    """What both halves of the images show of the filter; None where ``cured`` has none."""
    if not cured.filtered:
        return None
    bias = find_head(cured, patient.images[:8]).bias
    assert bias is not None  # noqa: S101  no filter is made without one
    own = answers_to(cured, patient.images) == cured.num_classes
    alarms, rejected = juries.rejections(jury, patient.classifier, cured)
    return FilterReport(
        label=cured.num_classes,
        aim=patient.false_alarms,
        threshold=-float(bias[-1]),
        repair_alarms=proportion(int(own.sum()), len(own)),
        alarms=alarms,
        rejected=rejected,
        own_images={t: int((patient.labels == t).sum()) for t in sorted(patient.triggers)},
    )


def judge(standing: Standing, reason: str, found: FilterReport) -> tuple[Standing, str]:
    """The standing of a repair in the light of its filter, which must be one."""
    target = min(found.rejected, key=lambda target: found.rejected[target].value)
    least = found.rejected[target].value
    if least >= MOSTLY:
        return standing, reason
    return (
        "refused",
        f"the filter rejects only {least:.1%} of the images that a trigger sends to label {target}",
    )
