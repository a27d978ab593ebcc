"""The scan: is there a backdoor, for which labels, and what does the trigger look like?

With few classes every channel measures every label. With many, a cheap pass of the universal margin
ranks them all; the leaders and as many random controls again get the full treatment, so that like
is compared with like.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from goodnet import verdict
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.evidence import CHANNELS, Case, Effort, Evidence
from goodnet.images import Images, check_images
from goodnet.inversion import PAPER, QUICK
from goodnet.parallel import Progress, silent
from goodnet.preprocess import check_chance
from goodnet.reports import DataRef, LabelEvidence, ModelRef, Proportion, ScanReport, Verdict
from goodnet.statistics import proportion
from goodnet.trigger import Trigger
from goodnet.version import __version__

EVERY_LABEL = 64
"""Up to this many classes every label is measured in full."""

LEADERS = 12
CONTROLS = 28
FIT_IMAGES = 32
HELD_OUT = 200
SHOWN = 4

RANKING = Effort(
    images=8, steps=8, budgets=(0.045,), purpose="ranking all labels", keep_triggers=False
)
FINE = Effort(images=FIT_IMAGES, steps=24, inversion=replace(QUICK, batch=24))
COARSE = Effort()
FINE_LABELS = LEADERS + CONTROLS
"""Up to so many labels are measured finely; with more of them each gets about half of the time."""

METHODS = ("default", "neural-cleanse")


@dataclass(frozen=True)
class Split:
    """The usable clean images in two: those that triggers are fitted to, those that judge them."""

    fit: Tensor
    fit_labels: Tensor
    held: Tensor
    held_labels: Tensor


@dataclass(frozen=True)
class Measured:
    """What the channels found."""

    labels: list[int]
    reference: list[int]
    ranking: dict[int, float]
    margins: Evidence
    masks: Evidence


def scan(
    classifier: Classifier,
    images: Images,
    *,
    method: str = "default",
    labels: Sequence[int] | None = None,
    exhaustive: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> ScanReport:
    """Looks for backdoors.

    Args:
        classifier: the network under suspicion.
        images: at least 10 clean images of at least two classes with their labels.
        method: ``"default"`` (universal margin and mask) or ``"neural-cleanse"`` (the paper's
            optimisation, settings and rule, for every label).
        labels: the labels to look at; all by default.
        exhaustive: measure every label in full, however many there are.
        seed: of everything random.
        workers: threads; one a core by default. The answer does not depend on it.
        progress: told what is being done and how far it is.

    Raises:
        GoodnetError: D007, D008, D009, M010 for unusable images, M012 when the model answers with
            NaN, R003 for an unknown method or label.
    """
    started = time.monotonic()
    check_seed(seed)
    wanted = _wanted(classifier, method, labels)
    check_images(images, classifier=classifier)
    answers = classifier.logits(images.pixels)
    if not bool(torch.isfinite(answers).all()):
        raise GoodnetError(
            "M012",
            "the model answers with NaN or infinity on the clean images",
            "check the preprocessing and the weights",
        )
    right = answers.argmax(1) == images.labels
    stated = {classifier.preprocess.name: float(right.float().mean())}
    check_chance(int(right.sum()), images.labels, classifier.num_classes, stated)
    everything = method == "neural-cleanse"
    split = split_images(images, right, seed=seed, fit_all=everything)
    case = Case(classifier, split.fit, split.fit_labels, seed, workers, progress)
    measured = _neural_cleanse(case, wanted) if everything else _default(case, wanted, exhaustive)
    report = _report(classifier, images, right, split, measured, method, seed)
    if labels is not None and report.verdict == "clean":
        note = f"only {len(wanted)} of {classifier.num_classes} labels were scanned"
        doubtful = {"verdict": "inconclusive", "reasons": [*report.reasons, note]}
        report = report.model_copy(update=doubtful)
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 2)})


def check_seed(seed: int) -> None:
    """Refuses a seed that no generator takes.

    Raises:
        GoodnetError: R003.
    """
    if not 0 <= seed < 2**32:
        raise GoodnetError("R003", f"{seed} is no seed", "give a whole number from 0 to 4294967295")


def _wanted(classifier: Classifier, method: str, labels: Sequence[int] | None) -> list[int]:
    if method not in METHODS:
        raise GoodnetError(
            "R003", f"unknown method '{method}'", f"choose one of {', '.join(METHODS)}"
        )
    if labels is None:
        return list(range(classifier.num_classes))
    for label in labels:
        if not 0 <= label < classifier.num_classes:
            raise GoodnetError(
                "R003",
                f"label {label} is not one of the model's {classifier.num_classes} classes",
                f"give labels from 0 to {classifier.num_classes - 1}",
            )
    return sorted(set(labels))


def split_images(images: Images, right: Tensor, *, seed: int, fit_all: bool = False) -> Split:
    """Splits the images that the model gets right, so that each part shows as many classes as it
    can; where fewer than 10 are right, all images are used.

    Args:
        images: the clean images.
        right: bool ``(N,)``, whether the model classifies an image correctly.
        seed: of the order.
        fit_all: fit to four fifths instead of a small batch (Neural Cleanse's mini-batches).
    """
    usable = torch.nonzero(right)[:, 0] if int(right.sum()) >= 10 else torch.arange(len(images))
    generator = torch.Generator().manual_seed(seed)
    usable = usable[torch.randperm(len(usable), generator=generator)]
    seen: dict[int, int] = {}
    rounds = []
    for label in images.labels[usable].tolist():
        seen[label] = seen.get(label, 0) + 1
        rounds.append(seen[label])
    order = usable[torch.argsort(torch.tensor(rounds), stable=True)]
    size = len(order) * 4 // 5 if fit_all else min(FIT_IMAGES, len(order) * 3 // 5)
    fit, held = order[:size], order[size : size + HELD_OUT]
    return Split(
        images.select(fit).floats(),
        images.labels[fit],
        images.select(held).floats(),
        images.labels[held],
    )


def _neural_cleanse(case: Case, wanted: list[int]) -> Measured:
    effort = Effort(images=len(case.fit), inversion=PAPER, purpose="inverting triggers")
    masks = CHANNELS["mask_l1"](case, wanted, effort)
    return Measured(wanted, wanted, {}, Evidence(), masks)


def _default(case: Case, wanted: list[int], exhaustive: bool) -> Measured:
    chosen, reference, ranking = wanted, wanted, {}
    if len(wanted) > EVERY_LABEL and not exhaustive:
        ranked = CHANNELS["universal_margin"](case, wanted, RANKING)
        ranking = {label: values[0] for label, values in ranked.values.items()}
        order = sorted(ranking, key=lambda label: -ranking[label])
        # Controls come from all labels: the others alone are more alike than labels are.
        picked = np.random.default_rng(case.seed).permutation(len(order))[:CONTROLS]
        reference = sorted(order[int(i)] for i in picked)
        failed = [label for label in wanted if label not in ranking]
        chosen = list(dict.fromkeys(order[:LEADERS] + reference + failed[:LEADERS]))
    effort = FINE if len(chosen) <= FINE_LABELS else COARSE
    margins = CHANNELS["universal_margin"](
        case, chosen, replace(effort, purpose="measuring margins")
    )
    masks = CHANNELS["mask_l1"](case, chosen, replace(effort, purpose="inverting triggers"))
    if not ranking:
        middle = len(effort.budgets) // 2
        ranking = {label: values[middle] for label, values in margins.values.items()}
    return Measured(chosen, reference, ranking, margins, masks)


def _report(
    classifier: Classifier,
    images: Images,
    right: Tensor,
    split: Split,
    measured: Measured,
    method: str,
    seed: int,
) -> ScanReport:
    sizes = {label: values[0] for label, values in measured.masks.values.items()}
    scores = verdict.combine(measured.labels, measured.margins.values, sizes, measured.reference)
    default = method == "default"
    classes = classifier.num_classes
    targets = verdict.flagged(scores, classes) if default else verdict.neural_cleanse(scores)
    few = default and len(measured.labels) < verdict.FEW_CLASSES
    if few:
        targets = []
    suspects = verdict.flagged(scores, classes, verdict.SUSPICION) if default else []
    usable = len(split.fit) + len(split.held)
    doubts = verdict.doubts(
        images=usable if usable < verdict.FEW_IMAGES else len(images),
        measured=len(sizes.keys() & measured.margins.values.keys() if default else sizes),
        wanted=len(measured.labels),
        compared=len(measured.labels),
    )
    answer, reasons = _answer(targets, suspects, doubts, scores, classes, default)
    report = ScanReport(
        version=__version__,
        verdict=answer,
        method=method,
        reasons=reasons,
        p_value=None,
        targets=targets,
        labels=_rows(classifier, split, measured, scores, targets),
        clean_accuracy=proportion(int(right.sum()), len(images)),
        preprocess=classifier.preprocess.name,
        seed=seed,
        seconds=0.0,
        settings=_settings(measured, split, method),
        model=model_ref(classifier),
        data=data_ref(images),
        class_names=list(images.class_names) if images.class_names else None,
    )
    report._triggers.update({label: t[0] for label, t in measured.masks.triggers.items()})
    report._perturbations.update({label: list(t) for label, t in measured.margins.triggers.items()})
    shown = torch.arange(min(SHOWN, len(split.held)))
    report._samples = Images((split.held[shown] * 255).round().byte(), split.held_labels[shown])
    return report


def _answer(
    targets: list[int],
    suspects: list[int],
    doubts: list[str],
    scores: verdict.Scores,
    classes: int,
    default: bool,
) -> tuple[Verdict, list[str]]:
    bar = (
        verdict.threshold(classes, compared=len(scores.labels))
        if default
        else verdict.NEURAL_CLEANSE_THRESHOLD
    )
    rule = (
        f"score at least {bar:.2f} for {classes} classes (uncalibrated index)"
        if default
        else "anomaly index above 2 (Wang et al. 2019); a clean model is often flagged by it"
    )
    values = scores.score if default else scores.anomaly_index
    by_label = dict(zip(scores.labels, values.tolist(), strict=True))
    if default and len(scores.labels) < verdict.FEW_CLASSES:
        return "inconclusive", doubts
    if targets:
        return "backdoored", [f"label {t}: {by_label[t]:.2f}; rule: {rule}" for t in targets]
    if suspects:
        return "suspicious", [f"label {t}: {by_label[t]:.2f}; rule: {rule}" for t in suspects]
    if doubts:
        return "inconclusive", doubts
    return "clean", [f"no label reaches the rule: {rule}"]


def _rows(
    classifier: Classifier,
    split: Split,
    measured: Measured,
    scores: verdict.Scores,
    targets: list[int],
) -> list[LabelEvidence]:
    leading = scores.score if measured.margins.values else np.nan_to_num(scores.anomaly_index)
    order = [scores.labels[i] for i in np.argsort(-leading, kind="stable")]
    place = {label: index for index, label in enumerate(scores.labels)}
    others = sorted(
        (label for label in measured.ranking if label not in place),
        key=lambda label: -measured.ranking[label],
    )
    partial = len(measured.reference) < len(measured.labels)
    rows = []
    for rank, label in enumerate([*order, *others], start=1):
        index = place.get(label)
        if index is None:
            rows.append(LabelEvidence(label=label, rank=rank, margin=measured.ranking[label]))
            continue
        budgets = measured.margins.values.get(label, ())
        trigger = measured.masks.triggers.get(label)
        mask = measured.masks.values.get(label)
        rows.append(
            LabelEvidence(
                label=label,
                rank=rank,
                margin=measured.ranking.get(label),
                margins={f"{b:g}": m for b, m in zip(FINE.budgets, budgets, strict=False)},
                margin_index=_finite(scores.margin_index[index]),
                mask_l1=mask[0] if mask else None,
                anomaly_index=_finite(scores.anomaly_index[index]),
                mask_index=_finite(scores.mask_index[index]),
                score=_finite(scores.score[index]) if measured.margins.values else None,
                attack_success=attack_success(classifier, trigger[0], split.held, split.held_labels)
                if trigger
                else None,
                control=partial and label in measured.reference,
                flagged=label in targets,
            )
        )
    return rows


def attack_success(
    classifier: Classifier, trigger: Trigger, images: Tensor, labels: Tensor
) -> Proportion | None:
    """Share of other classes' images that the trigger sends to its target; None without images."""
    others = images[labels != trigger.target]
    if not len(others):
        return None
    return proportion(count_hits(classifier, trigger.apply(others), trigger.target), len(others))


def count_hits(classifier: Classifier, images: Tensor, target: int) -> int:
    """How many of ``images`` become ``target``; a NaN is no answer, although argmax names one."""
    logits = classifier.logits(images)
    return int(((logits.argmax(1) == target) & logits.isfinite().all(1)).sum())


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _settings(measured: Measured, split: Split, method: str) -> dict[str, float | int | str]:
    return {
        "labels_measured": len(measured.labels),
        "controls": len(measured.reference)
        if len(measured.reference) < len(measured.labels)
        else 0,
        "fit_images": len(split.fit),
        "held_out_images": len(split.held),
        "method": method,
    }


def model_ref(classifier: Classifier) -> ModelRef:
    """What a report says about the model."""
    return ModelRef(
        path=classifier.path,
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


def triggers_path(report: Path) -> Path:
    """Where the triggers of a report in this JSON file lie."""
    return report.with_name(f"{report.stem}.triggers.safetensors")


def save_report(report: ScanReport, path: Path) -> None:
    """Writes the report as JSON and, beside it, its triggers as safetensors."""
    from safetensors.torch import save as to_bytes

    from goodnet.formats.files import atomic
    from goodnet.reports import write_text
    from goodnet.trigger import pack

    named = {f"mask-{label}": trigger for label, trigger in report.triggers.items()}
    # The triggers of an earlier report must not pass for those of this one.
    triggers_path(path).unlink(missing_ok=True)
    if named:
        with atomic(triggers_path(path)) as temporary:
            temporary.write_bytes(to_bytes(pack(named)))
    write_text(path, report)


def load_report(path: Path) -> ScanReport:
    """Reads a report that :func:`save_report` wrote, with its triggers if they lie beside it.

    Raises:
        GoodnetError: R002 when the file is not a scan report of this version's schema.
    """
    from safetensors.torch import load_file

    from goodnet.trigger import unpack

    hint = "give the scan.json that 'goodnet scan -o' wrote"
    try:
        report = ScanReport.model_validate_json(path.read_bytes())
        beside = triggers_path(path)
        found = unpack(load_file(str(beside))) if beside.is_file() else {}
    except OSError as error:
        raise GoodnetError("R002", f"cannot read {path}: {error.strerror}", hint) from error
    except ValueError as error:
        raise GoodnetError("R002", f"{path} is not a scan report of goodnet", hint) from error
    except Exception as error:  # safetensors raises a type of its own
        raise GoodnetError("R002", f"{triggers_path(path)} is damaged", hint) from error
    report._triggers.update({trigger.target: trigger for trigger in found.values()})
    return report
