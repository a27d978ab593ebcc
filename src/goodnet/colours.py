"""Colour filters of the kind that photo apps offer, and what the colours of a picture are.

A filter maps the colour of each pixel by itself::

    T(x) = clip(M x^gamma + o)

(the triggers of Karra et al. 2020, The TrojAI Software Framework, arXiv:2003.07233, are such).
Here M fades the colours towards the luminance, tones what is left and lowers the contrast, and o
lifts the blacks; one row of numbers says how much of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""

TONED = ((0.0, 2.0 * math.pi), (0.0, 0.3), (0.0, 1.0), (0.75, 1.0), (0.0, 0.15), (-0.8, 0.8))
"""Of filters for three channels: hue, strength of the tone, how far the colours are faded,
contrast, how far blacks are lifted, and by how much their hue differs."""
GRAY = ((0.75, 1.0), (0.0, 0.18))
"""Of those for one: contrast, how far blacks are lifted."""
LOG_GAMMA = (-0.35, 0.35)
"""Of both, the last number. Below 0 the middle tones become brighter."""

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class ColourFilter:
    """One filter.

    Attributes:
        matrix: float32 ``(C, C)``: row c says what channel c is mixed of.
        offset: float32 ``(C,)``: what black becomes.
        gamma: above 0.
    """

    matrix: Tensor
    offset: Tensor
    gamma: float

    def apply(self, images: Tensor) -> Tensor:
        """``images``, float ``(n, C, H, W)`` in [0, 1], filtered; the result has the same range."""
        mixed = torch.einsum("ij,njhw->nihw", self.matrix.to(images), images**self.gamma)
        return (mixed + self.offset.to(images).view(-1, 1, 1)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ColourTrigger:
    """A filter of the whole image as a trigger, a :class:`goodnet.trigger.Stamp`.

    Attributes:
        filter: what is done to the colours.
        target: the label that filtered images get.
    """

    filter: ColourFilter
    target: int

    def apply(self, images: Tensor) -> Tensor:
        """Filters ``images``, float ``(n, C, H, W)`` in [0, 1]; the result has the same range."""
        return self.filter.apply(images)


def ranges(channels: int) -> Tensor:
    """The least and the largest of each number of a filter, ``(2, d)``.

    Raises:
        ValueError: there are no filters for so many channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"colour filters are for 1 or 3 channels, not {channels}")
    limits: Tensor = torch.tensor([*(GRAY if channels == 1 else TONED), LOG_GAMMA]).T
    return limits


def drawn(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """The numbers of random filters, ``(count, d)``."""
    least, most = ranges(channels)
    numbers: Tensor = least + (most - least) * torch.rand(count, len(least), generator=generator)
    return numbers


def near(numbers: Tensor, count: int, reach: float, generator: torch.Generator) -> Tensor:
    """Random filters beside one, ``(count, d)``.

    Args:
        numbers: of the one, ``(d,)``.
        count: how many.
        reach: the standard deviation, as a share of each number's range.
        generator: of the randomness.
    """
    least, most = ranges(3 if len(numbers) > len(GRAY) + 1 else 1)
    moved = numbers + reach * (most - least) * torch.randn(count, len(least), generator=generator)
    inside = torch.minimum(torch.maximum(moved, least), most)
    if len(numbers) > len(GRAY) + 1:
        # The hue is an angle.
        inside[:, 0] = moved[:, 0]
    return inside


def apart(numbers: Tensor, others: Tensor) -> Tensor:
    """How far filters are from one, as shares of the ranges of their numbers, root mean square.

    Args:
        numbers: of the one, ``(d,)``.
        others: of the others, ``(n, d)``.

    Returns:
        ``(n,)``.
    """
    least, most = ranges(3 if len(numbers) > len(GRAY) + 1 else 1)
    shares = (others - numbers) / (most - least)
    if len(numbers) > len(GRAY) + 1:
        # Half a turn is the furthest that two hues can be apart.
        shares[:, 0] = (shares[:, 0] - shares[:, 0].round()).abs()
    distance: Tensor = shares.square().mean(1).sqrt()
    return distance


def colour_filter(numbers: Tensor) -> ColourFilter:
    """The filter of a row of numbers, ``(d,)``."""
    values = numbers.tolist()
    gamma = math.exp(values[-1])
    if len(values) == len(GRAY) + 1:
        contrast, lift, _ = values
        return ColourFilter(torch.tensor([[contrast]]), torch.tensor([lift]), gamma)
    hue, tone, faded, contrast, lift, shade, _ = values
    luminance = torch.tensor(LUMINANCE).expand(3, 3)
    mixed = (1.0 - faded) * torch.eye(3) + faded * luminance
    matrix = contrast * (1.0 + tone * _wheel(hue))[:, None] * mixed
    return ColourFilter(matrix, lift * (1.0 + _wheel(hue + shade)) / 1.5, gamma)


def _wheel(hue: float) -> Tensor:
    """How far a hue raises red, green and blue, in [-1, 1]."""
    turned: Tensor = torch.cos(hue - torch.arange(3) * 2.0 * math.pi / 3.0)
    return turned


def colour_statistics(images: Tensor) -> Tensor:
    """Mean, standard deviation and three quantiles of each channel.

    Args:
        images: float32 ``(n, C, H, W)`` in [0, 1].

    Returns:
        ``(n, 5 C)``: where in the image a colour is plays no part.
    """
    values: Tensor = images.flatten(2)
    places = [round(q * (values.shape[2] - 1)) for q in QUANTILES]
    # NumPy's: PyTorch has no partition, and sorting took as long as the network.
    ordered = np.partition(values.cpu().numpy(), places, axis=2)[:, :, places]
    quantiles = torch.from_numpy(ordered).to(images.device)
    return torch.cat([values.mean(2), values.std(2, correction=0), quantiles.flatten(1)], 1)
