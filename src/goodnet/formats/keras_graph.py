"""A torch network from a Keras model's configuration and weights, without Keras.

The models inside the model are unfolded into one graph; layers keep their own weights however
often they are used. Nothing of the configuration is executed: a layer that is not in the table is
an error.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.keras_config import (
    MALFORMED,
    Layer,
    LayerPath,
    Model,
    Ref,
    damaged,
    parse,
    untranslatable,
)
from goodnet.formats.keras_layers import find
from goodnet.formats.keras_network import KerasNetwork
from goodnet.formats.keras_ops import Function
from goodnet.formats.keras_tape import Slot, Tape, Value

UNKNOWN_SIZE = 224
"""Pixels that stand for an unknown height or width while shapes are worked out."""


@dataclass(frozen=True)
class Built:
    """A translated model.

    Attributes:
        module: float32 ``(n, C, H, W)`` in the model's own scale to logits ``(n, K)``.
        slots: which array of the file became which tensor of ``module``.
        input_shape: ``(C, H, W)``, or None where the model takes any height or width.
        num_classes: K.
    """

    module: KerasNetwork
    slots: tuple[Slot, ...]
    input_shape: tuple[int, int, int] | None
    num_classes: int

    def read(self, module: nn.Module) -> dict[tuple[LayerPath, int], Tensor]:
        """All weights of ``module``, a copy of :attr:`module`, in Keras' layout, by their place.

        Raises:
            GoodnetError: M011 when ``module`` is no such copy.
        """
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        found: dict[tuple[LayerPath, int], Tensor] = {}
        for slot in self.slots:
            if slot.tensor not in state:
                raise GoodnetError(
                    "M011",
                    f"the network has lost its weight {slot.tensor}",
                    "pass a copy of the network that was loaded, with other values only",
                )
            tensor = state[slot.tensor].detach().cpu()
            found[slot.path, slot.index] = slot.layout.to_keras(tensor).contiguous()
        return found


def build(
    config: object | Model,
    weights: Mapping[LayerPath, Sequence[np.ndarray]],
    mismatch: str = "M003",
    keras: int = 3,
) -> Built:
    """Translates a Keras model.

    Args:
        config: ``{"class_name": ..., "config": ...}`` as in ``model_config`` or ``config.json``,
            of any version of Keras; or what :func:`keras_config.parse` made of it.
        weights: for the path of each layer (names of the models around it, then its own) its
            arrays in Keras' order and layout.
        mismatch: the code of the error for weights that are missing or of another shape.
        keras: the major version of Keras that wrote the file.

    Raises:
        GoodnetError: M003 malformed or absurd, M005 Python code in it, M006 a layer that cannot be
            translated, M009 no image classifier with two classes or more, M012 weights that are
            not finite, and ``mismatch``.
    """
    model = config if isinstance(config, Model) else parse(config)
    if not model.sequential and (len(model.inputs) != 1 or len(model.outputs) != 1):
        raise _no_classifier(f"it has {len(model.inputs)} inputs and {len(model.outputs)} outputs")
    tape = Tape(weights, mismatch, keras)
    value, shape = _input(tape, model)
    (output,) = _unfold(tape, model, [value])
    # The scores that go into a final softmax or sigmoid rank the classes alike and keep gradients.
    output = tape.scores.get(output.index, output)
    output = tape.plain(model.layers[-1], output)
    if output.rank != 2 or output.index == 0:
        raise _no_classifier(f"its output for an image has shape {output.shape[1:]}")
    classes = int(output.size[1])
    if classes < 2:
        raise _no_classifier("it has a single output unit")
    return Built(tape.finish(output), tuple(tape.slots), shape, classes)


def _no_classifier(why: str) -> GoodnetError:
    return GoodnetError(
        "M009",
        f"the Keras model is not an image classifier that goodnet can scan: {why}",
        "pass a model that takes one image and gives a score for each of two or more classes",
    )


def _input(tape: Tape, model: Model) -> tuple[Value, tuple[int, int, int] | None]:
    """The tape's first value, and the (C, H, W) that the model states."""
    given = model.input_shape
    if given is None:
        raise _no_classifier("it does not say the size of its input; build it before saving it")
    shape = list(given[1:])
    if len(shape) == 2 and None not in shape:
        return _gray(tape, model, (int(shape[0] or 0), int(shape[1] or 0)))
    if len(shape) != 3:
        raise _no_classifier(f"its input has shape {tuple(shape)}, not height, width, channels")
    first_image_layer = next(
        (layer for layer in model.leaves() if "data_format" in layer.config), None
    )
    moved = first_image_layer is None or (
        first_image_layer.config["data_format"] != "channels_first"
    )
    height, width, channels = shape if moved else (shape[1], shape[2], shape[0])
    if channels is None or not 0 < channels <= 1024:
        raise _no_classifier(f"its input has {channels} channels")
    sizes = [UNKNOWN_SIZE if size is None else size for size in (height, width)]
    if not all(0 < size <= 1 << 14 for size in sizes):
        raise damaged(f"the model's input has the absurd shape {tuple(shape)}")
    stated = None if height is None or width is None else (channels, height, width)
    return Value(0, (1, channels, *sizes), "moved" if moved else "plain"), stated


def _gray(
    tape: Tape, model: Model, size: tuple[int, int]
) -> tuple[Value, tuple[int, int, int] | None]:
    """Images without a channel axis, as in many a first tutorial: one channel is taken off."""
    if not all(0 < length <= 1 << 14 for length in size):
        raise damaged(f"the model's input has the absurd shape {size}")
    value = Value(0, (1, 1, *size))
    value = tape.emit(model.layers[0], Function(torch.squeeze, dim=1), [value])
    return value, (1, *size)


def _unfold(tape: Tape, model: Model, inputs: Sequence[Value]) -> list[Value]:
    """Records a model, and those inside it, applied to ``inputs``; gives its outputs."""
    if model.sequential:
        values = list(inputs)
        for layer in model.layers:
            if layer.type != "InputLayer":
                values = _apply(tape, layer, values)
        return values
    if len(inputs) != len(model.inputs):
        raise damaged("a model inside the model is called with the wrong number of inputs")
    known = dict(zip(model.inputs, inputs, strict=True))
    pending = [
        (layer, number, call)
        for layer in model.layers
        if layer.type != "InputLayer"
        for number, call in enumerate(layer.calls)
    ]
    lacking = [
        {a for a in call.arguments if isinstance(a, Ref)} - known.keys() for *_, call in pending
    ]
    takers: defaultdict[Ref, list[int]] = defaultdict(list)
    for index, refs in enumerate(lacking):
        for ref in refs:
            takers[ref].append(index)
    # The order of the file as far as possible: of those that can be applied the first one.
    ready = [index for index, refs in enumerate(lacking) if not refs]
    done = 0
    while ready:
        layer, number, call = pending[heapq.heappop(ready)]
        done += 1
        arguments = [known[a] if isinstance(a, Ref) else a for a in call.arguments]
        for tensor, value in enumerate(_apply(tape, layer, arguments)):
            ref = Ref(layer.name, number, tensor)
            known[ref] = value
            for taker in takers.pop(ref, ()):
                lacking[taker].discard(ref)
                if not lacking[taker]:
                    heapq.heappush(ready, taker)
    if done < len(pending):
        stuck = next(layer for (layer, *_), refs in zip(pending, lacking, strict=True) if refs)
        raise damaged(f"the layer '{stuck.name}' takes a tensor that nothing makes")
    missing = [ref.layer for ref in model.outputs if ref not in known]
    if missing:
        raise damaged(f"the model's output '{missing[0]}' is made by nothing")
    return [known[ref] for ref in model.outputs]


def _apply(tape: Tape, layer: Layer, inputs: Sequence[Value | float]) -> list[Value]:
    """Records one layer, or one model inside the model."""
    tape.use(layer)
    if layer.model is not None:
        tensors = [value for value in inputs if isinstance(value, Value)]
        if len(tensors) != len(inputs):
            raise untranslatable(layer.name, layer.type, "it is called with a number")
        return _unfold(tape, layer.model, tensors)
    entry = find(layer)
    try:
        return [entry.build(tape, layer, inputs)]
    except (*MALFORMED, RuntimeError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise damaged(
            f"the settings of the layer '{layer.name}' ({layer.type}) are malformed: {reason}"
        ) from error
