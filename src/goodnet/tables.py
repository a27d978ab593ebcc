"""The calibration tables: what the statistics of a scan are on clean reference models.

``calibration.json`` is made by ``benchmarks/calibrate.py`` from scans of clean models of the zoo's
calibration split by this version's default settings. It holds their numbers, not fitted constants,
so that a reader can check what is made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import numpy as np
from pydantic import BaseModel, ConfigDict

from goodnet.calibration import FEWEST_MODELS, Maxima, Reference, maxima, reference
from goodnet.reports import Family
from goodnet.scores import HANDFUL

FILE = "calibration.json"


class ReferenceModel(BaseModel):
    """What one clean model's scan said.

    Attributes:
        name: of the model in the zoo.
        num_classes: K.
        batch_norm: whether the network has such layers.
        family: of networks, see :func:`goodnet.family.family`.
        images: clean images that the scan had.
        accuracy: the model's, on images that nobody trained or scanned with.
        ranked: whether there were so many labels that they were ranked first; then the score is
            another one (:func:`goodnet.scores.total`).
        scores: of the labels that no ranking had chosen; empty where the score was not measured.
        highest: the largest score of all; None where it was not measured.
        together: how far several labels stand out, each without the others
            (:mod:`goodnet.together`); None where it was not measured.
        joint: how much all kinds of evidence speak for one label, by the other models
            (:mod:`goodnet.joint`); None where the score was not measured.
        leads: the largest of each kind of lead (:func:`goodnet.ahead.leads`), in clean images'
            margins; empty where patches were not tried.
        permutation: the statistic of the permutation test, if it could be taken.
        preferred: the largest margin of a label under a small change of the images.
        warped: the largest index of a label under a warp; None where it was not measured.
        tinted: the largest number of a label under a colour filter; None where not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_classes: int
    batch_norm: bool
    family: Family
    images: int
    accuracy: float
    ranked: bool
    scores: list[float]
    highest: float | None
    together: float | None = None
    joint: float | None = None
    leads: tuple[float, ...] = ()
    permutation: float | None
    preferred: float
    warped: float | None
    tinted: float | None = None


class Tables(BaseModel):
    """All reference models, and which state of the code scanned them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    made: str
    models: list[ReferenceModel]


UNSURE = -1.0
"""Below this margin, in units of a clean image's, how little a change prefers a label says nothing:
networks differ there that have nothing to do with each other."""

FEWEST_CLASSES, MOST_CLASSES = 8, 200
"""The tables' reach: reference models have 10 to 43 classes, and the p-value allows for a few times
more of them. With fewer than 8 labels the spread of the others says too little."""

SURE = 0.7
"""A model that is right less often is unsure of everything: small changes of the images take its
answers to one label, further than any of a sure one's. By these, and by how far ahead a label is,
it is held against unsure models. (Reference models are right on .52 to .67, or on .77 and more. By
the score, in which that is allowed for, they do not differ: the highest is 3.2 in the mean of 35
unsure models of few classes, and 3.0 of 106 others.)"""

TINTED_TAIL = 0.4
"""Of most clean models the number under a colour filter is nought or nearly so, and it does not
grow with the labels: the rest of the reference models tells its tail, which falls off as an
exponential does (the mean excess over .04, .08 and .14 is the same, .15)."""

LONG_TAIL = 0.2
"""A sum of logarithms has a longer tail than Gumbel's law of maxima allows for: by that, 13 of
1,000 clean models have a p-value of .003, each held against the 226 others, and 26 one of .01. By
the tail of a fifth of them these are 4 and 13; by that of a tenth or two fifths much the same. The
score of the third label (:mod:`goodnet.together`) is no maximum, either: 17 of 1,000 have .01 by
Gumbel's law, and 11 by this tail."""

FEWEST_IMAGES, FEWEST_RIGHT = 60, 40
"""Reference models are scanned with 100 to 400 images, of which they get 52 and more right; with
much fewer the numbers scatter more."""


@lru_cache(maxsize=1)
def shipped() -> Tables:
    """The tables that come with the package."""
    text = resources.files("goodnet").joinpath(FILE).read_text("utf-8")
    return Tables.model_validate_json(text)


@lru_cache(maxsize=1)
def digest() -> str:
    """SHA-256, hex, of these tables: answers by others are other answers."""
    return hashlib.sha256(resources.files("goodnet").joinpath(FILE).read_bytes()).hexdigest()


def out_of_reach(
    num_classes: int,
    wanted: int,
    compared: int,
    images: int,
    right: int,
    ranked: bool,
    family: Family = "other",
) -> str | None:
    """Why the tables say nothing of a scan; None if they do.

    Args:
        num_classes: K of the model.
        wanted: how many labels were to be held against each other.
        compared: how many were.
        images: clean images that the scan had.
        right: those of them that it could use, which the model gets right.
        ranked: whether the labels were ranked first.
        family: of networks.
    """
    if of_models(num_classes, ranked, family=family)["highest"] is None:
        return "there are too few reference models of this kind"
    if compared < FEWEST_CLASSES or num_classes > MOST_CLASSES:
        few = compared < FEWEST_CLASSES
        told = f"{compared} labels" if few else f"{num_classes:,} classes"
        return f"the reference models have 10 to 43 classes, which says nothing of {told}"
    if wanted < num_classes and not ranked:
        # They may have been chosen by what is known of them, and are no fair sample.
        return f"the reference models' labels were all compared, not {wanted} of {num_classes}"
    if images < FEWEST_IMAGES:
        return f"the reference models were scanned with 100 to 400 images, not with {images}"
    if right < FEWEST_RIGHT:
        return f"the reference models get 52 images and more right, not {right}"
    return None


def _kind(num_classes: int, ranked: bool) -> str:
    """What a model's reference is keyed by: the score of a handful of labels is one of its own, and
    of more labels the easiest stands out further, and models differ more in how far.
    """
    return "ranked" if ranked else "few classes" if num_classes <= HANDFUL else "some classes"


def _alike(
    num_classes: int, ranked: bool, family: Family, every: Sequence[ReferenceModel] | None = None
) -> list[ReferenceModel]:
    """The models that a model's scores are held against: of few classes those of its own family."""
    kind = _kind(num_classes, ranked)
    every = shipped().models if every is None else every
    alike = [m for m in every if _kind(m.num_classes, m.ranked) == kind]
    return [m for m in alike if m.family == family] if kind == "few classes" else alike


@lru_cache(maxsize=64)
def of_models(
    num_classes: int, ranked: bool, sure: bool = True, family: Family = "other"
) -> dict[str, Maxima | Reference | None]:
    """The same of :func:`laws`, of the models that come with the package."""
    return laws(shipped().models, num_classes, ranked, sure, family)


def laws(
    every: Sequence[ReferenceModel], num_classes: int, ranked: bool, sure: bool, family: Family
) -> dict[str, Maxima | Reference | None]:
    """What the statistics of whole models are, by their names in :class:`ReferenceModel`.

    Args:
        every: reference models.
        num_classes: K of the model that is judged.
        ranked: whether the score is that of labels that were ranked first. The other statistics are
            held against all models that were not: those of many classes do not come near them.
        sure: whether the model is right often, see :data:`SURE`.
        family: of networks. The scores are keyed by it, and what small changes do, where there are
            enough models of the family. The other statistics are lower of transformers, too, and
            held against those of all models: that is the careful way.
    """
    models = [model for model in every if not model.ranked]
    kind = _kind(num_classes, ranked)
    alike = [m for m in _alike(num_classes, ranked, family, every) if m.highest is not None]
    warped = [model for model in models if model.warped is not None]
    return {
        "highest": maxima([m.highest or 0.0 for m in alike], [m.num_classes for m in alike]),
        "together": reference([m.together for m in alike if m.together is not None], LONG_TAIL),
        "joint": reference([m.joint for m in models if m.joint is not None], LONG_TAIL),
        "permutation": maxima([m.permutation for m in models if m.permutation is not None]),
        "preferred": maxima(_preferred(models, sure, family if kind == "few classes" else None)),
        "warped": maxima([m.warped or 0.0 for m in warped], [m.num_classes for m in warped]),
        "tinted": reference([m.tinted for m in models if m.tinted is not None], TINTED_TAIL),
    }


def _preferred(models: list[ReferenceModel], sure: bool, family: Family | None) -> list[float]:
    """What a small change does to models that are right as often, of the same family if it can be.

    Of 36 clean transformers the label that gains most comes to -.57 of a clean image's margin in
    the mean and to .07 at most, of 96 others to .79.
    """
    as_sure = [model for model in models if (model.accuracy >= SURE) == sure]
    alike = [model for model in as_sure if model.family == family]
    chosen = alike if len(alike) >= FEWEST_MODELS else as_sure
    return [max(model.preferred, UNSURE) for model in chosen]


def usual_leads(
    models: Sequence[ReferenceModel], sure: bool, family: Family
) -> list[tuple[float, float]]:
    """What is usual of the leads of few labels in clean networks that are as sure, of the same
    family if it can be.

    Returns:
        (mean, standard deviation) of the largest lead of each kind; nothing where there are too few
        models.
    """
    as_sure = [m for m in models if m.leads and (m.accuracy >= SURE) == sure]
    alike = [model for model in as_sure if model.family == family]
    chosen = alike if len(alike) >= FEWEST_MODELS else as_sure
    if len(chosen) < FEWEST_MODELS:
        return []
    rows = np.array([model.leads for model in chosen], dtype=np.float64)
    return list(zip(rows.mean(0).tolist(), rows.std(0, ddof=1).tolist(), strict=True))


@lru_cache(maxsize=64)
def of_labels(num_classes: int, ranked: bool, family: Family = "other") -> Reference | None:
    """What the scores of single labels are."""
    return reference([model.scores for model in _alike(num_classes, ranked, family)])


def in_words(num_classes: int, ranked: bool, family: Family = "other") -> str:
    """What a p-value rests on."""
    models = [m for m in _alike(num_classes, ranked, family) if m.highest is not None]
    least, most = (f(m.num_classes for m in models) for f in (min, max))
    told = f"{least}" if least == most else f"{least} to {most}"
    few = _kind(num_classes, ranked) == "few classes"
    like = {"transformer": "transformers", "other": "models without attention"}[family]
    return f"by scans of {len(models)} clean {like if few else 'models'} of {told} classes"
