"""Fine-pruning (Liu, Dolan-Gavitt and Garg 2018): away with what sleeps on clean images.

A backdoor may live in neurons that clean images leave dormant. The channels c of the last
convolution are ordered by their mean activation over clean images and places ::

    a_c = mean | h_c(x) |

and pruned from the smallest on, until clean accuracy has fallen by what is allowed; then all that
is left is fine-tuned on the clean images, which wins back accuracy and disarms neurons that serve
both. The paper leaves the threshold to the defender; ten points are what BackdoorBench
(Wu et al. 2022) tolerates.

A channel is pruned by setting its weights to nought, those of its norm as well, and it stays so in
the fine-tuning. Where there is no convolution, what enters the last linear layer is pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.head import find_channels, find_head
from goodnet.remedies.fine_tuning import DEFAULT as TUNING
from goodnet.remedies.fine_tuning import (
    FineTuningSettings,
    Zeros,
    blank,
    fine_tuned,
)
from goodnet.remedies.patient import Patient


@dataclass(frozen=True)
class FinePruningSettings:
    """How far is pruned, and how the rest learns.

    Attributes:
        accuracy_loss: in [0, 1]: by how much clean accuracy on the repair images may fall before
            the fine-tuning.
        looks: how often at most accuracy is looked at; with more channels, several go at once.
        tuning: of the fine-tuning.
    """

    accuracy_loss: float = 0.1
    looks: int = 64
    tuning: FineTuningSettings = TUNING


DEFAULT = FinePruningSettings()


def fine_pruning(patient: Patient, settings: FinePruningSettings = DEFAULT) -> Classifier:
    """A pruned and fine-tuned copy of the classifier. Batch norm keeps its statistics.

    Args:
        patient: the BadNet and clean images; its triggers are not looked at.
        settings: how far, and how the rest learns.

    Raises:
        GoodnetError: M013 when there is neither a convolution nor a last linear layer.
    """
    pruned, zeros = _prune(patient, settings)
    return fine_tuned(pruned, patient.images, patient.labels, patient.seed, settings.tuning, zeros)


def _prune(patient: Patient, settings: FinePruningSettings) -> tuple[Classifier, Zeros]:
    """The network with as many channels pruned as accuracy allows, and which weights those are."""
    sizes, tensors = _prunable(patient.classifier, patient.images)
    order = torch.argsort(sizes, stable=True)
    least = _accuracy(patient.classifier, patient) - settings.accuracy_loss
    best, kept = patient.classifier.copy(), list[tuple[int, Tensor]]()
    step = -(-len(order) // settings.looks)
    for count in range(step, len(order), step):
        gone = torch.zeros(len(order), dtype=torch.bool)
        gone[order[:count]] = True
        zeros = [
            (place, gone.view([-1 if axis == along else 1 for axis in range(ndim)]))
            for place, along, ndim in tensors
        ]
        trial = patient.classifier.copy()
        blank(trial, zeros)
        if _accuracy(trial, patient) < least:
            break
        best, kept = trial, zeros
    return best, kept


def _prunable(classifier: Classifier, images: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Mean activation of each channel ``(C,)``, and the parameters that make it: which one, along
    which of its axes the channels lie, of how many.
    """
    parameters = list(classifier.module.parameters())
    # By where they lie: what a head gives of a convolution is a view.
    places = {parameter.data_ptr(): place for place, parameter in enumerate(parameters)}
    try:
        channels = find_channels(classifier, images)
        sizes, tensors, axis = channels.sizes, channels.tensors, 0
    except GoodnetError as error:
        if error.code != "M013":
            raise
        head = find_head(classifier, images[:8])
        sizes, tensors = head.features(images).abs().mean(0), (head.weight,)
        axis = 0 if head.transposed else 1
    found = [places[tensor.data_ptr()] for tensor in tensors]
    return sizes, [(place, axis, parameters[place].ndim) for place in found]


def _accuracy(classifier: Classifier, patient: Patient) -> float:
    right = classifier.logits(patient.images).argmax(1) == patient.labels
    return float(right.float().mean())
