"""Keras layers without weights: each function records one layer on the tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from goodnet.formats import keras_ops as ops
from goodnet.formats import keras_settings as settings
from goodnet.formats.keras_config import Layer, carries_code, untranslatable
from goodnet.formats.keras_ops import Affine, Function
from goodnet.formats.keras_settings import data_format, first, number, only, pair
from goodnet.formats.keras_tape import TO_MOVED, Tape, Value

Inputs = Sequence[Value | float]
Builder = Callable[[Tape, Layer, Inputs], Value]


def identity(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Dropout, noise and augmentation do nothing outside training."""
    return only(layer, inputs)


def softmax(tape: Tape, layer: Layer, value: Value, axis: int, log: bool = False) -> Value:
    """Softmax over Keras' ``axis``; the scores below it are remembered on the tape."""
    dim = value.axis(axis)
    result = tape.emit(
        layer, Function(torch.log_softmax if log else torch.softmax, dim=dim), [value], value
    )
    if dim == value.rank - 1:
        tape.scores[result.index] = value
    return result


def activate(tape: Tape, layer: Layer, value: Value, activation: object) -> Value:
    """Records an activation by its name, or by the layer that Keras writes in its place.

    Raises:
        GoodnetError: M005 for a Python function, M006 for a name that is not known.
    """
    if activation is None or activation == "linear":
        return value
    if isinstance(activation, dict):
        kind, config = activation.get("class_name"), activation.get("config")
        if kind in ACTIVATION_LAYERS and isinstance(config, dict):
            inner = replace(layer, type=str(kind), config=config)
            return ACTIVATION_LAYERS[str(kind)](tape, inner, [value])
        if not str(activation.get("module")).startswith("keras") or not isinstance(config, str):
            raise carries_code(f"{layer.name}: activation {str(config)[:40]}")
        activation = config
    name = str(activation).lower()
    if name in ("softmax", "log_softmax"):
        return softmax(tape, layer, value, -1, name == "log_softmax")
    if name not in ops.ACTIVATIONS:
        raise untranslatable(layer.name, layer.type, f"activation '{name[:40]}' is not known")
    function, keywords = ops.ACTIVATIONS[name]
    if name == "hard_sigmoid" and tape.keras < 3:
        keywords = {"slope": 0.2}
    result = tape.emit(layer, Function(function, **keywords), [value], value)
    if name == "sigmoid":
        tape.scores[result.index] = value
    return result


def activation_layer(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Activation."""
    return activate(tape, layer, only(layer, inputs), layer.config.get("activation"))


def named(activation: str) -> Builder:
    """The builder of an operation that is an activation, e.g. ``keras.ops.relu``."""

    def build(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
        return activate(tape, layer, only(layer, inputs), activation)

    return build


def relu(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """ReLU with its three settings."""
    value = only(layer, inputs)
    top = first(layer, ("max_value",))
    slope = number(layer, ("negative_slope",), 0.0)
    threshold = number(layer, ("threshold", "theta"), 0.0)
    if slope == 0 and threshold == 0 and top is None:
        return tape.emit(layer, Function(F.relu), [value], value)
    limit = None if top is None else number(layer, ("max_value",), 0.0)
    module = Function(ops.relu, max_value=limit, negative_slope=slope, threshold=threshold)
    return tape.emit(layer, module, [value], value)


def leaky_relu(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """LeakyReLU; Keras 2 calls the slope alpha."""
    value = only(layer, inputs)
    slope = number(layer, ("negative_slope", "alpha"), 0.3)
    return tape.emit(layer, Function(F.leaky_relu, negative_slope=slope), [value], value)


def elu(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """ELU."""
    value = only(layer, inputs)
    return tape.emit(layer, Function(F.elu, alpha=number(layer, ("alpha",), 1.0)), [value], value)


def softmax_layer(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Softmax over one axis."""
    axes = settings.axes(first(layer, ("axis",), -1))
    if len(axes) != 1:
        raise untranslatable(layer.name, layer.type, "it has several axes")
    return softmax(tape, layer, only(layer, inputs), axes[0])


ACTIVATION_LAYERS: dict[str, Builder] = {
    "ReLU": relu,
    "ThresholdedReLU": relu,
    "LeakyReLU": leaky_relu,
    "ELU": elu,
    "Softmax": softmax_layer,
    "Activation": activation_layer,
}


def pooling(average: bool) -> Builder:
    """MaxPooling2D or AveragePooling2D."""

    def build(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
        value = tape.images(layer, only(layer, inputs), data_format(layer))
        size = pair(first(layer, ("pool_size",), 2))
        strides = pair(first(layer, ("strides",), list(size)))
        module: nn.Module
        if settings.same_padding(layer):
            function = ops.average_pool_same if average else ops.max_pool_same
            module = Function(function, kernel=size, strides=strides)
        elif average:
            module = Function(F.avg_pool2d, kernel_size=size, stride=strides)
        else:
            module = Function(F.max_pool2d, kernel_size=size, stride=strides)
        return tape.emit(layer, module, [value], value)

    return build


def global_pooling(function: Callable[..., Tensor]) -> Builder:
    """GlobalAveragePooling2D or GlobalMaxPooling2D."""

    def build(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
        value = tape.images(layer, only(layer, inputs), data_format(layer))
        keep = bool(layer.config.get("keepdims"))
        return tape.emit(layer, Function(function, keepdims=keep), [value], value if keep else None)

    return build


def flatten(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Flatten. An image stays in torch's order of columns where that differs from Keras'."""
    value = only(layer, inputs)
    # Keras moves the channels of a channels-first image to the end before it flattens.
    turned = data_format(layer) == "channels_first" and value.rank == 4
    if turned:
        value = tape.plain(layer, value)
    result = tape.emit(layer, Function(torch.flatten, start_dim=1), [value])
    if value.form == "columns":
        return replace(result, form="columns", chw=value.chw)
    if value.form == "moved" or turned:
        channels, height, width = value.size[1:]
        if channels > 1 and height * width > 1:
            return replace(result, form="columns", chw=(channels, height, width))
    return result


def reshape(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Reshape."""
    value = tape.plain(layer, only(layer, inputs))
    target = layer.config["target_shape"]
    shape = tuple(-1 if size in (None, -1) else settings.whole(size) for size in target)
    return tape.emit(layer, Function(ops.reshape, shape=shape), [value])


def permute(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Permute, whose axes count from 1."""
    value = tape.plain(layer, only(layer, inputs))
    dims = (0, *(settings.whole(axis) for axis in layer.config["dims"]))
    return tape.emit(layer, Function(torch.permute, dims=dims), [value])


def zero_padding(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """ZeroPadding2D."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    top, bottom, left, right = settings.sides(first(layer, ("padding",), 1))
    return tape.emit(layer, Function(F.pad, pad=(left, right, top, bottom)), [value], value)


def cropping(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Cropping2D."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    top, bottom, left, right = settings.sides(first(layer, ("cropping",), 0))
    module = Function(ops.crop, top=top, bottom=bottom, left=left, right=right)
    return tape.emit(layer, module, [value], value)


def up_sampling(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """UpSampling2D, nearest or bilinear."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    height, width = pair(first(layer, ("size",), 2))
    mode = str(first(layer, ("interpolation",), "nearest"))
    if mode not in ("nearest", "bilinear"):
        raise untranslatable(layer.name, layer.type, f"interpolation '{mode[:40]}'")
    scale = (float(height), float(width))
    return tape.emit(layer, Function(F.interpolate, scale_factor=scale, mode=mode), [value], value)


def resizing(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Resizing to fixed numbers of pixels, bilinear."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    special = ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    if any(layer.config.get(name) for name in special):
        raise untranslatable(layer.name, layer.type, "only plain resizing is")
    # torch and TensorFlow pick other pixels for 'nearest' where the factor is not whole.
    if first(layer, ("interpolation",), "bilinear") != "bilinear":
        raise untranslatable(layer.name, layer.type, "only bilinear resizing is")
    size = pair([layer.config["height"], layer.config["width"]])
    return tape.emit(layer, Function(F.interpolate, size=size, mode="bilinear"), [value], value)


def rescaling(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Rescaling by numbers, or by one number for each channel."""
    value = only(layer, inputs)
    if value.form == "columns":
        value = tape.plain(layer, value)
    numbers = (first(layer, ("scale",), 1.0), first(layer, ("offset",), 0.0))
    scale, offset = (_against(value, torch.from_numpy(settings.array(n))) for n in numbers)
    return tape.emit(layer, Affine(scale, offset), [value], value)


def _against(value: Value, numbers: Tensor) -> Tensor:
    """``numbers``, which broadcast against Keras' tensor, so that they do against torch's."""
    rank = value.rank
    if numbers.dim() == 0:
        return numbers
    vector = numbers.dim() == 1 and rank == 4 and value.form == "plain"
    if vector and value.shape[1] == len(numbers) != value.shape[3]:
        # Keras set to channels-first; the file does not say so, the shape does.
        return numbers.view(1, -1, 1, 1).clone()
    full = numbers.reshape(*([1] * (rank - numbers.dim())), *numbers.shape)
    return full.permute(*TO_MOVED).contiguous() if value.form == "moved" else full.clone()


def _aligned(tape: Tape, layer: Layer, inputs: Inputs) -> list[Value | float]:
    """The inputs with every tensor in the same form."""
    values = [value for value in inputs if isinstance(value, Value)]
    if len({(value.form, value.chw) for value in values}) == 1:
        return list(inputs)
    if all(value.rank == 4 for value in values):
        return [
            tape.images(layer, v, "channels_last") if isinstance(v, Value) else v for v in inputs
        ]
    return [tape.plain(layer, v) if isinstance(v, Value) else v for v in inputs]


def merging(function: Callable[..., Tensor], operation: bool = False) -> Builder:
    """Add, Multiply and their like: as layers, or as operations, which also take numbers."""

    def build(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
        values = [value for value in inputs if isinstance(value, Value)]
        ranks = {value.rank for value in values}
        if not values or len(inputs) < 2 or (not operation and len(values) != len(inputs)):
            raise ValueError(f"the layer '{layer.name}' takes at least two tensors")
        if len(ranks) > 1:
            # A vector against an image is aligned at the last axis by operations, not by layers.
            if not operation:
                raise untranslatable(layer.name, layer.type, "its inputs have different ranks")
            inputs = [tape.plain(layer, v) if isinstance(v, Value) else v for v in inputs]
        aligned = _aligned(tape, layer, inputs)
        largest = max((v for v in aligned if isinstance(v, Value)), key=lambda v: v.rank)
        return tape.emit(layer, Function(function), aligned, largest)

    return build


def concatenate(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Concatenate along one axis."""
    values = [value for value in inputs if isinstance(value, Value)]
    if len(values) != len(inputs) or not values:
        raise ValueError(f"the layer '{layer.name}' takes tensors")
    if any(value.form == "columns" for value in values):
        values = [tape.plain(layer, value) for value in values]
    aligned = [v for v in _aligned(tape, layer, values) if isinstance(v, Value)]
    axis = settings.axes(first(layer, ("axis", "concat_axis"), -1))[0]
    module = Function(ops.concatenate, dim=aligned[0].axis(axis))
    return tape.emit(layer, module, aligned, aligned[0])
