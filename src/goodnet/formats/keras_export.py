"""A PyTorch network as a Keras file, for the users and the tools that know nothing else."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from goodnet.errors import GoodnetError


def write_keras(module: nn.Module, input_shape: tuple[int, int, int], path: Path) -> None:
    """Writes the network with Keras' own layers, weights and file format.

    Args:
        module: made of two-dimensional convolutions, batch norms, ReLUs, poolings, flattenings,
            linear layers and sums; float32 ``(n, C, H, W)`` to logits ``(n, K)``.
        input_shape: ``(C, H, W)``; the Keras model takes ``(n, H, W, C)`` on the same scale.
        path: ends in ``.keras`` or ``.h5``.

    Raises:
        GoodnetError: O004 without Keras, or when a part of the network has no counterpart here.
    """
    # Where Keras has not been imported yet, its default backend may not even be installed; PyTorch
    # is, and writes the same file.
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise GoodnetError(
            "O004", "writing a Keras file needs Keras", "pip install 'goodnet[keras]'"
        ) from error
    try:
        graph = fx.symbolic_trace(module.eval())
        ShapeProp(graph).propagate(torch.zeros(1, *input_shape))
        model = _translated(keras, graph, input_shape)
    except (fx.proxy.TraceError, KeyError) as error:
        raise GoodnetError(
            "O004",
            f"this network cannot be written as a Keras file: {error}",
            "name an output that ends in .pt2",
        ) from error
    # Keras advises against .h5 and against files without an optimiser: both are what was asked for.
    advice = logging.getLogger("absl")
    level = advice.level
    advice.setLevel(logging.ERROR)
    try:
        model.save(path)
    finally:
        advice.setLevel(level)


def _translated(keras: Any, graph: fx.GraphModule, input_shape: tuple[int, int, int]) -> Any:
    """The Keras model, weights included; KeyError for what is unknown."""
    channels, height, width = input_shape
    values: dict[fx.Node, Any] = {}
    weights: list[tuple[Any, list[Any]]] = []
    start = end = None
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            start = values[node] = keras.Input((height, width, channels))
        elif node.op == "output":
            end = values[node.args[0]]
        else:
            inputs = [values[part] for part in node.args if isinstance(part, fx.Node)]
            layers = _layers(keras, graph, node)
            for layer, arrays in layers:
                inputs = [layer(inputs[0] if len(inputs) == 1 else inputs)]
                weights.append((layer, arrays))
            values[node] = inputs[0]
    model = keras.Model(start, end)
    for layer, arrays in weights:
        if arrays:
            layer.set_weights(arrays)
    return model


def _layers(keras: Any, graph: fx.GraphModule, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    """The Keras layers that do what one step does, each with its weights."""
    if node.op == "call_module":
        part = graph.get_submodule(str(node.target))
        return _MODULES[type(part)](keras, part, node)
    if node.op == "call_method" and node.target == "flatten":
        return [(keras.layers.Flatten(), [])]
    if node.op == "call_function" and node.target in (torch.relu, nn.functional.relu):
        return [(keras.layers.ReLU(), [])]
    if node.op == "call_function" and node.target in (torch.add, operator.add):
        return [(keras.layers.Add(), [])]
    raise KeyError(str(node.target))


def _convolution(keras: Any, part: nn.Conv2d, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    if part.dilation != (1, 1) or part.padding_mode != "zeros" or isinstance(part.padding, str):
        raise KeyError(str(part))
    layers: list[tuple[Any, list[Any]]] = []
    # Keras pads an even image on one side only when it strides; the network was padded on both.
    if part.padding != (0, 0):
        layers.append((keras.layers.ZeroPadding2D(part.padding), []))
    common: dict[str, Any] = {
        "kernel_size": part.kernel_size,
        "strides": part.stride,
        "use_bias": part.bias is not None,
    }
    if part.groups == part.in_channels == part.out_channels and part.groups > 1:
        kernel = _array(part.weight.permute(2, 3, 0, 1))
        layer = keras.layers.DepthwiseConv2D(**common)
    elif part.groups == 1:
        kernel = _array(part.weight.permute(2, 3, 1, 0))
        layer = keras.layers.Conv2D(part.out_channels, **common)
    else:
        raise KeyError(str(part))
    return [*layers, (layer, [kernel, *_bias(part.bias)])]


def _batch_norm(keras: Any, part: nn.BatchNorm2d, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    layer = keras.layers.BatchNormalization(epsilon=part.eps)
    values = (part.weight, part.bias, part.running_mean, part.running_var)
    return [(layer, [_array(value) for value in values if value is not None])]


def _linear(keras: Any, part: nn.Linear, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    weight = part.weight
    before = _image_before(node)
    if before is not None:
        # Keras flattens (H, W, C) where PyTorch flattens (C, H, W).
        weight = weight.reshape(-1, *before).permute(0, 2, 3, 1).reshape(weight.shape)
    layer = keras.layers.Dense(part.out_features, use_bias=part.bias is not None)
    return [(layer, [_array(weight.t()), *_bias(part.bias)])]


def _image_before(node: fx.Node) -> tuple[int, int, int] | None:
    """The shape of the image whose flattening a linear layer gets, if it gets one."""
    flat = node.args[0]
    if not isinstance(flat, fx.Node) or len(flat.args) == 0:
        return None
    image = flat.args[0]
    if not isinstance(image, fx.Node) or "tensor_meta" not in image.meta:
        return None
    shape = tuple(image.meta["tensor_meta"].shape)
    return shape[1:] if len(shape) == 4 and len(flat.meta["tensor_meta"].shape) == 2 else None


def _pooling(keras: Any, part: nn.MaxPool2d, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    if part.padding != 0 or part.dilation != 1 or part.ceil_mode:
        raise KeyError(str(part))
    return [(keras.layers.MaxPooling2D(part.kernel_size, part.stride), [])]


def _mean(keras: Any, part: nn.AdaptiveAvgPool2d, node: fx.Node) -> list[tuple[Any, list[Any]]]:
    if part.output_size not in (1, (1, 1)):
        raise KeyError(str(part))
    return [(keras.layers.GlobalAveragePooling2D(keepdims=True), [])]


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().contiguous().numpy()
    return array


def _bias(value: Tensor | None) -> list[np.ndarray[Any, Any]]:
    return [] if value is None else [_array(value)]


_MODULES: dict[type[nn.Module], Callable[[Any, Any, fx.Node], list[tuple[Any, list[Any]]]]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _mean,
    nn.ReLU: lambda keras, part, node: [(keras.layers.ReLU(), [])],
    nn.Flatten: lambda keras, part, node: [(keras.layers.Flatten(), [])],
    nn.Identity: lambda keras, part, node: [],
}
