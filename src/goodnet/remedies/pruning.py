"""Neural Cleanse's pruning (Wang et al. 2019, section VI.A): the neurons that a trigger wakes.

Let h(x) be what enters the last linear layer and T a reversed trigger. Neurons are ranked by ::

    g_d = mean over clean images of other classes [ h_d(T(x)) - h_d(x) ]

(the largest of all triggers), and pruned from the top: column d of the last layer's weight becomes
nought. It stops as soon as the reversed triggers fail on the repair images, or before clean
accuracy on them falls too far. The network keeps its shape, so that it is written as it was read.

It catches backdoors with neurons of their own. Where they share them with the classes, which small
networks do as a rule, accuracy gives out first, and the repair stays half done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.head import Head, find_head
from goodnet.remedies.patient import Patient

CHUNK = 512
"""Images that are stamped at a time."""


@dataclass(frozen=True)
class PruningSettings:
    """When to stop.

    Attributes:
        attack_success: in [0, 1]: what share of stamped repair images may still get the target.
        accuracy_loss: in [0, 1]: by how much clean accuracy on the repair images may fall.
    """

    attack_success: float = 0.02
    accuracy_loss: float = 0.02


DEFAULT = PruningSettings()


def pruning(patient: Patient, settings: PruningSettings = DEFAULT) -> Classifier:
    """A copy of the classifier whose last layer no longer listens to some of its features.

    Args:
        patient: the BadNet, its reversed triggers and clean images.
        settings: when to stop.

    Raises:
        GoodnetError: M013 when the network does not end in a linear layer.
    """
    cured = patient.classifier.copy()
    head = find_head(cured, patient.images[:8])
    clean = head.features(patient.images)
    stamped = _stamped(patient, head)
    weight = head.weight.detach().T if head.transposed else head.weight.detach()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach()
    order = _ranked(clean, patient.labels, stamped)
    count = _enough(clean, patient.labels, stamped, weight, bias, order, settings)
    pruned = order[:count]
    with torch.no_grad():
        if head.transposed:
            head.weight[pruned] = 0.0
        else:
            head.weight[:, pruned] = 0.0
    return cured


def _stamped(patient: Patient, head: Head) -> list[tuple[int, Tensor]]:
    """The target of each trigger, with the features ``(n, D)`` of others' images under it."""
    found = []
    for target in sorted(patient.triggers):
        others = patient.images[patient.labels != target]
        for trigger in patient.triggers[target] if len(others) else ():
            parts = [head.features(trigger.apply(part)) for part in torch.split(others, CHUNK)]
            found.append((target, torch.cat(parts)))
    return found


def _ranked(clean: Tensor, labels: Tensor, stamped: list[tuple[int, Tensor]]) -> Tensor:
    """The features, ``(D,)``, those first that a trigger raises most; others are left out."""
    rises = [rows.mean(0) - clean[labels != target].mean(0) for target, rows in stamped]
    rise = torch.stack([torch.zeros(clean.shape[1]), *rises]).max(0).values
    order = torch.argsort(rise, descending=True, stable=True)
    return order[rise[order] > 0]


def _enough(
    clean: Tensor,
    labels: Tensor,
    stamped: list[tuple[int, Tensor]],
    weight: Tensor,
    bias: Tensor,
    order: Tensor,
    settings: PruningSettings,
) -> int:
    """How many of ``order`` are pruned: the fewest that do, or else the most that may be."""
    at_clean = clean @ weight.T + bias
    at_stamped = [(target, rows, rows @ weight.T + bias) for target, rows in stamped]
    least = _share(at_clean, labels) - settings.accuracy_loss
    allowed = 0
    for count, feature in enumerate([None, *order.tolist()]):
        if feature is not None:
            column = weight[:, feature]
            at_clean = at_clean - torch.outer(clean[:, feature], column)
            at_stamped = [
                (target, rows, logits - torch.outer(rows[:, feature], column))
                for target, rows, logits in at_stamped
            ]
        if _share(at_clean, labels) < least:
            break
        allowed = count
        worst = max((_share(z, torch.full((len(z),), t)) for t, _, z in at_stamped), default=0.0)
        if worst <= settings.attack_success:
            break
    return allowed


def _share(logits: Tensor, labels: Tensor) -> float:
    """Of images, ``(n, K)`` and ``(n,)``, that get their label."""
    return float((logits.argmax(1) == labels).float().mean())
