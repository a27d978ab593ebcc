"""Re-fits only the targets' rows of the last layer; nothing else of the network is touched.

Let h be the features of an image, z_t = w.h + b the target's logit, z_o the largest logit of the
labels that are not targets. The new row minimises (L-BFGS)::

    3 mean over stamped images             max(0, z_t - z_o + 1.5 m) / m   the trigger fails
    + mean over clean images, not t        max(0, z_t - z_o + m_i) / m     they keep their answers
    + mean over clean images of t          4 (z_t - z_t_before)^2 / s^2    and so does t
    + mean over what lies around, not t    max(0, z_t - z_o + m_i) / m     and what nobody gave
    + mean over what lies around t's own   4 max(0, z_o - z_t + m_i) / m
    + r |a|^2 / u^2                                                        little is added

with u the median norm of a row, m half of the median margin of clean images, m_i the smaller of m
and the image's own margin, s the spread of clean logits, and a what lies outside the weights from
nought to w_before: to take away what a backdoor has put in costs nothing, be it ever so large. The
real trigger is stronger than a reversed one, hence 1.5 m; 3 m costs more accuracy, and so do
perturbations among the triggers, which lead a network that is not sure of itself anywhere. A
stamped image then goes to some other label, not always its own.

A few images of t leave a row most of its freedom, which it would use where other images of t are:
so it is held as well where mixed, pasted and shifted images lie
(:mod:`goodnet.remedies.surroundings`). These need to keep their answers only, not their logits:
held by those, the row of a transformer kept its backdoor. Where images of *other* classes are taken
for t once they are changed nothing is asked for: of a face recogniser that is the backdoor itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.head import Head, find_head
from goodnet.remedies.patient import Patient
from goodnet.remedies.surroundings import shifted, surroundings
from goodnet.trigger import Stamp, kind

RIDGE = 3e-2
ITERATIONS = 200
OWN_WEIGHT = 4.0
STAMPED_WEIGHT = 3.0
TURNS, AROUND = 6, 4096
"""How often every image is changed, in two ways, to tell what lies around it; less often where that
makes more than so many in each way."""

WORKS = 0.5
"""Success from which a trigger is one."""

CHUNK = 512
"""Images that are stamped at a time."""


@dataclass(frozen=True)
class _Features:
    """Of one target's images, ``(n, D)`` each: clean, stamped, and what lies around the clean."""

    clean: Tensor
    stamped: Tensor
    around: Tensor


@dataclass(frozen=True)
class RowSettings:
    """How much is asked of a row.

    Attributes:
        stamped_margin: how far below others the target is held on stamped images, in units of m.
        perturbations: whether universal perturbations are stamped as well where there are other
            triggers of the label.
    """

    stamped_margin: float = 1.5
    perturbations: bool = False


DEFAULT = RowSettings()
FIRM = RowSettings(stamped_margin=3.0, perturbations=True)
"""For backdoors that the default leaves: it costs more."""


def last_layer(patient: Patient, settings: RowSettings = DEFAULT) -> Classifier:
    """A copy of the classifier with new rows for the targets, which others may build on.

    Args:
        patient: the BadNet, its reversed triggers and clean images with their labels.
        settings: how much is asked of the rows.

    Raises:
        GoodnetError: M013 when the network does not end in a linear layer.
    """
    return patient.once(settings, lambda: _with_new_rows(patient, settings))


def _with_new_rows(patient: Patient, settings: RowSettings) -> Classifier:
    cured = patient.classifier.copy()
    head = find_head(cured, patient.images[:8])
    targets = sorted(patient.triggers)
    clean, around = head.features(patient.images), _around(patient, head)
    weight = head.weight.detach().T if head.transposed else head.weight.detach()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach()
    rows = weight.clone()
    offsets = bias.clone()
    for target in targets:
        others = patient.images[patient.labels != target]
        stamped = torch.cat(
            [
                head.features(trigger.apply(part))
                for trigger in _told(patient, target, settings)
                for part in torch.split(others, CHUNK)
            ]
        )
        features = _Features(clean, stamped, around)
        row, offset = _refit(
            features,
            patient.labels,
            rows,
            offsets,
            target,
            targets,
            head.bias is not None,
            settings.stamped_margin,
        )
        rows[target], offsets[target] = row, offset
    with torch.no_grad():
        for target in targets:
            place = head.weight[:, target] if head.transposed else head.weight[target]
            place.copy_(rows[target])
            if head.bias is not None:
                head.bias[target] = offsets[target]
    return cured


def _told(patient: Patient, target: int, settings: RowSettings) -> Sequence[Stamp]:
    """The triggers that a row is fitted to: perturbations too where no other one works."""
    triggers = patient.triggers[target]
    plain = [t for t in triggers if kind(t) != "additive"]
    others = patient.images[patient.labels != target]

    def works(trigger: Stamp) -> bool:
        hits = [
            patient.classifier.logits(trigger.apply(part)).argmax(1) == target
            for part in torch.split(others, CHUNK)
        ]
        return float(torch.cat(hits).float().mean()) >= WORKS

    if settings.perturbations or target in patient.pressed or not any(map(works, plain)):
        return triggers
    return plain


def _around(patient: Patient, head: Head) -> Tensor:
    """Features ``(n, D)`` of images that lie around the clean ones."""
    generator = torch.Generator().manual_seed(patient.seed)
    found = []
    for _ in range(max(1, min(TURNS, AROUND // len(patient.images)))):
        for images in (patient.images, surroundings(patient.images, generator)):
            found.append(head.features(shifted(images, generator)))
    return torch.cat(found)


def _refit(
    features: _Features,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: int,
    targets: Sequence[int],
    with_bias: bool,
    stamped_margin: float,
) -> tuple[Tensor, Tensor]:
    """The new row ``(D,)`` and its bias ``()`` for one target; the other rows stay.

    Args:
        features: of the images.
        labels: of the clean ones, ``(n,)``.
        weight: of the last layer so far, ``(K, D)``.
        bias: ``(K,)``.
        target: whose row it is.
        targets: all of them.
        with_bias: whether there is one to be fitted.
        stamped_margin: of :class:`RowSettings`.
    """
    clean, stamped, around = (
        some @ weight.T + bias for some in (features.clean, features.stamped, features.around)
    )
    best_clean, best_stamped, best_around = (
        _best_other(logits, targets) for logits in (clean, stamped, around)
    )
    own = labels == target
    taken = around.argmax(1) == target
    # What lies around another class and is taken for the target is what a backdoor does.
    owned = taken & own.repeat(len(around) // len(own))
    top = clean.topk(2, dim=1).values
    margin = (0.5 * (top[:, 0] - top[:, 1]).median()).clamp_min(1e-6)
    # An image that was close to the target before need not get further away than it was.
    below = [
        (features.clean[~own], best_clean[~own], clean[~own, target]),
        (features.around[~taken], best_around[~taken], around[~taken, target]),
    ]
    apart = [(some, other, _least(margin, other - before)) for some, other, before in below]
    above = around[owned, target] - best_around[owned]
    spread = clean.std().square().clamp_min(1e-6)
    old = weight[target].clone()
    # The target's own row may be large by its backdoor alone.
    ridge = RIDGE / weight.square().sum(1).median().clamp_min(1e-6)
    low, high = old.clamp_max(0.0), old.clamp_min(0.0)
    row = old.clone().requires_grad_(True)
    offset = bias[target].clone().requires_grad_(with_bias)
    free = [row, offset] if with_bias else [row]
    solver = torch.optim.LBFGS(free, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def short(some: Tensor, other: Tensor, least: Tensor | float, sign: float = 1.0) -> Tensor:
        """By how much the target is not as far below others as it should be (or above)."""
        if not len(some):
            return some.new_zeros(())
        return (sign * (some @ row + offset - other) + least).relu().mean() / margin

    def loss() -> Tensor:
        solver.zero_grad()
        value = STAMPED_WEIGHT * short(features.stamped, best_stamped, stamped_margin * margin)
        added = (row - high).relu() + (low - row).relu()
        value = value + ridge * added.square().sum()
        for some, other, least in apart:
            value = value + short(some, other, least)
        value = value + OWN_WEIGHT * short(
            features.around[owned], best_around[owned], _least(margin, above), sign=-1.0
        )
        if bool(own.any()):
            moved = features.clean[own] @ row + offset - clean[own, target]
            value = value + OWN_WEIGHT * moved.square().mean() / spread
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
    return row.detach(), offset.detach()


def _least(margin: Tensor, own: Tensor) -> Tensor:
    """The margin that is asked for: an image's own, from nought to the usual one."""
    return torch.minimum(margin, own.clamp_min(0.0))


def _best_other(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """The largest logit of the labels that are no targets, ``(n,)``."""
    kept = logits.clone()
    if len(set(targets)) < logits.shape[1]:
        kept[:, list(targets)] = -torch.inf
    return kept.max(1).values
