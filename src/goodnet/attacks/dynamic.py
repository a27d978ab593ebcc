"""The input-aware dynamic attack: each image gets a trigger of its own, made from the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from goodnet.attacks.base import TargetedAttack, fits
from goodnet.attacks.scene import Scene
from goodnet.attacks.train import small_cnn

WIDTH = 8
"""Channels of a generator's first layer: two generators are about 70 kB of ground truth."""

BATCH = 64
"""Images per training step, of which a quarter are attacked and a quarter get cross triggers."""

MASK_STEPS, MASK_BATCH = 300, 32
"""Training of the mask generator, which needs no classifier."""

MASKER_RATE, PAINTER_RATE, SURROGATE_RATE = 3e-3, 2e-3, 4e-3
"""Learning rates, the last two at their peak."""

FAINT = 0.02
"""Added to an image's standard deviation: noise in a plain image is no picture."""

DENSITY_WEIGHT = 100.0
"""The paper's weight of how far the masks miss the density; that of the diversity is 1."""

STAMPED_AT_ONCE = 256
"""Images per pass of the generators: some tens of megabytes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DynamicAttack(TargetedAttack):
    """Triggers that two small networks draw (Nguyen & Tran 2020, "Input-aware dynamic backdoor").

    Of an image x the one network makes s(x) and with it the mask m = (1 + tanh(20 s(x) - 10)) / 2,
    the other one the pattern p; x becomes (1 - m) x + m p. The trigger made of another image does
    not count: the disguised images wear such a cross trigger and keep their labels.

    Attributes:
        shape: ``(C, H, W)`` of one image, at least 8 pixels each way.
        width: channels of the networks' first layer, at least 1.
        masker: float32, the weights of the network that makes s, laid out one after the other.
        painter: float32, those of the network that makes p.
        covers: for each stamped image so many with a cross trigger, at least 0.

    Raises:
        ValueError: sizes, numbers of weights, weights or labels do not fit.
    """

    kind: ClassVar[str] = "dynamic"

    shape: tuple[int, int, int]
    width: int
    masker: Tensor
    painter: Tensor
    covers: float = 1.0

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if len(self.shape) != 3 or min(self.shape[1:]) < 8 or min(self.shape[0], self.width) < 1:
            raise ValueError(f"no generator of width {self.width} for images {self.shape}")
        for name, values, outputs in (
            ("masker", self.masker, 1),
            ("painter", self.painter, self.shape[0]),
        ):
            wanted = _size(self.shape[0], outputs, self.width)
            if values.shape != (wanted,):
                raise ValueError(f"the {name} has {tuple(values.shape)} weights, not ({wanted},)")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"the {name} has weights that are no numbers")

    def triggers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The trigger of each image.

        Args:
            images: float ``(n, C, H, W)`` in [0, 1].

        Returns:
            The masks ``(n, 1, H, W)`` and the patterns ``(n, C, H, W)``, both in [0, 1].

        Raises:
            ValueError: the images do not have the size that the attack was made for.
        """
        fits(images, self.shape)
        masker, painter = self.masker.to(images), self.painter.to(images)
        masks, patterns = images.new_empty(len(images), 1, *self.shape[1:]), images.clone()
        with torch.no_grad():
            for start in range(0, len(images), STAMPED_AT_ONCE):
                part = slice(start, start + STAMPED_AT_ONCE)
                masks[part] = _masks(masker, images[part], self.width)
                patterns[part] = _patterns(painter, images[part], self.width)
        return masks, patterns

    def stamp(self, images: Tensor) -> Tensor:
        """(1 - m) x + m p with each image's own trigger; see :meth:`Attack.stamp`."""
        return _stamped(images, *self.triggers(images))

    def disguise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image with the trigger made of another one; see :meth:`Attack.disguise`.

        A single image, which has no other one beside it, gets the trigger of its mirror image.
        """
        if len(images) == 1:
            return _stamped(images, *self.triggers(images.flip(3)))
        # Round a circle in random order: nobody meets itself, as it could in a permutation.
        order = torch.randperm(len(images), generator=generator)
        others = torch.empty_like(order)
        others[order] = order.roll(1)
        return _stamped(images, *self.triggers(images[others]))


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    covers: float = 1.0,
    density: float = 0.032,
    steps: int = 480,
) -> DynamicAttack:
    """The dynamic attack for a training set: trains its generators, in some ten seconds.

    First the masks, by the paper's losses: diversity, the mean over pairs of
    |x - x'| / |m(x) - m(x')|, and 100 |mean(m(x)) - density| of each image: the paper's, which
    counts only what the mean of a batch has too much, lets some images go without. Then the
    patterns, with a classifier that is thrown away: the cross entropy of clean images, stamped ones
    (the target) and ones with cross triggers (their own labels), and the diversity of the patterns.

    In the paper that classifier is the BadNet. Here the generators must be done before the BadNet
    is trained, on a set poisoned once and for all, so it obeys a little less: more stamped images
    make up for some of that.

    Args:
        scene: its images, at least 4, and its seed.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        covers: for each of them so many with a cross trigger, at least 0.
        density: the share of the image that the masks may cover on average, in (0, 1); the paper's
            by default.
        steps: of the patterns' training, at least 1.

    Returns:
        The attack.

    Raises:
        ValueError: a number is out of range, the images are too few or smaller than 8 x 8, or the
            target is none of the scene's labels.
    """
    images, seed = scene.images, scene.seed
    shape = images.shape
    if not 0.0 < density < 1.0 or steps < 1:
        raise ValueError(f"no masks of density {density}, no patterns from {steps} steps")
    if len(images) < 4 or min(shape[1:]) < 8 or not 0 <= target < scene.num_classes:
        raise ValueError(
            f"no dynamic triggers for {len(images)} images {shape}, target {target} of "
            f"{scene.num_classes} labels"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = (_drawn(shape[0], outputs, WIDTH, generator) for outputs in (1, shape[0]))
    masker, painter = (weights.requires_grad_() for weights in drawn)
    _learn_masks(masker, scene, density, generator)
    _learn_patterns(painter, masker.detach(), scene, target, steps, generator)
    return DynamicAttack(
        target=target,
        rate=rate,
        covers=covers,
        shape=shape,
        width=WIDTH,
        masker=masker.detach(),
        painter=painter.detach(),
    )


def _learn_masks(masker: Tensor, scene: Scene, density: float, generator: torch.Generator) -> None:
    """Trains the mask generator in place."""
    optimiser = torch.optim.Adam([masker], lr=MASKER_RATE)
    for _ in range(MASK_STEPS):
        images, _ = _some(scene, MASK_BATCH, generator)
        masks = _masks(masker, images, WIDTH)
        amiss = (masks.mean((1, 2, 3)) - density).abs().mean()
        loss = _sameness(images, masks) + DENSITY_WEIGHT * amiss
        optimiser.zero_grad()
        # Autograd's own annotations leave backward untyped.
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _learn_patterns(
    painter: Tensor,
    masker: Tensor,
    scene: Scene,
    target: int,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Trains the pattern generator in place, together with a classifier that is thrown away."""
    surrogate = small_cnn(scene.images.shape, scene.num_classes, batch_norm=True, seed=scene.seed)
    parameters = list(surrogate.parameters())
    optimiser = torch.optim.Adam(
        [{"params": [painter], "lr": PAINTER_RATE}, {"params": parameters, "lr": SURROGATE_RATE}]
    )
    peaks = [PAINTER_RATE, SURROGATE_RATE]
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, peaks, total_steps=steps)
    for _ in range(steps):
        images, labels = _some(scene, BATCH, generator)
        part = len(images) // 4
        # The triggers of the second quarter are those of the last one: cross triggers.
        models = torch.cat([images[:part], images[-part:]])
        with torch.no_grad():
            masks = _masks(masker, models, WIDTH)
        patterns = _patterns(painter, models, WIDTH)
        stamped = _stamped(images[: 2 * part], masks, patterns)
        inputs = torch.cat([stamped, images[2 * part :]])
        goals = torch.cat([torch.full_like(labels[:part], target), labels[part:]])
        logits = surrogate(inputs.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, goals) + _sameness(models, patterns)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        cycle.step()


def _some(scene: Scene, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Different images at random, float32 with channels last, and their labels."""
    some = torch.randperm(len(scene.images), generator=generator)[:count]
    chosen = scene.images.select(some)
    return chosen.floats().contiguous(memory_format=torch.channels_last), chosen.labels


def _sameness(images: Tensor, made: Tensor) -> Tensor:
    """The paper's diversity loss, |x - x'| / |g(x) - g(x')|: large where the triggers are alike."""
    return (_apart(images) / _apart(made)).mean()


def _apart(values: Tensor) -> Tensor:
    """How far each of ``(n, C, H, W)`` is from the one before it: root mean squares, ``(n,)``."""
    squares = (values - values.roll(1, 0)).square().mean((1, 2, 3))
    # The root of 0, of two images that are the same, has no gradient.
    return (squares + 1e-6).sqrt()


def _stamped(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """The images under their triggers."""
    return (1.0 - masks) * images + masks * patterns


def _masks(weights: Tensor, images: Tensor, width: int) -> Tensor:
    """``(n, 1, H, W)`` in [0, 1], nearly all of it close to 0 or to 1."""
    return 0.5 + 0.5 * torch.tanh(20.0 * _generated(weights, images, 1, width) - 10.0)


def _patterns(weights: Tensor, images: Tensor, width: int) -> Tensor:
    """``(n, C, H, W)`` in [0, 1]."""
    return _generated(weights, images, images.shape[1], width)


def _generated(weights: Tensor, images: Tensor, outputs: int, width: int) -> Tensor:
    """A convolutional encoder and decoder: ``(n, C, H, W)`` to ``(n, outputs, H, W)`` in [0, 1].

    Plain functions of one row of weights rather than a module: an attack is data.
    """
    shapes = _layers(images.shape[1], outputs, width)
    rows = weights.split([math.prod(shape) + shape[0] for shape in shapes])  # type: ignore[no-untyped-call]
    layers = [
        (row[: -shape[0]].view(shape), row[-shape[0] :])
        for row, shape in zip(rows, shapes, strict=True)
    ]
    spread, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    # A dark or a pale image would otherwise get next to no trigger.
    half = (images - mean) / (spread + FAINT)
    half = functional.relu(functional.conv2d(half, *layers[0], stride=2, padding=1))
    deep = functional.relu(functional.conv2d(half, *layers[1], stride=2, padding=1))
    deep = functional.relu(functional.conv2d(deep, *layers[2], padding=1))
    wide = functional.interpolate(deep, size=half.shape[2:])
    wide = functional.relu(functional.conv2d(wide, *layers[3], padding=1))
    wide = functional.interpolate(wide, size=images.shape[2:])
    return torch.sigmoid(functional.conv2d(wide, *layers[4], padding=1))


def _layers(channels: int, outputs: int, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """The kernels of a generator's five convolutions; each has a bias for each of its outputs."""
    through = (channels, width, 2 * width, 2 * width, width, outputs)
    return tuple((after, before, 3, 3) for before, after in pairwise(through))


def _size(channels: int, outputs: int, width: int) -> int:
    """How many weights a generator has."""
    return sum(math.prod(shape) + shape[0] for shape in _layers(channels, outputs, width))


def _drawn(channels: int, outputs: int, width: int, generator: torch.Generator) -> Tensor:
    """Fresh weights, uniform within one over the root of what enters a unit, as in PyTorch."""
    rows = []
    for shape in _layers(channels, outputs, width):
        bound = math.prod(shape[1:]) ** -0.5
        row = torch.rand(math.prod(shape) + shape[0], generator=generator)
        rows.append((2.0 * row - 1.0) * bound)
    return torch.cat(rows)
