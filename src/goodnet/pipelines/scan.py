"""The scan: is there a backdoor, for which labels, and what does the trigger look like?

With few classes every channel measures every label. With many, a cheap pass of the universal margin
ranks them all; the leaders and some random controls get the full treatment, so that like is
compared with like.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from goodnet import tables
from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.evidence import CHANNELS, Case, Effort, Evidence
from goodnet.evidence.augmentation import augmentation
from goodnet.evidence.permutation import permutation
from goodnet.evidence.store import open_store
from goodnet.images import Images, check_images
from goodnet.inversion import PAPER, QUICK
from goodnet.parallel import Progress, silent
from goodnet.pipelines.conclude import Measured, Split, conclude
from goodnet.pipelines.load import weights_sha256
from goodnet.pipelines.ranking import rank
from goodnet.preprocess import check_chance
from goodnet.reports import ScanReport
from goodnet.version import __version__

EVERY_LABEL = 64
"""Up to this many classes every label is measured in full."""

FIT_IMAGES = 128
"""At most so many images, and three fifths, are for fitting triggers. A mask has to work on all of
them, a mini-batch at a time: on a few, natural patches are as small as planted ones."""

HELD_OUT = 200

FULL = Effort()
MASKS = replace(FULL, images=FIT_IMAGES, purpose="inverting triggers")
WARPS = replace(FULL, images=16, purpose="measuring margins under warps")
OF_LEADERS = replace(FULL, inversion=replace(QUICK, epochs=30), purpose=MASKS.purpose)
"""A few labels of many are worth a longer search, on fewer images: a large trigger's mask is slow
to shrink, and the slower, the more images it has to work on."""

METHODS = ("default", "neural-cleanse")

RANKED_BY, MARGINS_BY, MASKS_BY = 0.5, 0.7, 0.95
"""When each stage has to be done, as shares of the budget: what has not been measured by then is
skipped. The rest is for judging the triggers and for the report."""


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
    budget: float | None = None,
    state: Path | None = None,
) -> ScanReport:
    """Looks for backdoors.

    Args:
        classifier: the network under suspicion.
        images: at least 10 clean images of at least two classes with their labels.
        method: ``"default"`` (all channels, a calibrated verdict) or ``"neural-cleanse"`` (the
            paper's optimisation, settings and rule, for every label).
        labels: the labels to look at; all by default.
        exhaustive: measure every label in full, however many there are.
        seed: of everything random.
        workers: threads; one a core by default. The answer does not depend on it.
        progress: told what is being done and how far it is.
        budget: seconds after which no label is measured any more, or None to measure all. Skipped
            labels are told, and "clean" becomes "inconclusive".
        state: a folder for what has been measured. The same scan, started again after it was ended,
            goes on from there and comes to the answer of one that was not. The report's ``forget``
            removes what it holds, once the report is safe.

    Raises:
        GoodnetError: D007, D008, D009, M010 for unusable images, M012 when the model answers with
            NaN, R003 for an unknown method or label or a budget of nothing, O001 or O002 when the
            state cannot be kept.
    """
    started = time.monotonic()
    check_seed(seed)
    if budget is not None and not budget > 0:
        raise GoodnetError("R003", f"a budget of {budget:g} s", "give, say, 5m or 90s")
    told = classifier.filtered
    classifier = classifier.classes_only()
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
    store = None
    if state is not None:
        store = open_store(state, _key(classifier, split, answers, labels, method, seed))
    clock = _Clock(started, budget)
    case = Case(
        classifier, split.fit, split.fit_labels, seed, workers, progress, clock.at(MASKS_BY), store
    )
    if everything:
        measured = _neural_cleanse(case, wanted)
    else:
        top = answers.topk(2).values
        clean_margin = float((top[:, 0] - top[:, 1]).median())
        measured = _default(case, split, wanted, exhaustive, clock, clean_margin, len(images))
    report = conclude(classifier, images, right, split, measured, method, seed, clock.at(1.0))
    if labels is not None and report.verdict == "clean":
        report = _doubted(
            report, f"only {len(wanted)} of {classifier.num_classes} labels were scanned"
        )
    if told and report.verdict in ("clean", "inconclusive"):
        # The file says so itself: an attacker's target could hide there.
        report = _doubted(
            report, f"output {classifier.num_classes}, said to be a filter's, was not scanned"
        )
    report = report.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
    if store is not None and not measured.skipped and not measured.permutation.cut_off:
        report._forget = store.remove
    return report


def _doubted(report: ScanReport, note: str) -> ScanReport:
    reasons = [*report.reasons, note]
    return report.model_copy(update={"verdict": "inconclusive", "reasons": reasons})


@dataclass(frozen=True)
class _Clock:
    """When the stages of a scan have to be done."""

    started: float
    budget: float | None

    def at(self, share: float) -> float | None:
        """The time of :func:`time.monotonic` at which so much of the budget is spent."""
        return None if self.budget is None else self.started + share * self.budget


def _key(
    classifier: Classifier,
    split: Split,
    answers: Tensor,
    labels: Sequence[int] | None,
    method: str,
    seed: int,
) -> str:
    """All that the numbers of a scan depend on: what the network is, by its weights and by what it
    answers (code of the user's may have changed between two runs), the images, the settings.
    """
    digest = hashlib.sha256()
    for tensor in (split.fit, split.fit_labels, answers.argmax(1)):
        digest.update(tensor.contiguous().numpy().tobytes())
    parts = (
        __version__,
        classifier.sha256,
        weights_sha256(classifier.module),
        classifier.preprocess,
        classifier.input_shape,
        classifier.num_classes,
        digest.hexdigest(),
        None if labels is None else sorted(set(labels)),
        method,
        seed,
    )
    return "\n".join(map(str, parts))


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
    done = [label for label in wanted if label not in masks.skipped]
    return Measured(done, done, {}, Evidence(), masks, skipped=sorted(masks.skipped))


def _default(
    case: Case,
    split: Split,
    wanted: list[int],
    exhaustive: bool,
    clock: _Clock,
    clean_margin: float,
    images: int,
) -> Measured:
    chosen, reference = wanted, wanted
    ranking: dict[int, float] = {}
    skipped: set[int] = set()
    if len(wanted) > EVERY_LABEL and not exhaustive:
        ranked = rank(replace(case, deadline=clock.at(RANKED_BY)), wanted)
        skipped.update(ranked.skipped)
        ranking, chosen, reference = ranked.margins, ranked.chosen, ranked.controls
    early = replace(case, deadline=clock.at(MARGINS_BY))
    margins = CHANNELS["universal_margin"](
        early, chosen, replace(FULL, purpose="measuring margins")
    )
    noise = CHANNELS["noise_margin"](
        early, chosen, replace(FULL, purpose="measuring margins from noise")
    )
    # Where no reference models are like this one, nothing could be made of it.
    tested, leaders_only = len(chosen), len(reference) < len(chosen)
    warps = Evidence()
    if tables.out_of_reach(tested, tested, images, leaders_only) is None:
        warps = CHANNELS["warp_margin"](early, chosen, WARPS)
    # Of the whole model.
    permuted = permutation(early, split.held, split.held_labels)
    preferred = augmentation(case, split.held, split.held_labels, clean_margin)
    masks = CHANNELS["mask_l1"](case, chosen, OF_LEADERS if leaders_only else MASKS)
    if not ranking:
        middle = len(FULL.budgets) // 2
        ranking = {label: values[middle] for label, values in margins.values.items()}
    skipped.update(margins.skipped, noise.skipped, warps.skipped, masks.skipped)
    # A label counts when every channel came to it: a few masks are no measure of what is usual.
    chosen, reference = ([n for n in some if n not in skipped] for some in (chosen, reference))
    return Measured(
        chosen,
        reference,
        ranking,
        margins,
        masks,
        noise,
        warps,
        sorted(skipped),
        permuted,
        {label: row[0] for label, row in preferred.values.items()},
        clean_margin,
    )
