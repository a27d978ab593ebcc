"""One number a label: how far it stands out from the other labels of its own network.

Several channels are put on one scale. None of the numbers is a probability yet; what they are worth
is what the same numbers are on clean networks (:mod:`goodnet.calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goodnet.ahead import LEADS, ahead_index, leads
from goodnet.statistics import MAD_TO_SIGMA, mad_index

Floats = NDArray[np.float64]

HANDFUL = 20
"""Up to so many labels are held against each other by masks, margins and patches. Of more, patches
are not tried: what they do on clean networks of some dozen classes is not known well enough."""

CEILING = 8.0
"""No index counts for more than this: beyond it a robust z says nothing more."""

NOISE_WEIGHT = 0.3
"""Of the margin from noise, which is the first to be fooled by a label that is easy by nature."""

MARGIN_FLOOR, MASK_FLOOR, NOISE_FLOOR = 0.2, 0.25, 0.1
"""The least spread that labels are taken to have. The spread of ten labels is itself chance: where
they happen to lie close together, an ordinary label would look like an outlier. Of margins (under
warps, too) in units of the network's own clean margin; of mask and noise margin in logarithms."""


AGREEMENT = 1.5
"""A mask's index counts up to so many times the larger one of margin and patch."""

TINT_UNIT = 0.5
"""What a label's number under a colour filter counts in: of clean networks half have at most .03,
and a filter that makes the model as sure as of a clean image, in colours that the label's images do
not have, has 1."""

LEAN_UNIT, LEAN_MOST = 0.15, 4.0
"""What a label's lead in the answers to clean images counts in, in deviations of an image's logits,
and the most that it counts for."""


@dataclass(frozen=True)
class Raw:
    """What the channels measured, label -> number; a label that failed is absent.

    Attributes:
        margins: universal margin for each L2 budget, in logits.
        masks: L1 norm of the smallest mask, in pixels.
        noise: margin from noise, in logits.
        warps: margin under a warp of each reach, in logits.
        patches: margin under the best patch, in logits.
        tinted: how far a colour filter leads to it, 1 for as sure as of a clean image
            (:mod:`goodnet.evidence.colour_filter`).
        leaning: how far clean images lean to each label of the model, measured or not, in
            deviations of an image's logits (:mod:`goodnet.evidence.lean`).
        inner: what the network itself tells of each label, measured or not: an index
            (:mod:`goodnet.inner`).
        clean_margin: the median difference between the two largest logits of a clean image, in
            logits: what a margin is worth in this network.
        usual_leads: what is usual among networks like this one
            (:func:`goodnet.tables.usual_leads`); empty where that is not known.
    """

    margins: Mapping[int, Sequence[float]] = field(default_factory=dict)
    masks: Mapping[int, float] = field(default_factory=dict)
    noise: Mapping[int, float] = field(default_factory=dict)
    warps: Mapping[int, Sequence[float]] = field(default_factory=dict)
    patches: Mapping[int, float] = field(default_factory=dict)
    tinted: Mapping[int, float] = field(default_factory=dict)
    leaning: Mapping[int, float] = field(default_factory=dict)
    inner: Mapping[int, float] = field(default_factory=dict)
    clean_margin: float = 0.0
    usual_leads: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Scores:
    """The evidence of every measured label, arrays of one length.

    Attributes:
        labels: the class numbers.
        margin_index: robust z of the universal margin, mean over the budgets.
        anomaly_index: Neural Cleanse's MAD index of the mask's L1 norm.
        mask_index: robust z of -log L1: norms are skewed, and the plain index saturates at
            median/MAD however small a mask is.
        noise_index: robust z of the log margin from noise.
        warp_index: robust z of the margin under a warp, mean over the reaches; not in the score.
        patch: margin under the best patch, in units of a clean image's; not in the score.
        patch_index: robust z of it.
        tint_index: how far a colour filter leads to it, in :data:`TINT_UNIT`; 0 where none was
            tried. No z: of most labels it is nought.
        lean_index: how far clean images lean to it before all others, see :func:`lean_index`.
        inner_index: what the network itself tells of it, as far as that is in the score: 0 where
            nothing was measured, or the network has more than :data:`HANDFUL` classes.
        leads: how far a small change takes it ahead, in clean images' margins
            (:func:`goodnet.ahead.leads`), ``(LEADS, n)``.
        ahead_index: the same by what is usual among networks, as far as that is in the score: 0
            where nobody knows, or the network has more than :data:`HANDFUL` classes.
        score: one number of all, see :func:`handful`, :func:`agreement` and :func:`total`.
    """

    labels: list[int]
    margin_index: Floats
    anomaly_index: Floats
    mask_index: Floats
    noise_index: Floats
    warp_index: Floats
    patch: Floats
    patch_index: Floats
    tint_index: Floats
    lean_index: Floats
    inner_index: Floats
    leads: Floats
    ahead_index: Floats
    score: Floats


def combine(
    labels: Sequence[int],
    raw: Raw,
    reference: Sequence[int],
    wanted: int | None = None,
    apart: Collection[int] = (),
) -> Scores:
    """The indices of ``labels`` against the labels in ``reference``.

    Args:
        labels: what was measured.
        raw: the channels' numbers.
        reference: the labels that say what is usual: all of them, or random controls where only
            the leaders and controls were measured (the leaders are no fair sample).
        wanted: how many labels were to be measured, if there was not time for all: the channels
            were chosen by that.
        apart: labels that do not tell what is usual, though they are among the reference: targets
            that are known already, which would make the spread of ten labels so large that no
            further one stands out.
    """
    usual = np.isin(np.array(labels), np.array(sorted({*reference} - {*apart})))
    floor = MARGIN_FLOOR * max(raw.clean_margin, 1e-6)
    margin = _mean_index(labels, raw.margins, usual, floor)
    warp = _mean_index(labels, raw.warps, usual, floor)
    sizes = np.array([raw.masks.get(label, np.nan) for label in labels], dtype=np.float64)
    mask = -robust_index(np.log(np.maximum(sizes, 1e-6)), usual, MASK_FLOOR)
    patched = np.array([raw.patches.get(label, np.nan) for label in labels], dtype=np.float64)
    patch = patched / max(raw.clean_margin, 1e-6)
    patch_index = robust_index(patch, usual, MARGIN_FLOOR)
    noises = np.array([raw.noise.get(label, np.nan) for label in labels], dtype=np.float64)
    noise = robust_index(np.log(np.maximum(noises, 1e-3)), usual, NOISE_FLOOR)
    tint = np.array([raw.tinted.get(label, 0.0) for label in labels], dtype=np.float64) / TINT_UNIT
    leading = lean_index(raw.leaning)
    lean = np.array([leading.get(label, 0.0) for label in labels], dtype=np.float64)
    # Of a network of many classes it goes with the other evidence, and is no further one.
    few = is_handful(len(raw.inner))
    inner = np.array([raw.inner.get(n, 0.0) if few else 0.0 for n in labels], dtype=np.float64)
    led = leads(_small_changes(labels, raw, patch), usual)
    ahead = np.zeros(len(labels))
    if is_ranked(labels, reference):
        score = total(margin, mask, noise)
    elif is_handful(len(labels) if wanted is None else wanted):
        # A filter is one more change of the image, but told by its colours, not by other labels.
        score = (handful(margin, mask, patch_index) + tint) * corroboration(lean)
        ahead = ahead_index(led, raw.usual_leads)
        score = score + np.maximum(inner, 0.0) + ahead
    else:
        score = agreement(margin, mask, noise)
    anomaly = _anomaly(sizes, usual)
    return Scores(
        list(labels),
        margin,
        anomaly,
        mask,
        noise,
        warp,
        patch,
        patch_index,
        tint,
        lean,
        inner,
        led,
        ahead,
        score,
    )


def _small_changes(labels: Sequence[int], raw: Raw, patch: Floats) -> list[Floats]:
    """Margins at the least budgets and under a patch, in units of a clean image's."""
    unit, few = max(raw.clean_margin, 1e-6), LEADS - 1
    rows = [[*raw.margins.get(n, ()), *[math.nan] * few][:few] for n in labels]
    margins = np.array(rows, dtype=np.float64).reshape(len(rows), few) / unit
    return [*margins.T, patch]


def _mean_index(
    labels: Sequence[int],
    margins: Mapping[int, Sequence[float]],
    usual: NDArray[np.bool_],
    floor: float,
) -> Floats:
    """The index of margins at several budgets, averaged over the budgets; NaN where one failed."""
    budgets = max((len(row) for row in margins.values()), default=0)
    if not budgets:
        return np.full(len(labels), np.nan)
    rows = [margins.get(label, [math.nan] * budgets) for label in labels]
    # The shape is said: the time may have been up before any label was measured by every channel.
    reached = np.array(rows, dtype=np.float64).reshape(len(rows), budgets)
    mean: Floats = np.mean(
        [robust_index(reached[:, b], usual, floor) for b in range(budgets)], axis=0
    )
    return mean


def is_ranked(labels: Sequence[int], reference: Sequence[int]) -> bool:
    """Whether the labels are leaders of a ranking of many, with random controls beside them."""
    return len(set(reference)) < len(set(labels))


def is_handful(labels: int) -> bool:
    """Whether so few labels are held against each other that patches are tried for them."""
    return labels <= HANDFUL


def total(margin: Floats, mask: Floats, noise: Floats) -> Floats:
    """One number for three indices, where many labels were ranked: ``(k + m + n) / sqrt(3)``.

    Each between 0 and :data:`CEILING`. Every channel counts in full, so that a large trigger, whose
    mask is not small, is seen by the other two. The price: classes that are easy by nature score
    high as well, which is why the verdict also asks how far apart the next one is.
    """
    m, k, n = (_bounded(part) for part in (margin, mask, noise))
    score: Floats = (k + m + n) / math.sqrt(3.0)
    return score


def _bounded(index: Floats) -> Floats:
    return np.clip(np.nan_to_num(index, nan=0.0), 0.0, CEILING)


def agreement(margin: Floats, mask: Floats, noise: Floats) -> Floats:
    """One number for three indices, of some labels: ``(k + min(k, m) + w min(k, n)) / (2 + w)``.

    k, m and n are the indices of mask, margin and noise margin, between 0 and :data:`CEILING`; w
    is :data:`NOISE_WEIGHT`. On clean networks one index alone is often large: noise or any faint
    change drives images to a label that is easy by nature. What is planted has a small mask as
    well, so the other two count as far as the mask agrees.
    """
    m, k, n = (_bounded(part) for part in (margin, mask, noise))
    score: Floats = (k + np.minimum(k, m) + NOISE_WEIGHT * np.minimum(k, n)) / (2 + NOISE_WEIGHT)
    return score


def handful(margin: Floats, mask: Floats, patch: Floats) -> Floats:
    """One number for three indices, of up to :data:`HANDFUL` labels: ``sqrt(min(k, 1.5 a) a)``,
    where a is ``max(m, p)``.

    k, m and p are the indices of mask, margin and patch, between 0 and :data:`CEILING`. With ten
    labels the mask's index stays low however small a mask is: its spread is itself chance, and
    large where several labels are attacked. What is planted obeys a faint change (a blend, stripes)
    or a patch in one place (a sticker, a Trojan) beyond that; what is easy by nature has an
    ordinary mask. Some networks of digits have one label whose masks are far smaller than the rest
    and which nothing else speaks for: so the mask counts as far as the others agree.
    """
    m, k, p = (_bounded(part) for part in (margin, mask, patch))
    others = np.maximum(m, p)
    score: Floats = np.sqrt(np.minimum(k, AGREEMENT * others) * others)
    return score


def lean_index(leaning: Mapping[int, float]) -> dict[int, float]:
    """By how much clean images lean to a label more than to any other, ``(b_t - max b_j) / unit``.

    Args:
        leaning: b of every label, in deviations of an image's logits.

    Returns:
        Label -> index between 0 and :data:`LEAN_MOST`: above 0 for one label at most.
    """
    order = sorted(leaning, key=lambda label: -leaning[label])
    if len(order) < 2:
        return dict.fromkeys(order, 0.0)
    lead = (leaning[order[0]] - leaning[order[1]]) / LEAN_UNIT
    return {**dict.fromkeys(order, 0.0), order[0]: min(lead, LEAN_MOST)}


def corroboration(lean: Floats) -> Floats:
    """What other evidence for a label counts by, ``sqrt(1 + l)``.

    Clean networks lean to some label as well, to one that resembles many or that they have seen
    more of. It is mostly another one than their weak spot, so the lead says something of a label
    that other evidence speaks for, and nothing by itself.
    """
    factor: Floats = np.sqrt(1.0 + lean)
    return factor


def corroborated(values: Mapping[int, float], leaning: Mapping[int, float]) -> dict[int, float]:
    """Evidence by labels, each times its :func:`corroboration`."""
    leads = lean_index(leaning)
    return {n: v * math.sqrt(1.0 + leads.get(n, 0.0)) for n, v in values.items()}


def robust_index(values: Floats, usual: NDArray[np.bool_], floor: float) -> Floats:
    """``(v - median) / hypot(1.4826 MAD, floor)``, by the median and MAD of the usual others.

    Args:
        values: ``(n,)``; NaN and infinity are kept out.
        usual: ``(n,)``, which of them tell what is usual. A value is never held against itself.
        floor: the least spread, above 0.

    Returns:
        ``(n,)``; NaN where nothing was measured or fewer than two others are known.
    """
    out = np.full(len(values), np.nan)
    known = np.isfinite(values)
    for place in np.flatnonzero(known):
        others = values[usual & known & (np.arange(len(values)) != place)]
        if len(others) >= 2:
            middle = np.median(others)
            spread = MAD_TO_SIGMA * float(np.median(np.abs(others - middle)))
            out[place] = (values[place] - middle) / math.hypot(spread, floor)
    return out


def _anomaly(sizes: Floats, usual: NDArray[np.bool_]) -> Floats:
    """The paper's index, of every size in a sample of the usual ones and itself."""
    out = np.full(len(sizes), np.nan)
    for place in np.flatnonzero(np.isfinite(sizes)):
        sample = np.append(sizes[usual & (np.arange(len(sizes)) != place)], sizes[place])
        out[place] = mad_index(sample)[-1]
    return out
