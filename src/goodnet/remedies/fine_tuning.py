"""Plain fine-tuning on clean images, the baseline that every repair is compared with.

Minimises the mean cross entropy over the clean images and nothing else; triggers are not used. A
network forgets a backdoor this way only as far as the clean images happen to move the weights that
it needs: Liu, Dolan-Gavitt and Garg 2018 (section III) found that it need not move them at all.

The settings are BackdoorBench's (Wu et al. 2022): stochastic gradient descent with momentum .9,
rate .01 falling as a half cosine. There, 100 epochs over 2,500 images are 1,000 steps of 256; here
images are few, and what counts is the number of steps, whatever the number of images: 300.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.classifier import Classifier
from goodnet.remedies.patient import Patient

Zeros = Sequence[tuple[int, Tensor]]
"""What stays nought: the place of a parameter among the module's, and a bool mask of its shape or
one that broadcasts to it."""


@dataclass(frozen=True)
class FineTuningSettings:
    """How the images are learnt.

    Attributes:
        steps: of descent, in whole epochs.
        learning_rate: of the first step.
        momentum: of the descent.
        batch: images in a step.
        tries: how many rates are tried. Where a network cannot bear one (it may have no norms, take
            pixels in 0..255, or have been pruned) and knows the images worse than before, the next
            is a tenth of it.
    """

    steps: int = 300
    learning_rate: float = 0.01
    momentum: float = 0.9
    batch: int = 32
    tries: int = 3


DEFAULT = FineTuningSettings()


def fine_tuning(patient: Patient, settings: FineTuningSettings = DEFAULT) -> Classifier:
    """A copy of the classifier, trained further on the clean images. Batch norm keeps its
    statistics: a few images would spoil them.

    Args:
        patient: the BadNet and clean images; its triggers are not looked at.
        settings: how long and how fast.
    """
    return fine_tuned(patient.classifier, patient.images, patient.labels, patient.seed, settings)


def fine_tuned(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    seed: int,
    settings: FineTuningSettings = DEFAULT,
    zeros: Zeros = (),
) -> Classifier:
    """A copy of ``classifier`` trained on ``images``; where no rate will do, as it was.

    Args:
        classifier: is not changed.
        images: float32 ``(n, C, H, W)`` in [0, 1].
        labels: int64 ``(n,)``.
        seed: of the order of the images.
        settings: how long and how fast.
        zeros: weights that are nought, and stay so.
    """
    rate = settings.learning_rate
    before = _loss(classifier, images, labels)
    for _ in range(settings.tries):
        cured = classifier.copy()
        _train(cured, images, labels, seed, settings, rate, zeros)
        # Also false where the loss is NaN.
        if _loss(cured, images, labels) <= before:
            return cured
        rate /= 10
    return classifier.copy()


def blank(classifier: Classifier, zeros: Zeros) -> None:
    """Sets ``zeros`` to nought, in place."""
    parameters = list(classifier.module.parameters())
    with torch.no_grad():
        for place, mask in zeros:
            parameters[place].masked_fill_(mask, 0.0)


def _loss(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    return float(functional.cross_entropy(classifier.logits(images), labels))


def _train(
    cured: Classifier,
    images: Tensor,
    labels: Tensor,
    seed: int,
    settings: FineTuningSettings,
    rate: float,
    zeros: Zeros,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in cured.module.parameters() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    epochs = math.ceil(settings.steps / math.ceil(len(images) / settings.batch))
    optimiser = torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images), generator=generator), settings.batch):
            optimiser.zero_grad()
            loss = functional.cross_entropy(cured(images[batch]), labels[batch])
            torch.autograd.backward(loss)
            optimiser.step()
            blank(cured, zeros)
        falling.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
