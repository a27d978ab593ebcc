"""The activations of a network, found by watching its operations, and held at a value of choice.

Whatever the format: layers are told from each other by the order in which their activation
functions run. That has to be the same in every call; where it is not, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.formats.torch_export import ExportModule
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
_CONVOLUTIONS = frozenset((_ATEN.convolution, _ATEN._convolution, _ATEN.conv1d, _ATEN.conv2d))
_PRODUCTS = frozenset((_ATEN.addmm, _ATEN.mm, _ATEN.matmul, _ATEN.linear, _ATEN.bmm, _ATEN.baddbmm))


class Unsteady(Exception):  # noqa: N818 - a network that cannot be followed is no error
    """Raised where the activations of one call are not those of another."""


@dataclass(frozen=True)
class Activation:
    """The channels of one activation function's result.

    Attributes:
        place: which of the network's activation functions it is, in the order in which they run.
        of: how many there are.
        axis: of the result along which the channels lie: after a convolution the one behind the
            images, after a matrix product the last.
        most: float32 ``(C,)``: the largest value of each over images and places.
    """

    place: int
    of: int
    axis: int
    most: Tensor


def activations(classifier: Classifier, images: Tensor) -> list[Activation]:
    """All activations of a network, in the order in which they run.

    Args:
        classifier: of any format.
        images: ``float32 (n, C, H, W)`` in [0, 1] on its device, n >= 1: as many as are to be
            given to :func:`stimulated`, as an operation of the network on something else may be
            taken for one on images where it has as many rows.

    Returns:
        Nothing where no activation function is seen.

    Raises:
        Unsteady: they are not the same in each call of a network with a fixed batch size.
    """
    seen: list[tuple[int, Tensor]] = []

    def see(result: Tensor, axis: int) -> None:
        seen.append((axis, result.transpose(0, axis).flatten(1).amax(1)))

    _watch(classifier, images, see)
    calls = -(-len(images) // _rows(classifier, images))
    if len(seen) % calls:
        raise Unsteady
    each = len(seen) // calls
    found = []
    for place in range(each):
        parts = seen[place::each]
        if len({(axis, most.shape) for axis, most in parts}) > 1:
            raise Unsteady
        most = torch.stack([most for _, most in parts]).amax(0)
        found.append(Activation(place, each, parts[0][0], most))
    return found


def stimulated(
    classifier: Classifier, images: Tensor, layer: Activation, channels: Tensor, level: float
) -> Tensor:
    """The logits while of each image one channel is held high.

    Give a copy of a classifier: a network may compute in place on tensors that it keeps, and what
    is held is written there.

    Args:
        classifier: the one that ``layer`` is of.
        images: float32 ``(n, C, H, W)`` in [0, 1] on its device, as many as ``layer`` was found
            with.
        layer: where.
        channels: int64 ``(n,)``, which channel for which image, at all places of it.
        level: how high, in units of the channel's largest activation, or of the layer's median one
            where that is larger.

    Returns:
        float32 ``(n, outputs)``.

    Raises:
        Unsteady: other activations ran than those that were found.
    """
    # A channel that only the trigger switches on does nothing on clean images.
    values = level * layer.most.clamp_min(layer.most.median())
    channels = channels.to(values.device)
    ran = done = 0

    def hold(result: Tensor, axis: int) -> None:
        nonlocal ran, done
        if ran % layer.of == layer.place:
            # Images that only fill up a fixed batch are left as they are.
            held = channels[done : done + len(result)]
            rows = torch.arange(len(held), device=held.device)
            if axis != layer.axis or result.shape[axis] != len(values):
                raise Unsteady
            # In place: what an operation in place gives back is not taken from here.
            result.movedim(axis, 1)[rows, held] = _shaped(values[held], result)
            done += len(result)
        ran += 1

    logits = _watch(classifier, images, hold)
    if done < len(images) or ran % layer.of:
        raise Unsteady
    return logits


def _watch(classifier: Classifier, images: Tensor, act: Callable[[Tensor, int], None]) -> Tensor:
    """Calls ``act`` with the result of each activation function and the axis of its channels."""
    rows = _rows(classifier, images)
    module = classifier.module
    own = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    after_product = False

    def saw(operation: Any, args: tuple[Any, ...], result: Any) -> None:
        nonlocal after_product
        packet = getattr(operation, "overloadpacket", None)
        if packet in _CONVOLUTIONS or packet in _PRODUCTS:
            after_product = packet in _PRODUCTS
        elif packet in _FUNCTIONS and "out" not in operation._overloadname:
            if not isinstance(result, Tensor) or not result.is_floating_point():
                return
            if not 2 <= result.ndim <= 4 or len(result) != rows:
                return
            axis = result.ndim - 1 if after_product else 1
            # A function of the answers themselves hides nothing.
            answers = result.ndim == 2 and result.shape[1] == classifier.outputs
            if not answers and result.untyped_storage().data_ptr() not in own:
                act(result, axis)

    with torch.no_grad(), Watching(saw):
        return classifier(images)


def _rows(classifier: Classifier, images: Tensor) -> int:
    """Images in each call: a network of a fixed batch size answers in several."""
    exported = (m for m in classifier.module.modules() if isinstance(m, ExportModule))
    return next((m.chunk for m in exported if m.chunk is not None), len(images))


def _shaped(values: Tensor, result: Tensor) -> Tensor:
    return values.to(result.dtype).view(-1, *[1] * (result.ndim - 2))
