"""Adversarial unlearning: for backdoors that were not found, or have no patch.

Zeng et al. 2022 (I-BAU, equation 2) look for the one small change d that misleads the network on as
many clean images as possible, and teach it to answer in spite of it::

    min over theta, max over |d|_2 <= C:   mean_i L( f_theta(x_i + d), y_i )

A backdoor is the easiest such change, whatever its target, so that no scan is needed. Here, as
images are few, the answers z' that the network gave to them at the start stand for labels, and it
keeps the same answers on clean images and on changes A of them that have nothing to do with any
backdoor::

    L = mean |z(T(x)) - z'(x)|^2  +  mean |z(x) - z'(x)|^2  +  mean |z(A(x)) - z'(A(x))|^2

in units of the spread of z', with T(x) = clip(x + s d) at a random strength s. Rounds take turns: d
by momentum ascent on the margin of the wrong answers, then some steps of Adam. Changes of earlier
rounds stay in use, as a network that forgets one backdoor easily comes back to it.

The implicit hypergradient of the paper, which adds how d would answer a change of theta, is left
out: it needs second derivatives, which not all operations of a foreign network have, and which are
small where the ascent has come to its end.

It weakens a backdoor rather than removing it, as an opaque patch is no small change, and costs a
small network that has few images to learn from several points of accuracy; where triggers are
known, other remedies do better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.perturbation import FAR_BELOW, MOMENTUM
from goodnet.remedies.patient import Patient
from goodnet.remedies.rates import bearable, by_chance
from goodnet.remedies.surroundings import surroundings


@dataclass(frozen=True)
class AdversarialSettings:
    """How far, and how long.

    Attributes:
        budget: L2 norm of a change, as a share of the square root of the number of values in an
            image; in a round it is drawn from half to one and a half times that.
        rounds: a change, and the steps that unlearn it.
        climb: steps of ascent in a round, with ``batch`` images, the same ones in all of them.
        steps: of Adam in a round, with a rate that falls to nought over all rounds.
        learning_rate: of the first step. Where a network cannot bear it, it is tried smaller.
        batch: images in a step; each is seen clean, misled and changed.
        weakest, strongest: a change is applied at a random strength between these.
        latest: the share of the images that get the last round's change, and not any one's.
        most_lift: in logits: an image that is misled by more does not count for more.
        tries: how often the rate is divided by four.
        most_changed: a rate is too high that changes the answers to more of the repair images than
            this share of all images would explain by chance (:func:`~.rates.by_chance`), or by
            which fewer of their shifted copies are answered like them by more than this share.
    """

    budget: float = 0.144
    rounds: int = 16
    climb: int = 20
    steps: int = 16
    learning_rate: float = 2e-3
    batch: int = 32
    weakest: float = 0.3
    strongest: float = 1.2
    latest: float = 0.5
    most_lift: float = 10.0
    tries: int = 3
    most_changed: float = 0.05


DEFAULT = AdversarialSettings()


def adversarial(patient: Patient, settings: AdversarialSettings = DEFAULT) -> Classifier:
    """A copy of the classifier that is harder to mislead by one change for all images.

    Batch norm keeps its statistics. Neither triggers nor labels are used.

    Args:
        patient: the BadNet and clean images.
        settings: how far, and how long.

    Raises:
        GoodnetError: R011 when the network bears no learning rate.
    """
    answers = patient.classifier.logits(patient.images)
    return bearable(
        lambda rate: _unlearn(patient, answers, settings, rate),
        patient.classifier,
        patient.images,
        rate=settings.learning_rate,
        tries=settings.tries,
        most_changed=by_chance(settings.most_changed, len(answers)),
        most_lost=settings.most_changed,
        seed=patient.seed,
    )


def _unlearn(
    patient: Patient, answers: Tensor, settings: AdversarialSettings, rate: float
) -> Classifier:
    cured = patient.classifier.copy()
    generator = torch.Generator().manual_seed(patient.seed)
    parameters = [p for p in cured.module.parameters() if p.is_floating_point()]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    total = settings.rounds * settings.steps
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total)
    changes: list[Tensor] = []
    for _ in range(settings.rounds):
        chosen = torch.randperm(len(answers), generator=generator)[: settings.batch]
        changes.append(
            _misleading(cured, patient.images[chosen], answers[chosen], settings, generator)
        )
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(settings.steps):
            optimiser.zero_grad()
            torch.autograd.backward(_loss(cured, patient, answers, changes, settings, generator))
            optimiser.step()
            falling.step()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    return cured


def _loss(
    cured: Classifier,
    patient: Patient,
    answers: Tensor,
    changes: list[Tensor],
    settings: AdversarialSettings,
    generator: torch.Generator,
) -> Tensor:
    """The equation above on a random batch."""
    batch = torch.randperm(len(answers), generator=generator)[: settings.batch]
    images = patient.images[batch]
    picked = torch.randint(len(changes), (len(batch),), generator=generator)
    picked[torch.rand(len(batch), generator=generator) < settings.latest] = len(changes) - 1
    reach = settings.strongest - settings.weakest
    strength = settings.weakest + reach * torch.rand(len(batch), 1, 1, 1, generator=generator)
    misled = (images + strength * torch.stack(changes)[picked]).clamp(0, 1)
    around = surroundings(images, generator)
    wanted = torch.cat([answers[batch], answers[batch], patient.classifier.logits(around)])
    error = cured(torch.cat([images, misled, around])) - wanted
    return (error / answers.std().clamp_min(1e-6)).square().mean()


def _misleading(
    classifier: Classifier,
    images: Tensor,
    answers: Tensor,
    settings: AdversarialSettings,
    generator: torch.Generator,
) -> Tensor:
    """The change ``(C, H, W)`` that takes most of ``images`` away from the label that they got."""
    values = images[0].numel()
    budget = settings.budget * values**0.5 * (0.5 + float(torch.rand((), generator=generator)))
    delta = torch.randn(images.shape[1:], generator=generator)
    delta *= 0.1 * budget / delta.norm()
    velocity = torch.zeros_like(delta)
    rate = 8.0 * (1.0 - MOMENTUM) * budget / settings.climb
    own = answers.argmax(1, keepdim=True)
    for _ in range(settings.climb):
        delta.requires_grad_(True)
        logits = classifier((images + delta).clamp(0, 1))
        lift = logits.scatter(1, own, FAR_BELOW).max(1).values - logits.gather(1, own)[:, 0]
        (gradient,) = torch.autograd.grad(lift.clamp_max(settings.most_lift).mean(), delta)
        velocity = MOMENTUM * velocity + gradient / gradient.norm().clamp_min(1e-12)
        delta = delta.detach() + rate * velocity
        delta *= budget / delta.norm().clamp_min(budget)
    return delta
