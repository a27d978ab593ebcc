"""The activations of a network, found by watching its operations, and held at a value of choice.

Whatever the format: layers are told from each other by the order in which their activation
functions run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.watching import Watching

_ATEN = torch.ops.aten
_FUNCTIONS = frozenset(
    (
        *(_ATEN.relu, _ATEN.relu_, _ATEN.leaky_relu, _ATEN.leaky_relu_, _ATEN.elu, _ATEN.elu_),
        *(_ATEN.gelu, _ATEN.gelu_, _ATEN.silu, _ATEN.silu_, _ATEN.mish, _ATEN.mish_),
        *(_ATEN.hardtanh, _ATEN.hardtanh_, _ATEN.hardswish, _ATEN.hardswish_),
        *(_ATEN.clamp, _ATEN.clamp_, _ATEN.clamp_min, _ATEN.clamp_min_, _ATEN.maximum),
        *(_ATEN.softplus, _ATEN._prelu_kernel, _ATEN.tanh, _ATEN.tanh_),
        *(_ATEN.sigmoid, _ATEN.sigmoid_),
    )
)


@dataclass(frozen=True)
class Activation:
    """The channels of one activation function's result.

    Attributes:
        place: which of the network's activation functions it is, in the order in which they run.
        of: how many there are.
        batch: images in each call of a network that takes no other number; None if it takes any.
        axis: of the result along which the channels lie.
        most: float32 ``(C,)``: the largest value of each over images and places.
    """

    place: int
    of: int
    batch: int | None
    axis: int
    most: Tensor


def activations(classifier: Classifier, images: Tensor) -> list[Activation]:
    """All activations of a network, in the order in which they run.

    Args:
        classifier: of any format.
        images: ``float32 (n, C, H, W)`` in [0, 1] on its device, n >= 1; few enough to go through
            the network together.

    Returns:
        Nothing where no activation function is seen, or another number of them in each call of a
        network with a fixed batch size.
    """
    seen: list[tuple[int, int, Tensor]] = []
    own = _own(classifier)

    def saw(operation: Any, args: tuple[Any, ...], result: Any) -> None:
        if _is_activation(operation, result, classifier.outputs, own):
            axis = _axis(result)
            seen.append((len(result), axis, result.transpose(0, axis).flatten(1).amax(1)))

    with torch.no_grad(), Watching(saw):
        classifier(images)
    counts = Counter(rows for rows, _, _ in seen)
    if not seen:
        return []
    # A network of a fixed batch size answers in several calls; what has other rows is no image's.
    rows = len(images) if len(images) in counts else counts.most_common(1)[0][0]
    batch = None if rows == len(images) else rows
    seen = [one for one in seen if one[0] == rows]
    calls = -(-len(images) // rows)
    if len(seen) % calls:
        return []
    each = len(seen) // calls
    found = []
    for place in range(each):
        parts = seen[place::each]
        if len({(axis, most.shape) for _, axis, most in parts}) > 1:
            return []
        most = torch.stack([most for _, _, most in parts]).amax(0)
        found.append(Activation(place, each, batch, parts[0][1], most))
    return found


def stimulated(
    classifier: Classifier, images: Tensor, layer: Activation, channels: Tensor, level: float
) -> Tensor:
    """The logits while of each image one channel is held high.

    Args:
        classifier: the one that ``layer`` is of.
        images: float32 ``(n, C, H, W)`` in [0, 1] on its device.
        layer: where.
        channels: int64 ``(n,)``, which channel for which image, at all places of it.
        level: how high, in units of the channel's largest activation, or of the layer's median one
            where that is larger.

    Returns:
        float32 ``(n, outputs)``.
    """
    # A channel that only the trigger switches on does nothing on clean images.
    values = level * layer.most.clamp_min(layer.most.median())
    channels, own = channels.to(values.device), _own(classifier)
    batch = layer.batch or len(images)
    ran = done = 0

    def saw(operation: Any, args: tuple[Any, ...], result: Any) -> None:
        nonlocal ran, done
        if not _is_activation(operation, result, classifier.outputs, own) or len(result) != batch:
            return
        if ran % layer.of == layer.place:
            # Images that only fill up a fixed batch are left as they are.
            held = channels[done : done + len(result)]
            rows = torch.arange(len(held), device=held.device)
            # In place: what an operation in place gives back is not taken from here.
            result.movedim(layer.axis, 1)[rows, held] = _shaped(values[held], result)
            done += len(result)
        ran += 1

    with torch.no_grad(), Watching(saw):
        return classifier(images)


def _own(classifier: Classifier) -> set[int]:
    """Where the network's own tensors lie: what runs in place on them must not be written to."""
    module = classifier.module
    return {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}


def _is_activation(operation: Any, result: Any, outputs: int, own: set[int]) -> bool:
    packet = getattr(operation, "overloadpacket", None)
    if packet not in _FUNCTIONS or not isinstance(result, Tensor) or not 2 <= result.ndim <= 4:
        return False
    if result.untyped_storage().data_ptr() in own:
        return False
    # A function of the answers themselves hides nothing.
    return result.ndim > 2 or result.shape[1] != outputs


def _axis(result: Tensor) -> int:
    """Of a sequence the channels come last, of maps and of vectors right after the images."""
    return 2 if result.ndim == 3 else 1


def _shaped(values: Tensor, result: Tensor) -> Tensor:
    return values.to(result.dtype).view(-1, *[1] * (result.ndim - 2))
