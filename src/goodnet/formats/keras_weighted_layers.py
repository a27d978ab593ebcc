"""Keras layers with weights: each function records one layer and fills a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.formats import keras_settings as settings
from goodnet.formats.keras_config import Layer, untranslatable
from goodnet.formats.keras_ops import Affine, AxisNorm, Function, PReLU, pad_same
from goodnet.formats.keras_plain_layers import Inputs, activate
from goodnet.formats.keras_settings import data_format, first, number, only, pair
from goodnet.formats.keras_tape import (
    CONVOLUTION,
    LINEAR,
    TO_MOVED,
    Layout,
    Tape,
    Value,
    broadcast,
    depthwise,
    linear_on_columns,
)


def biased(*kernels: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """From settings to the names of ``kernels``, with a bias where the layer has one."""

    def names(config: Mapping[str, Any]) -> tuple[str, ...]:
        bias = config.get("use_bias", config.get("bias", True)) is not False
        return (*kernels, "bias") if bias else kernels

    return names


def scaled(*statistics: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """From settings to gamma and beta, where the layer has them, and the ``statistics``."""

    def names(config: Mapping[str, Any]) -> tuple[str, ...]:
        gamma = ("gamma",) if config.get("scale", True) is not False else ()
        beta = ("beta",) if config.get("center", True) is not False else ()
        return (*gamma, *beta, *statistics)

    return names


def normalization_weights(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What Normalization keeps as weights: nothing where the numbers stand in its settings."""
    return () if config.get("mean") is not None else ("mean", "variance", "count")


def _windowed(
    tape: Tape, layer: Layer, value: Value, module: nn.Conv2d, like: Value, same: bool
) -> Value:
    """Records a convolution with its padding."""
    kernel, strides, dilation = (
        (int(p[0]), int(p[1])) for p in (module.kernel_size, module.stride, module.dilation)
    )
    if same and module.padding == (0, 0):
        pad = Function(pad_same, kernel=kernel, strides=strides, dilation=dilation)
        value = tape.emit(layer, pad, [value], like)
    return tape.emit(layer, module, [value], like)


def _convolution(layer: Layer, channels: int, filters: int, groups: int, names: str) -> nn.Conv2d:
    """A convolution without memory for its weights, so that absurd settings cost nothing."""
    settings_of = layer.config
    kernel = (
        (settings.whole(settings_of["nb_row"]), settings.whole(settings_of["nb_col"]))
        if "nb_row" in settings_of
        else pair(settings_of["kernel_size"])
    )
    strides = pair(first(layer, ("strides", "subsample"), 1))
    dilation = pair(first(layer, ("dilation_rate",), 1))
    span = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
    # Where torch's symmetric padding is TensorFlow's too, the convolution pads by itself.
    inside = (
        settings.same_padding(layer) and strides == (1, 1) and all(size % 2 == 0 for size in span)
    )
    module = nn.Conv2d(
        channels,
        filters,
        kernel,
        strides,
        (span[0] // 2, span[1] // 2) if inside else 0,
        dilation,
        groups,
        "bias" in names,
        device="meta",
    )
    return module


def conv2d(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Conv2D, with groups, dilation and either padding."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    if layer.config.get("dim_ordering") == "th":
        raise untranslatable(layer.name, layer.type, "it was written for Theano")
    names = biased("kernel")(layer.config)

    def make() -> tuple[nn.Module, ...]:
        channels = value.size[1]
        filters = settings.whole(first(layer, ("filters", "nb_filter")))
        groups = settings.whole(first(layer, ("groups",), 1))
        module = _convolution(layer, channels, filters, groups, " ".join(names))
        shape = (*module.kernel_size, channels // groups, filters)
        tape.fill(layer, module, "weight", 0, shape, CONVOLUTION)
        if "bias" in names:
            tape.fill(layer, module, "bias", 1, (filters,))
        return (module,)

    (module,) = tape.shared(layer, make)
    assert isinstance(module, nn.Conv2d)  # noqa: S101 - what make() gave
    result = _windowed(tape, layer, value, module, value, settings.same_padding(layer))
    return activate(tape, layer, result, layer.config.get("activation"))


def depthwise_conv2d(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """DepthwiseConv2D, and SeparableConv2D with the pointwise convolution after it."""
    value = tape.images(layer, only(layer, inputs), data_format(layer))
    separable = layer.type.startswith("Separable")
    names = biased("kernel")(layer.config)

    def make() -> tuple[nn.Module, ...]:
        channels = value.size[1]
        multiplier = settings.whole(first(layer, ("depth_multiplier",), 1))
        inner = channels * multiplier
        bias = "" if separable else " ".join(names)
        module = _convolution(layer, channels, inner, channels, bias)
        shape = (*module.kernel_size, channels, multiplier)
        tape.fill(layer, module, "weight", 0, shape, depthwise(multiplier))
        if not separable:
            if "bias" in names:
                tape.fill(layer, module, "bias", 1, (inner,))
            return (module,)
        filters = settings.whole(first(layer, ("filters", "nb_filter")))
        point = nn.Conv2d(inner, filters, 1, bias="bias" in names, device="meta")
        tape.fill(layer, point, "weight", 1, (1, 1, inner, filters), CONVOLUTION)
        if "bias" in names:
            tape.fill(layer, point, "bias", 2, (filters,))
        return module, point

    modules = tape.shared(layer, make)
    result = value
    for module in modules:
        assert isinstance(module, nn.Conv2d)  # noqa: S101 - what make() gave
        same = settings.same_padding(layer) and module is modules[0]
        result = _windowed(tape, layer, result, module, value, same)
    return activate(tape, layer, result, layer.config.get("activation"))


def dense(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Dense, on the last axis of any number of axes."""
    value = only(layer, inputs)
    if value.form == "moved":
        value = tape.plain(layer, value)
    if layer.path in tape.columns and tape.columns[layer.path] != value.chw:
        # Shared: the kernel's rows already stand in the order of the first call.
        value = tape.ordered(layer, value, tape.columns[layer.path])
    tape.columns.setdefault(layer.path, value.chw)
    names = biased("kernel")(layer.config)

    def make() -> tuple[nn.Module, ...]:
        units = settings.whole(first(layer, ("units", "output_dim")))
        width = value.size[-1]
        module = nn.Linear(width, units, "bias" in names, device="meta")
        layout = LINEAR if value.chw is None else linear_on_columns(value.chw)
        tape.fill(layer, module, "weight", 0, (width, units), layout)
        if "bias" in names:
            tape.fill(layer, module, "bias", 1, (units,))
        return (module,)

    (module,) = tape.shared(layer, make)
    result = tape.emit(layer, module, [value])
    return activate(tape, layer, result, layer.config.get("activation"))


def batch_normalization(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """BatchNormalization over one axis, by its stored statistics."""
    value = only(layer, inputs)
    if value.form == "columns":
        value = tape.plain(layer, value)
    axes = settings.axes(first(layer, ("axis",), -1))
    if len(axes) != 1 or layer.config.get("renorm") or layer.config.get("mode", 0) != 0:
        raise untranslatable(layer.name, layer.type, "only the usual form is")
    dim = value.axis(axes[0])
    turned = value
    if dim != 1:
        turned = tape.emit(layer, Function(torch.movedim, source=dim, destination=1), [value])
    kind = nn.BatchNorm2d if turned.rank == 4 else nn.BatchNorm1d
    names = scaled("moving_mean", "moving_variance")(layer.config)

    def make() -> tuple[nn.Module, ...]:
        size = turned.size[1]
        module = kind(size, eps=number(layer, ("epsilon",), 1e-3), device="meta")
        attributes = {
            "gamma": "weight",
            "beta": "bias",
            "moving_mean": "running_mean",
            "moving_variance": "running_var",
        }
        for name, attribute in attributes.items():
            if name in names:
                tape.fill(layer, module, attribute, names.index(name), (size,))
            else:
                # Nothing to learn here that the file could take back.
                module.register_parameter(attribute, None)
        module.num_batches_tracked = torch.tensor(0)
        return (module.eval(),)

    (module,) = tape.shared(layer, make)
    result = tape.emit(layer, module, [turned], value if dim == 1 else None)
    if dim != 1:
        back = Function(torch.movedim, source=1, destination=dim)
        result = tape.emit(layer, back, [result], value)
    return result


def layer_normalization(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """LayerNormalization over any axes."""
    value = only(layer, inputs)
    if value.form == "columns":
        value = tape.plain(layer, value)
    if layer.config.get("rms_scaling"):
        raise untranslatable(layer.name, layer.type, "rms_scaling")
    names = scaled()(layer.config)
    rank = value.rank
    axes = sorted(axis % rank for axis in settings.axes(first(layer, ("axis",), -1)))

    def make() -> tuple[nn.Module, ...]:
        dims = tuple(value.axis(axis) for axis in axes)
        module = AxisNorm(dims, number(layer, ("epsilon",), 1e-3))
        shape, layout = _placed(value, axes)
        for index, name in enumerate(names):
            attribute = "weight" if name == "gamma" else "bias"
            tape.fill(layer, module, attribute, index, shape, layout)
        return (module,)

    (module,) = tape.shared(layer, make)
    return tape.emit(layer, module, [value], value)


def _placed(value: Value, axes: list[int]) -> tuple[tuple[int, ...], Layout]:
    """The shape of a weight with an entry for each place along ``axes``, and its layout."""
    rank = value.rank
    view = [value.shape[axis] if axis in axes else 1 for axis in range(rank)]
    order = TO_MOVED if value.form == "moved" else tuple(range(rank))
    shape = tuple(value.shape[axis] for axis in axes)
    return shape, broadcast(shape, view, order)


def group_normalization(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """GroupNormalization over the channels of an image."""
    value = tape.images(layer, only(layer, inputs), "channels_last")
    axes = settings.axes(first(layer, ("axis",), -1))
    if len(axes) != 1 or value.axis(axes[0]) != 1:
        raise untranslatable(layer.name, layer.type, "its axis is not the channels")
    names = scaled()(layer.config)

    def make() -> tuple[nn.Module, ...]:
        channels = value.size[1]
        groups = first(layer, ("groups",), 32)
        groups = channels if groups == -1 else settings.whole(groups)
        module = nn.GroupNorm(groups, channels, number(layer, ("epsilon",), 1e-3), device="meta")
        for name, attribute in (("gamma", "weight"), ("beta", "bias")):
            if name in names:
                tape.fill(layer, module, attribute, names.index(name), (channels,))
            else:
                module.register_parameter(attribute, None)
        return (module,)

    (module,) = tape.shared(layer, make)
    return tape.emit(layer, module, [value], value)


def prelu(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """PReLU with its shared axes."""
    value = only(layer, inputs)
    if value.form == "columns":
        value = tape.plain(layer, value)
    shared = settings.axes(first(layer, ("shared_axes",), []))

    def make() -> tuple[nn.Module, ...]:
        module = PReLU()
        rank = value.rank
        shape = [1 if axis in shared else value.shape[axis] for axis in range(1, rank)]
        order = TO_MOVED if value.form == "moved" else tuple(range(rank))
        tape.fill(layer, module, "weight", 0, shape, broadcast(shape, [1, *shape], order))
        return (module,)

    (module,) = tape.shared(layer, make)
    return tape.emit(layer, module, [value], value)


def normalization(tape: Tape, layer: Layer, inputs: Inputs) -> Value:
    """Normalization by the mean and variance that the layer adapted to or was given."""
    value = only(layer, inputs)
    if value.form == "columns":
        value = tape.plain(layer, value)
    rank = value.rank
    axis = layer.config.get("axis", -1)
    axes = [] if axis is None else sorted(a % rank for a in settings.axes(axis))
    shape, layout = _placed(value, axes)

    def statistic(name: str, index: int) -> Tensor:
        given = layer.config.get(name)
        if given is None:
            return layout.to_torch(tape.array(layer, index, shape))
        array = torch.from_numpy(settings.array(given))
        return layout.to_torch(array.expand(shape) if array.dim() == 0 else array.reshape(shape))

    mean = statistic("mean", 0)
    # Keras divides by at least this much.
    deviation = statistic("variance", 1).sqrt().clamp(min=1e-7)
    if layer.config.get("invert"):
        module = Affine(deviation, mean)
    else:
        module = Affine(1 / deviation, -mean / deviation)
    return tape.emit(layer, module, [value], value)
