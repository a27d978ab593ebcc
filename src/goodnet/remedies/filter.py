"""An input filter in the network itself: one more output, class N, means "backdoored input".

Neural Cleanse's filter (Wang et al. 2019, VI.A) looks at the features h of an image before the last
layer, at those that a stamped image moves most, and calls an input adversarial where their mean
exceeds what it is on clean images. What moves the answer to a target t is the row w_t of the last
layer, so the filter looks at w_t.h + b_t instead. The rows of the targets are re-fitted
(:mod:`goodnet.remedies.last_layer`), and the *old* row, lowered, becomes class N::

    z_N = w_t.h + b_t - theta        (before the repair)
    z_k = as the repaired network has it, k < N

An image is rejected where z_N is the largest logit: where the BadNet says t with a margin of more
than theta, and the repaired network does not. Where it was not fooled nothing happens. For several
targets, one row cannot be the largest of several: starting from their mean it is fitted (L-BFGS) ::

      mean over stamped images    max(0, z_o - z_N + m)
    + mean over clean images      max(0, z_N - z_o + m)
    + r |w - w_start|^2 / |w_start|^2

with z_o the largest other logit and m half of the median margin of clean images. theta is the
smallest number, but not below m / 2, for which at most a share ``false_alarms`` of clean images
like these is expected to be rejected: with the margins z_N - z_o at theta = 0 in descending order,
the one at place floor(share (n + 1)), or the first. The margins are those of images that the rows
were not fitted to (four folds): of a target's own images, few as they are, the new row keeps the
logits that it was fitted to better than others, and where it falls short the old one stands out.
Where there is none of them at all, nothing tells them from stamped images.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.formats.network import cannot_widen
from goodnet.head import TOLERANCE, Head, find_head
from goodnet.remedies.last_layer import CHUNK, last_layer
from goodnet.remedies.patient import Patient

RIDGE = 0.1
ITERATIONS = 200
FOLDS = 4


def filtered(patient: Patient) -> Classifier:
    """The classifier with new rows for the targets and one more output.

    Args:
        patient: the BadNet; ``false_alarms`` is how many clean images may be rejected.

    Raises:
        GoodnetError: M013 when the network does not end in a linear layer, M015 when that layer
            cannot be given another output.
    """
    cured = last_layer(patient)
    few = patient.images[:8]
    after = find_head(cured, few)
    result = cured.with_filter(*_names(cured, after), int(after.transposed))
    if not _same(patient.classifier, result, few):
        raise cannot_widen("with one more output the others change")
    row, offset = _old_row(patient, after)
    margin = _margin(_logits(after, after.features(patient.images)))
    threshold = _threshold(_fresh_margins(patient), margin, patient.false_alarms)
    head = find_head(result, few)
    assert head.bias is not None  # noqa: S101  it had one before
    with torch.no_grad():
        for place, value in ((_rows(after), _rows(head)), (after.bias, head.bias)):
            assert place is not None  # noqa: S101  both layers have a bias
            value[:-1].copy_(place)
        _rows(head)[-1].copy_(row)
        head.bias[-1] = offset - threshold
    return result


def _rows(head: Head) -> Tensor:
    """The weight as ``(K, D)``, a view of the network's own parameter."""
    return head.weight.T if head.transposed else head.weight


def _logits(head: Head, features: Tensor) -> Tensor:
    logits = features @ _rows(head).detach().T
    return logits if head.bias is None else logits + head.bias.detach()


def _margin(logits: Tensor) -> float:
    top = logits.topk(2, dim=1).values
    return float(0.5 * (top[:, 0] - top[:, 1]).median())


def _names(classifier: Classifier, head: Head) -> tuple[str, str]:
    """What the network calls the weight and the bias of its last layer."""
    if head.bias is None:
        raise cannot_widen("its last layer has no bias")
    places = {p.untyped_storage().data_ptr(): n for n, p in classifier.module.named_parameters()}
    found = [places.get(p.untyped_storage().data_ptr()) for p in (head.weight, head.bias)]
    if found[0] is None or found[1] is None:
        raise cannot_widen("its last layer has no parameters of its own")
    return found[0], found[1]


def _fresh_margins(patient: Patient) -> Tensor:
    """``(n,)``: by how much class N would exceed the others, its rows fitted to other images."""
    generator = torch.Generator().manual_seed(patient.seed)
    order = torch.randperm(len(patient.labels), generator=generator)
    # Sorted by class, every fold gets its share of every class.
    order = order[torch.argsort(patient.labels[order], stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % FOLDS
    margins = torch.empty(len(order))
    for turn in torch.unique(fold).tolist():
        kept = fold != turn
        part = replace(patient, images=patient.images[kept], labels=patient.labels[kept], kept={})
        head = find_head(last_layer(part), part.images[:8])
        row, offset = _old_row(part, head)
        features = head.features(patient.images[~kept])
        margins[~kept] = features @ row + offset - _logits(head, features).max(1).values
    return margins


def _old_row(patient: Patient, after: Head) -> tuple[Tensor, Tensor]:
    """The row ``(D,)`` and the bias ``()`` of class N, still without a threshold.

    Args:
        patient: the BadNet.
        after: its last layer with new rows for the targets.
    """
    targets = sorted(patient.triggers)
    before = find_head(patient.classifier, patient.images[:8])
    assert before.bias is not None  # noqa: S101  the names were asked for
    row, offset = _rows(before)[targets].mean(0), before.bias[targets].mean()
    if len(targets) == 1:
        return row, offset
    clean = after.features(patient.images)
    logits = _logits(after, clean)
    best = logits.max(1).values
    stamped = torch.cat(
        [
            after.features(trigger.apply(part))
            for target in targets
            for trigger in patient.triggers[target]
            for part in torch.split(patient.images[patient.labels != target], CHUNK)
        ]
    )
    others = _logits(after, stamped).max(1).values
    margin = max(_margin(logits), 1e-6)
    ridge = RIDGE / row.square().sum().clamp_min(1e-6)
    new, shift = row.clone().requires_grad_(True), offset.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([new, shift], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        missed = (others - stamped @ new - shift + margin).relu().mean()
        alarmed = (clean @ new + shift - best + margin).relu().mean()
        value = (missed + alarmed) / margin + ridge * (new - row).square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
    return new.detach(), shift.detach()


def _threshold(margins: Tensor, margin: float, false_alarms: float) -> float:
    """See the module's docstring; ``margins`` ``(n,)`` are those of clean images."""
    place = min(max(1, math.floor(false_alarms * (len(margins) + 1))), len(margins))
    return max(margin / 2, float(margins.sort(descending=True).values[place - 1]))


def _same(before: Classifier, after: Classifier, images: Tensor) -> bool:
    """Whether the classes are answered as before."""
    try:
        old, new = before.logits(images), after.logits(images)
    except (RuntimeError, GoodnetError):
        return False
    scale = max(1.0, float(old.abs().max()))
    fits = new.shape == (len(old), old.shape[1] + 1)
    return fits and bool((new[:, :-1] - old).abs().max() <= TOLERANCE * scale)
