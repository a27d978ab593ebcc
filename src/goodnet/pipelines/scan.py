"""The scan: is there a backdoor, for which labels, and what does the trigger look like?

With few classes every channel measures every label. With many, a cheap pass of the universal margin
ranks them all; the leaders and some random controls get the full treatment, so that like is
compared with like.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from goodnet import tables
from goodnet.classifier import Classifier
from goodnet.device import repeatable
from goodnet.errors import GoodnetError
from goodnet.evidence import CHANNELS, Case, Effort, Evidence, Share, Unfinished
from goodnet.evidence.augmentation import augmentation
from goodnet.evidence.colour_filter import colour_filters
from goodnet.evidence.permutation import permutation
from goodnet.evidence.stimulation import stimulation
from goodnet.images import Images, check_images
from goodnet.inversion import PAPER, QUICK
from goodnet.parallel import Leading, Progress, nobody, silent
from goodnet.pipelines.begin import FIT_IMAGES, Begun, begin
from goodnet.pipelines.conclude import Measured, conclude
from goodnet.pipelines.placing import AUTO, placed, probes
from goodnet.pipelines.ranking import rank
from goodnet.reports import ScanReport
from goodnet.scores import is_handful

EVERY_LABEL = 64
"""Up to this many classes every label is measured in full."""

FULL = Effort()
MASKS = replace(FULL, images=FIT_IMAGES, purpose="inverting triggers")
NOISE = replace(FULL, purpose="measuring margins from noise")
WARPS = replace(FULL, images=16, purpose="measuring margins under warps")
PATCHES = replace(FULL, images=16, steps=10, purpose="trying small patches everywhere")
OF_LEADERS = replace(FULL, inversion=replace(QUICK, epochs=30), purpose=MASKS.purpose)
"""A few labels of many are worth a longer search, on fewer images: a large trigger's mask is slow
to shrink, and the slower, the more images it has to work on."""

RANKED, PERMUTED, TINTS = "the leading labels", "permuted classes", "colour filters"
CHANGES, CHANNELS_HELD = "small changes of the images", "labels that single channels drive"
"""Searches of the whole model, as a report calls them."""

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
    leading: Leading = nobody,
    device: str = AUTO,
    remade: Collection[int] = (),
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
        leading: told which labels stand out so far in what is being measured, the first one first.
        device: as :func:`goodnet.pipelines.placing.placed` takes it: ``"auto"``, ``"cpu"``,
            ``"cuda"``; with ``",float32"`` behind it nothing is computed in bfloat16.
        remade: labels whose rows of the last layer a remedy has made. What a row draws on, and what
            channels drive it, tells of a network's training; of these it tells of the remedy, and
            is left out.

    Raises:
        GoodnetError: D007, D008, D009, M010 for unusable images, M012 when the model answers with
            NaN, R003 for an unknown method or label or a budget of nothing, R010 for a device that
            cannot be used, O001 or O002 when the state cannot be kept.
    """
    started = time.monotonic()
    if budget is not None and not budget > 0:
        raise GoodnetError("R003", f"a budget of {budget:g} s", "give, say, 5m or 90s")
    told, classifier = classifier.filtered, classifier.classes_only()
    clock = _Clock(started, budget)
    deadline = clock.at(MASKS_BY)
    check_images(images, classifier=classifier)
    classifier = placed(classifier, device, probes(images))
    with repeatable(classifier.device):
        begun = begin(classifier, images, method, labels, seed, workers, progress, deadline, state)
        begun = replace(begun, case=replace(begun.case, leading=leading))
        measured = without_rows(_measure(begun, method, exhaustive, clock), remade)
        report = conclude(
            classifier, images, begun.right, begun.split, measured, method, seed, clock.at(1.0)
        )
    if len(begun.wanted) < classifier.num_classes and report.verdict == "clean":
        few = f"only {len(begun.wanted)} of {classifier.num_classes} labels were scanned"
        report = _doubted(report, few)
    if told and report.verdict in ("clean", "inconclusive"):
        # The file says so itself: an attacker's target could hide there.
        report = _doubted(
            report, f"output {classifier.num_classes}, said to be a filter's, was not scanned"
        )
    report.settings.update(_means(begun.case.classifier))
    report = report.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
    store = begun.case.store
    if store is not None and not measured.skipped and not measured.cut_off:
        report._forget = store.remove
    return report


def measure_share(
    classifier: Classifier,
    images: Images,
    share: Share,
    state: Path,
    *,
    method: str = "default",
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
    device: str = AUTO,
) -> bool:
    """Measures one worker's share of a scan of all labels, as far as that goes by itself.

    Where labels are chosen by what all shares have found, it goes no further than to there, unless
    the other shares' blocks lie in ``state``, too. A :func:`scan` with that ``state``, of the same
    method and seed, takes what is there and measures the rest: its report is the same as without.

    Args:
        classifier: as of :func:`scan`, and so are the other arguments.
        images: clean images.
        share: which of how many.
        state: the folder of what has been measured, by this share and by others.
        method: the scan's.
        seed: the scan's.
        workers: threads.
        progress: told what is being done.
        device: the scan's.

    Returns:
        Whether the share is done; if not, it waits for the others.

    Raises:
        GoodnetError: as a scan.
    """
    clock = _Clock(time.monotonic(), None)
    classifier = classifier.classes_only()
    check_images(images, classifier=classifier)
    classifier = placed(classifier, device, probes(images))
    with repeatable(classifier.device):
        begun = begin(classifier, images, method, None, seed, workers, progress, None, state)
        try:
            _measure(replace(begun, case=replace(begun.case, share=share)), method, False, clock)
        except Unfinished:
            return False
    return True


def _measure(begun: Begun, method: str, exhaustive: bool, clock: _Clock) -> Measured:
    if method == "neural-cleanse":
        return _neural_cleanse(begun.case, begun.wanted)
    return _default(begun, exhaustive, clock)


def without_rows(measured: Measured, remade: Collection[int]) -> Measured:
    """The same without what the rows of some labels tell."""
    return replace(
        measured,
        signatures={n: row for n, row in measured.signatures.items() if n not in remade},
        driven={n: size for n, size in measured.driven.items() if n not in remade},
    )


def _means(classifier: Classifier) -> dict[str, str]:
    """What the searches were computed on, and how exactly."""
    gradients = "bfloat16" if classifier.half else "float32"
    return {"device": classifier.device.name, "gradients": gradients}


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


def _neural_cleanse(case: Case, wanted: list[int]) -> Measured:
    effort = Effort(images=len(case.fit), inversion=PAPER, purpose="inverting triggers")
    masks = CHANNELS["mask_l1"](case, wanted, effort)
    done = [label for label in wanted if label not in masks.skipped]
    return Measured(done, done, {}, Evidence(), masks, skipped=sorted(masks.skipped))


def _default(begun: Begun, exhaustive: bool, clock: _Clock) -> Measured:
    case, split, wanted = begun.case, begun.split, begun.wanted
    clean_margin, images = begun.clean_margin, begun.images
    chosen, reference = wanted, wanted
    ranking: dict[int, float] = {}
    skipped: set[int] = set()
    poorly_ranked = False
    if len(wanted) > EVERY_LABEL and not exhaustive:
        ranked = rank(replace(case, deadline=clock.at(RANKED_BY)), wanted)
        skipped.update(ranked.skipped)
        ranking, chosen, reference = ranked.margins, ranked.chosen, ranked.controls
        poorly_ranked = ranked.cut_off
    early = replace(case, deadline=clock.at(MARGINS_BY))
    margins = CHANNELS["universal_margin"](
        early, chosen, replace(FULL, purpose="measuring margins")
    )
    tested, leaders_only = len(chosen), len(reference) < len(chosen)
    classes, usable = case.classifier.num_classes, int(begun.right.sum())
    noise, patches, warps, tinted = Evidence(), Evidence(), Evidence(), Evidence()
    usual: list[tuple[float, float]] = []
    # What the score is made of: see goodnet.scores.
    if is_handful(tested) and not leaders_only:
        patches = CHANNELS["patch_margin"](early, chosen, PATCHES)
    else:
        noise = CHANNELS["noise_margin"](early, chosen, NOISE)
    # Where no reference models are like this one, nothing could be made of it.
    if tables.out_of_reach(classes, tested, tested, images, usable, leaders_only) is None:
        warps = CHANNELS["warp_margin"](early, chosen, WARPS)
        tinted = colour_filters(early, *split.together(), clean_margin)
        usual = tables.usual_leads(
            tables.shipped().models, usable / len(begun.right) >= tables.SURE, begun.family
        )
    # Of the whole model.
    # The score of some dozen labels has reference models that do not know of it.
    driven = Evidence()
    if is_handful(tested) or leaders_only:
        driven = stimulation(early, split.held, split.held_labels, clean_margin)
    permuted = permutation(early, split.held, split.held_labels)
    preferred = augmentation(case, split.held, split.held_labels, clean_margin)
    searches = {
        RANKED: poorly_ranked,
        PERMUTED: permuted.cut_off,
        TINTS: tinted.skipped,
        CHANNELS_HELD: driven.skipped,
        CHANGES: preferred.skipped,
    }
    cut_off = [name for name, cut in searches.items() if cut]
    skipped.update(margins.skipped, noise.skipped, warps.skipped, patches.skipped)
    # A budget's time is not for labels that do not count any more. (Without one, what is missing is
    # another worker's.)
    hurried = case.deadline is not None
    few_of_many = classes > EVERY_LABEL and tested <= EVERY_LABEL
    left = [label for label in chosen if not (hurried and label in skipped)]
    masks = CHANNELS["mask_l1"](case, left, OF_LEADERS if few_of_many else MASKS)
    if not ranking:
        middle = len(FULL.budgets) // 2
        ranking = {label: values[middle] for label, values in margins.values.items()}
    skipped.update(masks.skipped)
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
        patches,
        sorted(skipped),
        cut_off,
        permuted,
        {label: row[0] for label, row in preferred.values.items()},
        {label: row[0] for label, row in tinted.values.items()},
        begun.leaning,
        begun.signatures,
        {label: row[0] for label, row in driven.values.items()},
        clean_margin,
        tested,
        begun.family,
        usual,
    )
