"""A small network and its training: enough for a BadNet in seconds on two cores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from goodnet.images import Images

Progress = Callable[[int, int, float], None]
"""Called after each epoch with its number from 1, the number of epochs and the mean loss."""


def small_cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 16,
    batch_norm: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """Three blocks of convolution, ReLU and max pooling, then one linear layer.

    Args:
        input_shape: ``(C, H, W)`` of one image; H and W at least 8.
        num_classes: K.
        width: channels of the first block; the second has twice, the third four times as many.
        batch_norm: whether each convolution is followed by batch normalisation.
        seed: of the initial weights.

    Returns:
        A network in train mode: float32 ``(n, C, H, W)`` in [0, 1] to logits ``(n, K)``.

    Raises:
        ValueError: the images are too small, or there is no class or no channel to make.
    """
    channels, height, columns = input_shape
    if min(height, columns) < 8 or min(num_classes, width, channels) < 1:
        raise ValueError(f"no network of width {width} for {input_shape} and {num_classes} classes")
    layers: list[nn.Module] = []
    # The caller's random state is none of our business: it is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for outputs in (width, 2 * width, 4 * width):
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, columns = outputs, height // 2, columns // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * columns, num_classes)]
    return nn.Sequential(*layers)


def train(
    module: nn.Module,
    images: Images,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 1e-3,
    batch: int = 64,
    shift: int = 0,
    mirror: bool = False,
    progress: Progress | None = None,
) -> nn.Module:
    """Trains a classifier in place with Adam and a one-cycle learning rate.

    Memory stays at one batch of floats beside the bytes. The same seed on the same machine with the
    same number of threads gives the same weights.

    Args:
        module: float32 ``(n, C, H, W)`` in [0, 1] to logits ``(n, K)``.
        images: what to train on; ``labels`` are the goal, whether they are true or not.
        epochs: how often each image is seen, at least 1.
        seed: of the order of the images, the shifts and the mirroring.
        learning_rate: the peak of the cycle.
        batch: images per step.
        shift: each image is moved by up to so many pixels both ways, at random; 0 for not at all.
        mirror: each image is turned left to right, or not, at random.
        progress: called after each epoch.

    Returns:
        The same module, in eval mode.

    Raises:
        ValueError: there is no image, or no epoch.
    """
    if len(images) == 0 or epochs < 1:
        raise ValueError(f"cannot train on {len(images)} images for {epochs} epochs")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
    steps = epochs * -(-len(images) // batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    module.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for index in _batches(torch.randperm(len(images), generator=generator), batch):
            pixels = images.pixels[index]
            if shift:
                pixels = _shifted(pixels, shift, generator)
            if mirror:
                turned = torch.rand(len(index), generator=generator) < 0.5
                pixels = torch.where(turned.view(-1, 1, 1, 1), pixels.flip(3), pixels)
            # Channels last: convolutions on a CPU take a third less time.
            inputs = _floats(pixels).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(module(inputs), images.labels[index])
            optimiser.zero_grad()
            # Autograd's own annotations leave backward untyped.
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            cycle.step()
            total += float(loss.detach()) * len(index)
        if progress is not None:
            progress(epoch, epochs, total / len(images))
    return module.eval()


def accuracy(module: nn.Module, images: Images, *, batch: int = 256) -> float:
    """The share of images that get their label: of a poisoned test set, the attack's success.

    Args:
        module: float32 ``(n, C, H, W)`` in [0, 1] to logits; used in the mode that it is in.
        images: at least one.
        batch: images per forward pass.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: there is no image.
    """
    if len(images) == 0:
        raise ValueError("no images to measure on")
    right = 0
    with torch.no_grad():
        for index in _batches(torch.arange(len(images)), batch):
            pixels, labels = images.pixels[index], images.labels[index]
            right += int((module(_floats(pixels)).argmax(1) == labels).sum())
    return right / len(images)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """``order`` cut into pieces of ``size``, the last one shorter."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def _floats(pixels: Tensor) -> Tensor:
    """Bytes in 0..255 as float32 in [0, 1]; floats as they are."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def _shifted(pixels: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Moves each image ``(n, C, H, W)`` by up to ``reach`` pixels; the rim is repeated."""
    count, channels, height, width = pixels.shape
    moves = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[1]).clamp(0, width - 1)
    return pixels[
        torch.arange(count).view(-1, 1, 1, 1),
        torch.arange(channels).view(1, -1, 1, 1),
        rows.view(count, 1, height, 1),
        columns.view(count, 1, 1, width),
    ]
