"""The calibration tables: what the statistics of a scan are on clean reference models.

``calibration.json`` is made by ``benchmarks/calibrate.py`` from scans of clean models of the zoo's
calibration split by this version's default settings. It holds their numbers, not fitted constants,
so that a reader can check what is made of them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from goodnet.calibration import Maxima, Reference, maxima, reference

FILE = "calibration.json"


class ReferenceModel(BaseModel):
    """What one clean model's scan said.

    Attributes:
        name: of the model in the zoo.
        num_classes: K.
        batch_norm: whether the network has such layers.
        images: clean images that the scan had.
        scores: of the labels that no ranking had chosen.
        highest: the largest score of all.
        permutation: the statistic of the permutation test, if it could be taken.
        preferred: the largest margin of a label under a small change of the images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_classes: int
    batch_norm: bool
    images: int
    scores: list[float]
    highest: float
    permutation: float | None
    preferred: float


class Tables(BaseModel):
    """All reference models, and which state of the code scanned them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    made: str
    models: list[ReferenceModel]


UNSURE = -1.0
"""Below this margin, in units of a clean image's, how little a change prefers a label says nothing:
networks differ there that have nothing to do with each other."""

FEWEST_CLASSES, MOST_CLASSES = 8, 2000
"""The tables' reach: reference models have 10 to 610 classes, and no number depends on the classes
so strongly that a few times more of them would be another thing. With fewer than 8 labels the
spread of the others says too little."""

FEWEST_IMAGES = 60
"""Reference models are scanned with 100 to 400 images; with much fewer the numbers scatter more."""


@lru_cache(maxsize=1)
def shipped() -> Tables:
    """The tables that come with the package."""
    text = resources.files("goodnet").joinpath(FILE).read_text("utf-8")
    return Tables.model_validate_json(text)


def out_of_reach(num_classes: int, compared: int, images: int) -> str | None:
    """Why the tables say nothing of a scan; None if they do.

    Args:
        num_classes: K of the model.
        compared: how many labels were held against each other.
        images: clean images that the scan could use.
    """
    if not shipped().models:
        return "there are no reference models"
    if compared < FEWEST_CLASSES or num_classes > MOST_CLASSES:
        few = compared < FEWEST_CLASSES
        told = f"{compared} labels" if few else f"{num_classes:,} classes"
        return f"the reference models have 10 to 610 classes, which says nothing of {told}"
    if images < FEWEST_IMAGES:
        return f"the reference models were scanned with 100 to 400 images, not with {images}"
    return None


@lru_cache(maxsize=1)
def of_models() -> dict[str, Maxima | None]:
    """What the statistics of whole models are, by their names in :class:`ReferenceModel`."""
    models = shipped().models
    return {
        "highest": maxima([m.highest for m in models], [m.num_classes for m in models]),
        "permutation": maxima([m.permutation for m in models if m.permutation is not None]),
        "preferred": maxima([max(model.preferred, UNSURE) for model in models]),
    }


@lru_cache(maxsize=1)
def of_labels() -> Reference | None:
    """What the scores of single labels are."""
    return reference([model.scores for model in shipped().models])


def in_words() -> str:
    """What a p-value rests on."""
    models = shipped().models
    classes = [model.num_classes for model in models]
    return f"by scans of {len(models)} clean models of {min(classes)} to {max(classes)} classes"
