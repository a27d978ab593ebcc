"""From what the channels measured to a report: verdict, reasons, one row for each label."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goodnet import verdict
from goodnet.classifier import Classifier
from goodnet.doubts import FEW_IMAGES, doubts, unlooked_at
from goodnet.evidence import Effort, Evidence
from goodnet.evidence.permutation import NOT_MEASURED, Permutation
from goodnet.evidence.warp_margin import REACHES
from goodnet.findings import Decision, Findings
from goodnet.images import Images
from goodnet.inner import inner_index
from goodnet.looks import looks
from goodnet.reports import (
    DataRef,
    Family,
    LabelEvidence,
    ModelRef,
    Proportion,
    ScanReport,
    Verdict,
)
from goodnet.scores import Raw, Scores, combine, corroborated, is_handful, is_ranked
from goodnet.statistics import proportion
from goodnet.trigger import Trigger
from goodnet.uncalibrated import FEW_CLASSES, neural_cleanse
from goodnet.version import __version__

MOST_LABELS = 0.9
"""From this share of the labels on, all were asked for: a few may have failed."""

SHOWN = 4
"""Held-out images that a report shows triggers on."""


@dataclass(frozen=True)
class Split:
    """The usable clean images in two: those that triggers are fitted to, those that judge them."""

    fit: Tensor
    fit_labels: Tensor
    held: Tensor
    held_labels: Tensor

    def together(self) -> tuple[Tensor, Tensor]:
        """All of them with their labels, those that triggers are fitted to first."""
        return torch.cat([self.fit, self.held]), torch.cat([self.fit_labels, self.held_labels])


@dataclass(frozen=True)
class Measured:
    """What the channels found.

    Attributes:
        labels: those that were to be measured in full.
        reference: those of them that the others are held against.
        ranking: label -> its margin in the ranking of all labels.
        margins: of ``labels``.
        masks: of ``labels``.
        noise: of ``labels``, the margin from noise.
        warps: of ``labels``, the margin under a warp.
        patches: of ``labels``, what the best patch does.
        skipped: labels that the budget left no time for, in the ranking or in full.
        cut_off: the searches of the whole model that it left no time for, in words.
        permutation: of the whole model.
        preferred: label -> its margin under the change that favours it most; of all labels.
        tinted: label -> how far a colour filter leads to it; of all labels with images.
        leaning: label -> how far clean images lean to it; of all labels.
        signatures: label -> (dormant, unused), what its row draws on; of all labels.
        driven: label -> how far channels that are held high drive it; of all labels.
        clean_margin: the median difference between the two largest logits of a clean image.
        wanted: how many labels were to be measured in full, if there was not time for all; 0 for
            those that were.
        family: of networks.
        usual_leads: what is usual of clean networks like this one, as of
            :class:`goodnet.scores.Raw`.
    """

    labels: list[int]
    reference: list[int]
    ranking: dict[int, float]
    margins: Evidence
    masks: Evidence
    noise: Evidence = field(default_factory=Evidence)
    warps: Evidence = field(default_factory=Evidence)
    patches: Evidence = field(default_factory=Evidence)
    skipped: list[int] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)
    permutation: Permutation = NOT_MEASURED
    preferred: dict[int, float] = field(default_factory=dict)
    tinted: dict[int, float] = field(default_factory=dict)
    leaning: dict[int, float] = field(default_factory=dict)
    signatures: dict[int, tuple[float, ...]] = field(default_factory=dict)
    driven: dict[int, float] = field(default_factory=dict)
    clean_margin: float = 0.0
    wanted: int = 0
    family: Family = "other"
    usual_leads: Sequence[tuple[float, float]] = ()

    def scores(self, apart: Collection[int] = ()) -> Scores:
        """The labels' scores against what is usual in this network, which those set ``apart`` do
        not tell.
        """
        raw = Raw(
            margins=self.margins.values,
            masks={n: row[0] for n, row in self.masks.values.items() if n in self.labels},
            noise={n: row[0] for n, row in self.noise.values.items()},
            warps=self.warps.values,
            patches={n: row[0] for n, row in self.patches.values.items()},
            tinted=self.tinted,
            leaning=self.leaning,
            inner=self.inner,
            clean_margin=self.clean_margin,
            usual_leads=self.usual_leads,
        )
        wanted = self.wanted or len(self.labels)
        return combine(self.labels, raw, self.reference, wanted, apart)

    @cached_property
    def inner(self) -> dict[int, float]:
        """What the network itself tells of every label."""
        return inner_index(self.leaning, self.signatures, self.driven)


def conclude(
    classifier: Classifier,
    images: Images,
    right: Tensor,
    split: Split,
    measured: Measured,
    method: str,
    seed: int,
    deadline: float | None = None,
) -> ScanReport:
    """The report of a scan.

    Args:
        classifier: what was scanned.
        images: all clean images.
        right: bool ``(N,)``, whether the model classifies an image correctly.
        split: the images that triggers were fitted to, and those that judge them.
        measured: what the channels found.
        method: one of :data:`goodnet.pipelines.begin.METHODS`; it chooses the rule.
        seed: of the scan.
        deadline: a time of :func:`time.monotonic` after which no trigger is tried any more.
    """
    scores = measured.scores()
    usable = len(split.fit) + len(split.held)
    images_used = usable if usable < FEW_IMAGES else len(images)
    default = method == "default"
    # A part of the four numbers pardons nobody, and labels that somebody chose are no fair sample.
    looked_at = measured.ranking.keys() | set(measured.skipped)
    everything = len(looked_at) >= MOST_LABELS * classifier.num_classes
    inner = measured.inner if everything and measured.signatures and measured.driven else {}
    ranked = is_ranked(measured.labels, measured.reference)
    decision = (
        verdict.decide(
            Findings(
                scores,
                classifier.num_classes,
                images_used,
                measured.permutation.statistic,
                measured.permutation.mapping,
                measured.preferred,
                corroborated(measured.tinted, measured.leaning),
                ranked,
                float(right.float().mean()),
                measured.wanted,
                len(measured.reference) if ranked else None,
                inner,
                measured.family,
                measured.scores,
            )
        )
        if default
        else neural_cleanse(scores)
    )
    sizes = measured.masks.values.keys() & set(measured.labels)
    left_open = doubts(
        images=images_used,
        measured=len(sizes & measured.margins.values.keys() if default else sizes),
        wanted=len(measured.labels),
        compared=len(measured.labels),
        skipped=len(measured.skipped),
        cut_off=measured.cut_off,
    )
    # By the default rule so few labels are no finding already; a map of all classes is.
    few = len(measured.labels) < FEW_CLASSES and not default
    answer, reasons = _answer(decision, left_open, few=few)
    if answer in ("backdoored", "suspicious"):
        reasons = [*reasons, *unlooked_at(len(measured.skipped), measured.cut_off)]
    targets = decision.targets if answer == "backdoored" else []
    if default:
        told = [label for label in targets if label in scores.labels][:SHOWN]
        reasons = [*reasons, *(f"label {n} looks {looks(scores, n)}" for n in told)]
    report = ScanReport(
        version=__version__,
        verdict=answer,
        method=method,
        reasons=reasons,
        p_value=decision.p_value,
        targets=targets,
        suspects=decision.suspects if answer == "suspicious" else [],
        labels=_rows(classifier, split, measured, scores, decision, targets, deadline),
        clean_accuracy=proportion(int(right.sum()), len(images)),
        preprocess=classifier.preprocess.name,
        seed=seed,
        seconds=0.0,
        settings=_settings(measured, split, method),
        model=model_ref(classifier),
        data=data_ref(images),
        class_names=list(images.class_names) if images.class_names else None,
        tests=decision.tests,
        calibration=decision.calibration,
        mapping=decision.mapping,
        skipped=measured.skipped,
    )
    report._triggers.update({label: t[0] for label, t in measured.masks.triggers.items()})
    report._perturbations.update({label: list(t) for label, t in measured.margins.triggers.items()})
    shown = torch.arange(min(SHOWN, len(split.held)))
    report._samples = Images((split.held[shown] * 255).round().byte(), split.held_labels[shown])
    return report


def _answer(decision: Decision, left_open: list[str], *, few: bool) -> tuple[Verdict, list[str]]:
    """A finding stands whatever was doubtful; "clean" does not."""
    if left_open and (few or decision.verdict == "clean"):
        return "inconclusive", left_open
    return decision.verdict, decision.reasons


def _rows(
    classifier: Classifier,
    split: Split,
    measured: Measured,
    scores: Scores,
    decision: Decision,
    targets: list[int],
    deadline: float | None,
) -> list[LabelEvidence]:
    leading = scores.score if measured.margins.values else np.nan_to_num(scores.anomaly_index)
    # Two labels have no index, and the smaller mask leads.
    sizes = [measured.masks.values.get(label, (math.inf,))[0] for label in scores.labels]
    order = [scores.labels[i] for i in np.lexsort((np.array(sizes), -np.nan_to_num(leading)))]
    place = {label: index for index, label in enumerate(scores.labels)}
    others = sorted(
        (label for label in measured.ranking if label not in place),
        key=lambda label: -measured.ranking[label],
    )
    named = bool(measured.margins.values)
    partial = len(measured.reference) < len(measured.labels)
    rows = []
    for rank, label in enumerate([*order, *others], start=1):
        index = place.get(label)
        if index is None:
            rows.append(
                LabelEvidence(
                    label=label,
                    rank=rank,
                    margin=measured.ranking[label],
                    flagged=label in targets,
                    **_of_all_labels(measured, label),
                )
            )
            continue
        budgets = measured.margins.values.get(label, ())
        warps = measured.warps.values.get(label, ())
        patch = measured.patches.values.get(label)
        trigger = measured.masks.triggers.get(label)
        mask, noise = measured.masks.values.get(label), measured.noise.values.get(label)
        rows.append(
            LabelEvidence(
                label=label,
                rank=rank,
                margin=measured.ranking.get(label),
                margins={f"{b:g}": m for b, m in zip(Effort().budgets, budgets, strict=False)},
                margin_index=_finite(scores.margin_index[index]),
                mask_l1=mask[0] if mask else None,
                anomaly_index=_finite(scores.anomaly_index[index]),
                mask_index=_finite(scores.mask_index[index]),
                noise_margin=noise[0] if noise else None,
                noise_index=_finite(scores.noise_index[index]),
                warps={f"{r:g}": m for r, m in zip(REACHES, warps, strict=False)},
                warp_index=_finite(scores.warp_index[index]),
                patch_margin=patch[0] if patch else None,
                patch_success=patch[1] if patch else None,
                patch_contrast=patch[2] if patch else None,
                patch_index=_finite(scores.patch_index[index]),
                ahead_index=float(scores.ahead_index[index]) if measured.usual_leads else None,
                p_value=decision.label_p.get(label),
                score=_finite(scores.score[index]) if measured.margins.values else None,
                attack_success=attack_success(classifier, trigger[0], split.held, split.held_labels)
                if trigger and (deadline is None or time.monotonic() < deadline)
                else None,
                control=partial and label in measured.reference,
                flagged=label in targets,
                looks=looks(scores, label) if named and label in targets else None,
                **_of_all_labels(measured, label),
            )
        )
    return rows


def _of_all_labels(measured: Measured, label: int) -> dict[str, Any]:
    """What is known of a label whether it was measured in full or not."""
    dormant, unused = (*measured.signatures.get(label, ()), None, None)[:2]
    return {
        "preferred": measured.preferred.get(label),
        "tinted": measured.tinted.get(label),
        "leaning": measured.leaning.get(label),
        "dormant": dormant,
        "unused": unused,
        "driven": measured.driven.get(label),
        # Of some dozen labels channels are not held, and three numbers are no mean of four.
        "inner_index": measured.inner.get(label) if measured.driven else None,
    }


def attack_success(
    classifier: Classifier, trigger: Trigger, images: Tensor, labels: Tensor
) -> Proportion | None:
    """Share of other classes' images that the trigger sends to its target; None without images."""
    others = images[labels != trigger.target]
    if not len(others):
        return None
    return proportion(count_hits(classifier, trigger.apply(others), trigger.target), len(others))


def count_hits(classifier: Classifier, images: Tensor, target: int) -> int:
    """How many of ``images`` become ``target``."""
    return int((answers_to(classifier, images) == target).sum())


def answers_to(classifier: Classifier, images: Tensor) -> Tensor:
    """The labels that ``images`` get, ``(n,)``; -1 for a NaN, for which argmax would name one."""
    logits = classifier.logits(images)
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _settings(measured: Measured, split: Split, method: str) -> dict[str, float | int | str]:
    settings: dict[str, float | int | str] = {
        "labels_measured": len(measured.labels),
        "controls": len(measured.reference)
        if len(measured.reference) < len(measured.labels)
        else 0,
        "skipped": len(measured.skipped),
        "fit_images": len(split.fit),
        "held_out_images": len(split.held),
        "method": method,
    }
    if method == "default":
        settings["clean_margin"] = measured.clean_margin
        if is_handful(len(measured.labels)):
            settings["family"] = measured.family
    if not math.isnan(measured.permutation.statistic):
        settings["permutation"] = measured.permutation.statistic
        settings["permutation_changes"] = measured.permutation.flipped
    return settings


def model_ref(classifier: Classifier) -> ModelRef:
    """What a report says about the model."""
    return ModelRef(
        path=None if classifier.changed else classifier.path,
        sha256=classifier.sha256,
        kind=classifier.network.kind,
        num_classes=classifier.num_classes,
        input_shape=classifier.input_shape,
    )


def data_ref(images: Images) -> DataRef:
    """What a report says about the images."""
    return DataRef(
        path=images.path,
        sha256=images.sha256,
        images=len(images),
        classes=len(torch.unique(images.labels)),
    )
