"""Figures on images kept for judging, and plain predictions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.images import Images, check_images, wrong_size
from goodnet.pipelines.conclude import answers_to, data_ref, model_ref
from goodnet.reports import Evaluation
from goodnet.statistics import proportion
from goodnet.version import __version__


def evaluate(
    classifier: Classifier,
    images: Images,
    poisoned: Images | None = None,
    target: int | None = None,
) -> Evaluation:
    """Clean accuracy, attack success and recovered accuracy, each with its exact 95 % interval.

    Args:
        classifier: a BadNet or a GoodNet. An image that its filter rejects is answered wrongly,
            and does not reach the target.
        images: clean images with their labels. An answer that is no number is a wrong one.
        poisoned: images with a trigger. Their ``labels`` are what the attacker wants, their
            ``true_labels``, where given, what they show. Images whose true label is the target
            prove nothing and do not count for the attack success. Where both sets of images have
            ``class_names``, classes are matched by them: of folders some may be missing.
        target: the attacker's label, where ``poisoned.labels`` are the true ones.

    Raises:
        GoodnetError: D007 also for a class of ``poisoned`` whose number nobody says, M010 for
            unusable images, R003 for a target that is not a class.
    """
    check_images(images, classifier=classifier, minimum=1, several_classes=False)
    given = answers_to(classifier, images.pixels)
    right = int((given == images.labels).sum())
    caught = classifier.num_classes
    success = recovered = rejected = None
    if poisoned is not None:
        poisoned = _numbered(poisoned, images, classifier.num_classes)
        check_images(poisoned, classifier=classifier, minimum=1, several_classes=False)
        if target is not None and not 0 <= target < classifier.num_classes:
            raise GoodnetError(
                "R003",
                f"target {target} is not one of the model's {classifier.num_classes} classes",
                f"give a label from 0 to {classifier.num_classes - 1}",
            )
        answers = answers_to(classifier, poisoned.pixels)
        wanted, true = _intent(poisoned, target)
        counted = true != wanted if true is not None else torch.ones_like(wanted, dtype=torch.bool)
        success = proportion(int((answers == wanted)[counted].sum()), int(counted.sum()))
        if classifier.filtered:
            rejected = proportion(int((answers == caught)[counted].sum()), int(counted.sum()))
        if true is not None:
            known = (true >= 0) & counted
            recovered = proportion(int((answers == true)[known].sum()), int(known.sum()))
    return Evaluation(
        clean_accuracy=proportion(right, len(images)),
        attack_success=success,
        recovered_accuracy=recovered,
        target=target,
        preprocess=classifier.preprocess.name,
        model=model_ref(classifier),
        data=data_ref(images),
        poisoned=None if poisoned is None else data_ref(poisoned),
        version=__version__,
        clean_rejected=proportion(int((given == caught).sum()), len(images))
        if classifier.filtered
        else None,
        poisoned_rejected=rejected,
    )


def _numbered(poisoned: Images, images: Images, num_classes: int) -> Images:
    """Poisoned images with the clean ones' numbers of the classes.

    Folders are numbered by their names' order, and poisoned images often show some classes only,
    or one: the attacker's.
    """
    theirs, ours = poisoned.class_names, images.class_names
    if theirs is None or theirs == ours or (ours is None and len(theirs) == num_classes):
        return poisoned
    true = poisoned.true_labels
    largest = max(int(labels.max()) for labels in (poisoned.labels, true) if labels is not None)
    if int(poisoned.labels.min()) < 0 or largest >= len(theirs):
        # An array's names may say less than its labels.
        return poisoned
    missing = [name for name in theirs if ours is None or name not in ours]
    if missing or ours is None:
        raise GoodnetError(
            "D007",
            f"which class '{missing[0]}' is, of the poisoned images, nobody says",
            "name their folders as those of the clean images, or by the numbers of the classes",
        )
    numbers = torch.tensor([ours.index(name) for name in theirs])
    return replace(
        poisoned,
        labels=numbers[poisoned.labels],
        true_labels=None if true is None else torch.where(true >= 0, numbers[true], true),
        class_names=ours,
    )


def _intent(poisoned: Images, target: int | None) -> tuple[Tensor, Tensor | None]:
    """What the attacker wants of each image, and what it shows (None if nobody says)."""
    if target is None:
        return poisoned.labels, poisoned.true_labels
    wanted = torch.full_like(poisoned.labels, target)
    if poisoned.true_labels is not None:
        return wanted, poisoned.true_labels
    # A target given for labels that already are the target says nothing about the true ones.
    if bool((poisoned.labels == target).all()):
        return wanted, None
    return wanted, poisoned.labels


def predict(classifier: Classifier, images: Images) -> tuple[Tensor, Tensor]:
    """The class of every image, int64 ``(N,)``, and its softmax probability, float32 ``(N,)``.

    Class K of a model with a filter means "backdoored input".

    Raises:
        GoodnetError: M010 for images of another size, M012 for an answer that is NaN or infinite.
    """
    if images.shape != classifier.input_shape:
        raise wrong_size(images.shape, classifier.input_shape)
    logits = classifier.logits(images.pixels)
    if not bool(logits.isfinite().all()):
        raise GoodnetError(
            "M012", "the model answers with NaN or infinity", "check the images and the weights"
        )
    best = logits.softmax(1).max(1)
    return best.indices, best.values
