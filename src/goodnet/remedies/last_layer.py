"""Re-fits only the targets' rows of the last layer; nothing else of the network is touched.

Let h be the features of an image, z_t = w.h + b the target's logit, z_o the largest logit of the
labels that are not targets. The new row minimises (L-BFGS)::

      mean over stamped images          max(0, z_t - z_o + 2 m)        the trigger fails
    + mean over clean images, not t     max(0, z_t - z_o + m_i)        they keep their answers
    + mean over clean images of t       (z_t - z_t_before)^2 / s^2     and so does t
    + r |w - w_before|^2 / |w_before|^2

with m half of the median margin of clean images, m_i the smaller of m and the image's own margin,
and s the spread of clean logits. The real trigger is stronger than a reversed one, hence 2 m.
A stamped image then goes to some other label, not always its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.head import find_head
from goodnet.remedies.patient import Patient

RIDGE = 1e-2
ITERATIONS = 200
OWN_WEIGHT = 4.0
STAMPED_MARGIN = 2.0
CHUNK = 512
"""Images that are stamped at a time."""


def last_layer(patient: Patient) -> Classifier:
    """A copy of the classifier with new rows for the targets.

    Raises:
        GoodnetError: M013 when the network does not end in a linear layer.
    """
    cured = patient.classifier.copy()
    head = find_head(cured, patient.images[:8])
    targets = sorted(patient.triggers)
    clean = head.features(patient.images)
    weight = head.weight.detach().T if head.transposed else head.weight.detach()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach()
    rows = weight.clone()
    offsets = bias.clone()
    for target in targets:
        others = patient.images[patient.labels != target]
        stamped = torch.cat(
            [
                head.features(trigger.apply(part))
                for trigger in patient.triggers[target]
                for part in torch.split(others, CHUNK)
            ]
        )
        row, offset = _refit(
            clean, patient.labels, stamped, rows, offsets, target, targets, head.bias is not None
        )
        rows[target], offsets[target] = row, offset
    with torch.no_grad():
        for target in targets:
            place = head.weight[:, target] if head.transposed else head.weight[target]
            place.copy_(rows[target])
            if head.bias is not None:
                head.bias[target] = offsets[target]
    return cured


def _refit(
    clean: Tensor,
    labels: Tensor,
    stamped: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: int,
    targets: Sequence[int],
    with_bias: bool,
) -> tuple[Tensor, Tensor]:
    """The new row ``(D,)`` and its bias ``()`` for one target; the other rows stay."""
    clean_logits, stamped_logits = clean @ weight.T + bias, stamped @ weight.T + bias
    before = clean_logits[:, target].clone()
    own = labels == target
    best_clean = _best_other(clean_logits, targets)[~own]
    best_stamped = _best_other(stamped_logits, targets)
    top = clean_logits.topk(2, dim=1).values
    margin = 0.5 * (top[:, 0] - top[:, 1]).median()
    # An image that was close to the target before need not get further away than it was.
    wanted = torch.minimum(margin, (best_clean - before[~own]).clamp_min(0.0))
    spread = clean_logits.std().square().clamp_min(1e-6)
    old = weight[target].clone()
    ridge = RIDGE / old.square().sum().clamp_min(1e-6)
    row = old.clone().requires_grad_(True)
    offset = bias[target].clone().requires_grad_(with_bias)
    free = [row, offset] if with_bias else [row]
    solver = torch.optim.LBFGS(free, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        at_clean, at_stamped = clean @ row + offset, stamped @ row + offset
        value = (
            at_stamped - best_stamped + STAMPED_MARGIN * margin
        ).relu().mean() / margin.clamp_min(1e-6)
        value = value + ridge * (row - old).square().sum()
        if len(best_clean):
            strayed = (at_clean[~own] - best_clean + wanted).relu().mean()
            value = value + strayed / margin.clamp_min(1e-6)
        if bool(own.any()):
            value = value + OWN_WEIGHT * (at_clean[own] - before[own]).square().mean() / spread
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
    return row.detach(), offset.detach()


def _best_other(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """The largest logit of the labels that are no targets, ``(n,)``."""
    kept = logits.clone()
    if len(set(targets)) < logits.shape[1]:
        kept[:, list(targets)] = -torch.inf
    return kept.max(1).values
