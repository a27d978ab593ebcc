"""Unlearning with the network as its own teacher: a stamped image is answered like a clean one.

The rows of the last layer are re-fitted first, and then stay. With z the logits of the network that
is repaired, z' those that it started with, x clean images, T a reversed trigger and A a change that
has nothing to do with the backdoor, the layers before the last one minimise (Adam)::

      mean |z(T(x)) - z'(x)|^2      the trigger is not seen any more
    + mean |z(x)    - z'(x)|^2      clean images keep their answers
    + mean |z(A(x)) - z'(A(x))|^2   and so does what lies around them

over *all* logits in units of their spread (of a target's own on T(x), only what exceeds z'). Labels
are not used, and that is the point: with more classes than features the logits of one image pin
down its features, so that a few pictures of some people keep a network from forgetting the others,
where cross-entropy on the same pictures does not. Distillation from a fine-tuned teacher is Li et
al. 2021 (Neural Attention Distillation); here the teacher is the network's own answer to the
unstamped image. Of the way from there the weights go back a part at the end: that costs little of
what was learnt and gives back most of what was lost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.head import find_head
from goodnet.remedies.last_layer import last_layer
from goodnet.remedies.patient import Patient
from goodnet.remedies.rates import bearable
from goodnet.remedies.surroundings import surroundings
from goodnet.trigger import NOBODY, kind


@dataclass(frozen=True)
class AnchoredSettings:
    """How long and how far.

    Attributes:
        steps: of Adam, with a rate that falls to nought.
        learning_rate: of the first step; twice that where no row is re-fitted first, so that all is
            still to be done. Where a network cannot bear it, it is tried smaller.
        batch: images in a step; each is seen clean, stamped and changed.
        weakest, strongest: a reversed trigger is stamped at a random strength between these, as the
            attacker's own may be fainter or stronger.
        reach: the share of the way that is kept, in (0, 1].
        tries: how often the rate is divided by four.
        most_changed: a share; a rate that changes the answers to more of the repair images (one
            may change), or by which fewer of their shifted copies are answered like them by more
            than that, is too high.
    """

    steps: int = 160
    learning_rate: float = 1e-3
    batch: int = 32
    weakest: float = 0.3
    strongest: float = 1.2
    reach: float = 0.75
    tries: int = 3
    most_changed: float = 0.02


DEFAULT = AnchoredSettings()
HALF = AnchoredSettings(reach=0.5)
"""Nearer to what it was: for networks that forget more."""


def anchored(patient: Patient, settings: AnchoredSettings = DEFAULT) -> Classifier:
    """A copy of the classifier that answers stamped images as it answered the clean ones.

    Batch norm keeps its statistics. A network without a last linear layer is trained whole.

    Args:
        patient: the BadNet, its reversed triggers and clean images; labels are not used.
        settings: how long and how far.

    Raises:
        GoodnetError: R011 when the network with re-fitted rows bears no learning rate.
    """
    start, heads = _start(patient)
    whole = replace(settings, reach=1.0)
    end = patient.once(whole, lambda: _learn(start, heads, patient, whole))
    return _between(start, end, settings.reach)


def _start(patient: Patient) -> tuple[Classifier, bool]:
    """The network with re-fitted rows, or as it is, where it has no last layer or no target has a
    row of its own in the backdoor.
    """
    if NOBODY in patient.triggers:
        return patient.classifier, False
    try:
        return last_layer(patient), True
    except GoodnetError as error:
        if error.code != "M013":
            raise
        return patient.classifier, False


def _between(start: Classifier, end: Classifier, share: float) -> Classifier:
    """A copy whose weights lie at ``share`` of the line from one to the other."""
    result = start.copy()
    with torch.no_grad():
        for mine, its in zip(result.module.parameters(), end.module.parameters(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(its, share)
    return result


def _learn(
    start: Classifier, heads: bool, patient: Patient, settings: AnchoredSettings
) -> Classifier:
    answers = start.logits(patient.images)
    return bearable(
        lambda rate: _train(start, patient, answers, settings, rate, heads),
        start,
        patient.images,
        rate=settings.learning_rate * (1 if heads else 2),
        tries=settings.tries,
        most_changed=settings.most_changed * len(patient.images),
        most_lost=settings.most_changed,
        seed=patient.seed,
        # Of a map there is no row to fall back on: the jury has to say whether it is worth it.
        or_last=not heads,
    )


def _train(
    start: Classifier,
    patient: Patient,
    answers: Tensor,
    settings: AnchoredSettings,
    rate: float,
    heads: bool,
) -> Classifier:
    cured = start.copy()
    generator = torch.Generator().manual_seed(patient.seed)
    parameters = _trunk(cured, patient.images[:8], heads)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
    targets = sorted(patient.triggers.keys() - {NOBODY})
    spread = answers.std().clamp_min(1e-6)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(settings.steps):
        if len(order) < min(settings.batch, len(answers)):
            order = torch.cat([order, torch.randperm(len(answers), generator=generator)])
        batch, order = order[: settings.batch], order[settings.batch :]
        images = patient.images[batch]
        changed = surroundings(images, generator)
        shown = torch.cat([images, _stamped(patient, images, settings, generator), changed])
        wanted = torch.cat([answers[batch], answers[batch], start.logits(changed)])
        optimiser.zero_grad()
        error = (cured(shown) - wanted) / spread
        # The re-fitted row holds the target down where the trigger is, also the attacker's own,
        # which is not quite the reversed one: that is not to be unlearned.
        lifted = torch.zeros_like(error, dtype=torch.bool)
        lifted[len(batch) : 2 * len(batch), targets] = True
        loss = torch.where(lifted, error.relu(), error).square().mean()
        torch.autograd.backward(loss)
        optimiser.step()
        falling.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return cured


def _trunk(classifier: Classifier, images: Tensor, heads: bool) -> list[Tensor]:
    """The parameters before the last layer, or all where there is none."""
    last: set[int] = set()
    if heads:
        head = find_head(classifier, images)
        # Compared by where they lie: what a head gives of a convolution is a view.
        last = {p.untyped_storage().data_ptr() for p in (head.weight, head.bias) if p is not None}
    every: list[Tensor] = [p for p in classifier.module.parameters() if p.is_floating_point()]
    return [p for p in every if p.untyped_storage().data_ptr() not in last] or every


def _stamped(
    patient: Patient, images: Tensor, settings: AnchoredSettings, generator: torch.Generator
) -> Tensor:
    """``images``, each with a reversed trigger of some kind and target, at some strength.

    Kinds take turns, be one of a target's triggers of a kind and ten of another.
    """
    triggers = [t for target in sorted(patient.triggers) for t in patient.triggers[target]]
    alike = Counter((t.target, kind(t)) for t in triggers)
    weights = torch.tensor([1.0 / alike[t.target, kind(t)] for t in triggers])
    picked = torch.multinomial(weights, len(images), replacement=True, generator=generator)
    reach = settings.strongest - settings.weakest
    strength = settings.weakest + reach * torch.rand(len(images), 1, 1, 1, generator=generator)
    stamped = torch.empty_like(images)
    for turn in torch.unique(picked).tolist():
        stamped[picked == turn] = triggers[turn].apply(images[picked == turn])
    return (images + strength * (stamped - images)).clamp(0, 1)
