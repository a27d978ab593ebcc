"""Neural Cleanse's repair (Wang et al. 2019, section VI.B): unlearning the trigger.

Fine-tunes for one epoch on a tenth of the data, with the reversed trigger stamped on a fifth of the
samples, whose labels stay what they are: the network learns to ignore the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.classifier import Classifier
from goodnet.remedies.patient import Patient
from goodnet.trigger import Stamp


@dataclass(frozen=True)
class UnlearningSettings:
    """The paper's settings; the paper's optimiser is that of the training, Adam here.

    Attributes:
        epochs: passes over the samples.
        data_share: the share of the clean images that is used. The paper counts on the training
            set, of which a defender's validation set is a small part.
        stamped_share: the share of the samples that carry the reversed trigger.
        learning_rate: Adam's.
        batch: images in a step.
        every_trigger: stamp triggers of all families instead of the mask alone.
    """

    epochs: int = 1
    data_share: float = 0.1
    stamped_share: float = 0.2
    learning_rate: float = 1e-3
    batch: int = 32
    every_trigger: bool = False


PAPER = UnlearningSettings()
THOROUGH = UnlearningSettings(
    epochs=40, data_share=1.0, stamped_share=0.5, learning_rate=1e-3, every_trigger=True
)
"""All images, all triggers, many steps: for a validation set of a few hundred images."""


def unlearning(patient: Patient, settings: UnlearningSettings = PAPER) -> Classifier:
    """A fine-tuned copy of the classifier. Batch norm keeps its statistics: a few images would
    spoil them.

    Args:
        patient: the BadNet, its reversed triggers and clean images.
        settings: how long, on how much.
    """
    cured = patient.classifier.copy()
    generator = torch.Generator().manual_seed(patient.seed)
    count = max(1, round(settings.data_share * len(patient.images)))
    chosen = torch.randperm(len(patient.images), generator=generator)[:count]
    images, labels = patient.images[chosen], patient.labels[chosen]
    parameters = [p for p in cured.module.parameters() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    for _ in range(settings.epochs):
        samples = _stamp_some(patient, images, labels, settings, generator)
        for batch in torch.split(torch.randperm(count, generator=generator), settings.batch):
            optimiser.zero_grad()
            loss = functional.cross_entropy(cured(samples[batch]), labels[batch])
            torch.autograd.backward(loss)
            optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return cured


def _stamp_some(
    patient: Patient,
    images: Tensor,
    labels: Tensor,
    settings: UnlearningSettings,
    generator: torch.Generator,
) -> Tensor:
    """``images`` with the reversed triggers on a random share of them, targets taking turns."""
    samples = images.clone()
    picked = torch.randperm(len(images), generator=generator)
    picked = picked[: round(settings.stamped_share * len(images))]
    triggers: list[Stamp] = [patient.masks[target] for target in sorted(patient.masks)]
    if settings.every_trigger:
        triggers = [t for target in sorted(patient.triggers) for t in patient.triggers[target]]
    for turn, index in enumerate(picked.tolist()):
        trigger = triggers[turn % len(triggers)]
        if int(labels[index]) != trigger.target:
            samples[index] = trigger.apply(samples[index][None])[0]
    return samples
