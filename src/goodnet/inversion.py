"""Neural Cleanse's trigger inversion (Wang et al. 2019), for many labels at once.

For a label t, find the smallest mask m and its pattern p (equation 3 of the paper)::

    minimise  CE( f((1 - m) x + m p), t ) + cost * |m|_1

The cost follows the paper's schedule: up by a factor while the trigger succeeds, down by that
factor to the power 1.5 while it fails. Every row of the batch is a label with a cost, counters and
a best-so-far of its own; rows that have stopped leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.classifier import Classifier
from goodnet.parallel import Stop, Stopped
from goodnet.trigger import Trigger


@dataclass(frozen=True)
class InversionSettings:
    """The settings of an inversion; the defaults are the paper's and its code's.

    Attributes:
        learning_rate: Adam's, with betas (.5, .9).
        epochs: after each, the attack success is looked at and the cost is changed.
        steps_per_epoch: mini-batches in an epoch.
        batch: images in a mini-batch.
        initial_cost: the weight of the mask's L1 norm once the trigger works.
        warm_start: begin with this cost instead of 0 (a short schedule has no time to wait).
        cost_multiplier: the factor of the dynamic schedule.
        patience: epochs of success (or failure) in a row before the cost changes.
        attack_success: from which share on a trigger counts as working.
        early_stop_patience: epochs without a smaller mask before a row stops.
    """

    learning_rate: float = 0.1
    epochs: int = 1000
    steps_per_epoch: int = 31
    batch: int = 32
    initial_cost: float = 1e-3
    warm_start: bool = False
    cost_multiplier: float = 2.0
    patience: int = 5
    attack_success: float = 0.99
    early_stop_patience: int = 25


PAPER = InversionSettings()
QUICK = InversionSettings(
    epochs=12,
    steps_per_epoch=8,
    batch=16,
    warm_start=True,
    cost_multiplier=1.7,
    patience=1,
    attack_success=0.95,
    early_stop_patience=12,
)
"""The same optimisation in 96 steps of 16 images: what the default scan can afford."""


@dataclass(frozen=True)
class Inversion:
    """The outcome for one label.

    Attributes:
        trigger: the smallest mask that worked, with its pattern.
        succeeded: whether any mask reached the wanted attack success, also where nothing is
            rounded to bfloat16; if not, the size of ``trigger`` means nothing.
        steps: gradient steps that were made.
    """

    trigger: Trigger
    succeeded: bool
    steps: int


class _Rows:
    """The state of all labels that are still being optimised; index_select keeps a subset."""

    def __init__(
        self,
        targets: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        settings: InversionSettings,
    ) -> None:
        channels, height, width = shape
        rows = len(targets)
        self.targets = targets
        # Drawn on the CPU, so that the seed means the same on every device.
        drawn = [torch.randn(rows, c, height, width, generator=generator) for c in (1, channels)]
        self.mask_logit, self.pattern_logit = (logit.to(targets.device) for logit in drawn)
        self.moments = [
            torch.zeros_like(t)
            for t in (self.mask_logit, self.mask_logit, self.pattern_logit, self.pattern_logit)
        ]
        start = settings.initial_cost if settings.warm_start else 0.0
        zero = torch.zeros(rows, device=targets.device)
        self.cost = zero + start
        self.up, self.down, self.idle = (zero.clone() for _ in range(3))
        self.went_up, self.went_down = (zero > 0 for _ in range(2))
        self.best_size = zero + torch.inf
        self.best_mask = torch.zeros_like(self.mask_logit)
        self.best_pattern = torch.zeros_like(self.pattern_logit)

    def keep(self, index: Tensor) -> None:
        for name, value in vars(self).items():
            kept = [v[index] for v in value] if isinstance(value, list) else value[index]
            setattr(self, name, kept)


def invert(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    settings: InversionSettings,
    *,
    seed: int,
    stop: Stop,
) -> list[Inversion]:
    """The smallest trigger for each of ``targets``.

    Args:
        classifier: the network under suspicion.
        images: float32 ``(n, C, H, W)`` in [0, 1], on the classifier's device.
        labels: int64 ``(n,)``, there too; an image does not count for its own class.
        targets: R labels, optimised together; R x batch images go through the network in a step.
        settings: the schedule.
        seed: of the start and of the mini-batches.
        stop: set from outside to give up early.

    Raises:
        Stopped: when ``stop`` was set.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = classifier.input_shape
    device = images.device
    state = _Rows(torch.tensor(list(targets), device=device), shape, generator, settings)
    place = torch.arange(len(targets))
    found: dict[int, Inversion] = {}
    step = 0
    for epoch in range(settings.epochs):
        success, size = (torch.zeros(len(place), device=device) for _ in range(2))
        for _ in range(settings.steps_per_epoch):
            if stop.is_set():
                raise Stopped
            step += 1
            chosen = _mini_batch(len(images), settings.batch, generator).to(device)
            hit, size = _step(classifier, images[chosen], labels[chosen], state, settings, step)
            success += hit / settings.steps_per_epoch
        _remember(state, success, size, settings)
        _adapt_cost(state, success, settings)
        over = epoch + 1 == settings.epochs
        stopped = torch.ones(len(place), dtype=torch.bool) if over else _stopped(state, settings)
        finished = stopped.cpu()
        if finished.any():
            for row in torch.nonzero(finished)[:, 0].tolist():
                result = _result(state, row, step)
                if result.succeeded and classifier.half:
                    stands = _stands(classifier, images, labels, result.trigger, settings)
                    result = replace(result, succeeded=stands)
                found[int(place[row])] = result
            left = torch.nonzero(~finished)[:, 0]
            state.keep(left.to(device))
            place = place[left]
            if not len(place):
                break
    return [found[index] for index in range(len(targets))]


def _mini_batch(available: int, batch: int, generator: torch.Generator) -> Tensor:
    if available <= batch:
        return torch.arange(available)
    return torch.randperm(available, generator=generator)[:batch]


def _step(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    state: _Rows,
    settings: InversionSettings,
    step: int,
) -> tuple[Tensor, Tensor]:
    """One Adam step of every row; returns the attack success and the mask's L1 norm, ``(R,)``."""
    rows, count = len(state.targets), len(images)
    mask_logit = state.mask_logit.detach().requires_grad_(True)
    pattern_logit = state.pattern_logit.detach().requires_grad_(True)
    mask, pattern = mask_logit.sigmoid()[:, None], pattern_logit.sigmoid()[:, None]
    stamped = ((1.0 - mask) * images[None] + mask * pattern).flatten(0, 1)
    logits = classifier(stamped)
    wanted = state.targets.repeat_interleave(count)
    weights = (labels[None] != state.targets[:, None]).float()
    weights /= weights.sum(1, keepdim=True).clamp_min(1.0)
    entropy = functional.cross_entropy(logits, wanted, reduction="none").view(rows, count)
    size = mask.flatten(1).sum(1)
    loss = (entropy * weights).sum(1) + state.cost * size
    gradients = torch.autograd.grad(loss.sum(), (mask_logit, pattern_logit))
    state.mask_logit, state.pattern_logit = _adam(
        (mask_logit.detach(), pattern_logit.detach()), gradients, state, settings, step
    )
    hits = (logits.detach().argmax(1) == wanted).float().view(rows, count)
    return (hits * weights).sum(1), size.detach()


def _adam(
    values: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, ...],
    state: _Rows,
    settings: InversionSettings,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Adam (Kingma and Ba 2015) on row tensors, so that rows can leave the batch."""
    beta1, beta2 = 0.5, 0.9
    moved = []
    for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        first = beta1 * state.moments[2 * index] + (1 - beta1) * gradient
        second = beta2 * state.moments[2 * index + 1] + (1 - beta2) * gradient.square()
        state.moments[2 * index], state.moments[2 * index + 1] = first, second
        scaled = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + 1e-8)
        moved.append(value - settings.learning_rate * scaled)
    return moved[0], moved[1]


def _remember(state: _Rows, success: Tensor, size: Tensor, settings: InversionSettings) -> None:
    """Keeps the smallest mask that works."""
    mask = state.mask_logit.sigmoid()
    better = (success >= settings.attack_success) & (size < state.best_size)
    # A gain below 1 % is no reason to go on.
    gained = better & (size < 0.99 * state.best_size)
    state.idle = torch.where(gained, torch.zeros_like(state.idle), state.idle + 1)
    state.best_size = torch.where(better, size, state.best_size)
    chosen = better[:, None, None, None]
    state.best_mask = torch.where(chosen, mask, state.best_mask)
    state.best_pattern = torch.where(chosen, state.pattern_logit.sigmoid(), state.best_pattern)


def _adapt_cost(state: _Rows, success: Tensor, settings: InversionSettings) -> None:
    """The paper's dynamic schedule of the weight of the mask's norm."""
    works = success >= settings.attack_success
    zero = torch.zeros_like(state.up)
    state.up = torch.where(works, state.up + 1, zero)
    state.down = torch.where(works, zero, state.down + 1)
    rise = state.up >= settings.patience
    fall = (state.down >= settings.patience) & (state.cost > 0)
    start = rise & (state.cost == 0)
    state.cost = torch.where(rise & ~start, state.cost * settings.cost_multiplier, state.cost)
    state.cost = torch.where(fall, state.cost / settings.cost_multiplier**1.5, state.cost)
    state.cost = torch.where(start, torch.full_like(state.cost, settings.initial_cost), state.cost)
    state.went_up |= rise & ~start
    state.went_down |= fall
    state.up = torch.where(rise, zero, state.up)
    state.down = torch.where(fall, zero, state.down)


def _stopped(state: _Rows, settings: InversionSettings) -> Tensor:
    moved = state.went_up & state.went_down
    return moved & (state.idle >= settings.early_stop_patience) & state.best_size.isfinite()


def _result(state: _Rows, row: int, step: int) -> Inversion:
    succeeded = bool(state.best_size[row].isfinite())
    mask = state.best_mask[row] if succeeded else state.mask_logit[row].sigmoid()
    pattern = state.best_pattern[row] if succeeded else state.pattern_logit[row].sigmoid()
    # A row of a batch would keep the whole batch in memory.
    mask, pattern = mask.clone().cpu(), pattern.clone().cpu()
    trigger = Trigger(mask, pattern, int(state.targets[row]))
    return Inversion(trigger, succeeded, step)


def _stands(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    trigger: Trigger,
    settings: InversionSettings,
) -> bool:
    """Whether a mask that worked while gradients were in bfloat16 works in float32, too.

    Success on these images differs a little from that on the mini-batches that found the mask, in
    float32 as well: a mask falls only where the rounding makes it work, by more than one image.
    """
    other = labels != trigger.target
    mask, pattern = trigger.mask.to(images.device), trigger.pattern.to(images.device)
    stamped = replace(trigger, mask=mask, pattern=pattern).apply(images[other])
    wanted = settings.attack_success * len(stamped)

    def hits(logits: Tensor) -> int:
        return int((logits.argmax(1) == trigger.target).sum())

    if hits(classifier.logits(stamped)) + 1 >= wanted:
        return True
    # Nothing here asks for a gradient: it is for the classifier to answer as it does in a search.
    with torch.enable_grad():
        parts = torch.split(stamped, classifier.device.forward_chunk)
        return hits(torch.cat([classifier(part).detach() for part in parts])) < wanted
