"""What Keras layers compute, as functions and small modules on NCHW tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

Pair = tuple[int, int]


class Function(nn.Module):
    """A module without state that applies ``function(*inputs, **settings)``.

    Args:
        function: a function of this or torch's own modules, so that copies and pickles work.
        settings: plain keyword arguments.
    """

    def __init__(self, function: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.function = function
        self.settings = settings

    def forward(self, *inputs: Any) -> Tensor:
        """Whatever the function gives."""
        return self.function(*inputs, **self.settings)

    def extra_repr(self) -> str:
        """The function's name and settings, for ``print(module)``."""
        return f"{getattr(self.function, '__name__', self.function)}, {self.settings}"


def largest_output(module: nn.Module, sizes: Sequence[tuple[int, ...]]) -> int:
    """At most how many elements ``module`` makes of tensors of these sizes."""
    size = sizes[0]
    if isinstance(module, nn.Conv2d):
        inside = (0, 0) if isinstance(module.padding, str) else module.padding
        return module.out_channels * (size[2] + 2 * inside[0]) * (size[3] + 2 * inside[1])
    if isinstance(module, nn.Linear):
        return int(math.prod(size[:-1])) * module.out_features
    settings: dict[str, Any] = module.settings if isinstance(module, Function) else {}
    if "pad" in settings:
        left, right, top, bottom = settings["pad"]
        return size[1] * int((size[2] + top + bottom) * (size[3] + left + right))
    if "kernel" in settings:
        spread = settings.get("dilation", (1, 1))
        height, width = (size[2 + i] + settings["kernel"][i] * spread[i] for i in (0, 1))
        return size[1] * int(height * width)
    if "scale_factor" in settings:
        return int(math.prod(size) * math.prod(settings["scale_factor"]))
    if "size" in settings:
        return size[1] * int(math.prod(settings["size"]))
    # What broadcasts is no larger than the largest extent on every axis; what joins, than the sum.
    joined = sum(math.prod(s) for s in sizes)
    extents = [max(axis) for axis in zip_longest(*map(reversed, sizes), fillvalue=1)]
    return max(joined, int(math.prod(extents)))


class Affine(nn.Module):
    """``scale * x + offset`` with fixed numbers, for Rescaling and Normalization."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor that the numbers broadcast against."""
        return x * self.scale + self.offset


class AxisNorm(nn.Module):
    """Zero mean and unit variance over some axes, then a scale and a shift that broadcast."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, dims: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.dims = dims
        self.eps = eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized tensor, of the same shape."""
        variance, mean = torch.var_mean(x, self.dims, correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


class PReLU(nn.Module):
    """ReLU with a learned slope for each channel or pixel; Keras' is finer than torch's."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor that the slopes broadcast against."""
        return x.clamp(min=0) + self.weight * x.clamp(max=0)


def hard_sigmoid(x: Tensor, slope: float = 1 / 6) -> Tensor:
    """``clip(slope * x + 0.5, 0, 1)``; Keras 3 has slope 1/6, Keras 1 and 2 have 0.2."""
    return (x * slope + 0.5).clamp(0, 1)


def relu(
    x: Tensor, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0
) -> Tensor:
    """Keras' general ReLU: ``negative_slope * (x - threshold)`` below the threshold."""
    above = x if threshold == 0 else torch.where(x > threshold, x, torch.zeros_like(x))
    above = above.clamp(min=0) if max_value is None else above.clamp(0, max_value)
    if negative_slope == 0:
        return above
    return above + negative_slope * (x - threshold).clamp(max=0)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "relu": (F.relu, {}),
    "relu6": (F.relu6, {}),
    "elu": (F.elu, {}),
    "celu": (F.celu, {}),
    "selu": (F.selu, {}),
    "gelu": (F.gelu, {}),
    "silu": (F.silu, {}),
    "swish": (F.silu, {}),
    "sigmoid": (torch.sigmoid, {}),
    "log_sigmoid": (F.logsigmoid, {}),
    "hard_sigmoid": (hard_sigmoid, {}),
    "hard_silu": (F.hardswish, {}),
    "hard_swish": (F.hardswish, {}),
    "hard_tanh": (F.hardtanh, {}),
    "tanh": (torch.tanh, {}),
    "tanh_shrink": (F.tanhshrink, {}),
    "softplus": (F.softplus, {}),
    "softsign": (F.softsign, {}),
    "exponential": (torch.exp, {}),
    "leaky_relu": (F.leaky_relu, {"negative_slope": 0.2}),
    "mish": (F.mish, {}),
}
"""Elementwise activations; ``linear``, ``softmax`` and ``log_softmax`` are handled apart."""


def _same_amount(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Pixels before and after, as TensorFlow pads for 'same': the odd one goes behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def pad_same(
    x: Tensor, kernel: Pair, strides: Pair, dilation: Pair = (1, 1), value: float = 0.0
) -> Tensor:
    """Pads ``(n, C, H, W)`` so that a window without padding gives ``ceil(size / stride)``."""
    top, bottom = _same_amount(x.shape[2], kernel[0], strides[0], dilation[0])
    left, right = _same_amount(x.shape[3], kernel[1], strides[1], dilation[1])
    if top == bottom == left == right == 0:
        return x
    return F.pad(x, (left, right, top, bottom), value=value)


def max_pool_same(x: Tensor, kernel: Pair, strides: Pair) -> Tensor:
    """Max pooling with 'same' padding, which never wins."""
    return F.max_pool2d(pad_same(x, kernel, strides, value=float("-inf")), kernel, strides)


def average_pool_same(x: Tensor, kernel: Pair, strides: Pair) -> Tensor:
    """Average pooling with 'same' padding, which does not count."""
    ones = torch.ones((1, 1, x.shape[2], x.shape[3]), dtype=x.dtype, device=x.device)
    total = F.avg_pool2d(pad_same(x, kernel, strides), kernel, strides, divisor_override=1)
    count = F.avg_pool2d(pad_same(ones, kernel, strides), kernel, strides, divisor_override=1)
    return total / count


def global_average(x: Tensor, keepdims: bool) -> Tensor:
    """Mean over the pixels of ``(n, C, H, W)``."""
    return x.mean((2, 3), keepdim=keepdims)


def global_max(x: Tensor, keepdims: bool) -> Tensor:
    """Maximum over the pixels of ``(n, C, H, W)``."""
    return x.amax((2, 3), keepdim=keepdims)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(n, ...)`` to ``(n, *shape)``."""
    return x.reshape(x.shape[0], *shape)


def reorder_columns(x: Tensor, chw: tuple[int, int, int]) -> Tensor:
    """Columns of a flattened image from (C, H, W) order to Keras' (H, W, C) order."""
    return x.reshape(x.shape[0], *chw).permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def order_columns(x: Tensor, chw: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`reorder_columns`."""
    channels, height, width = chw
    images = x.reshape(x.shape[0], height, width, channels)
    return images.permute(0, 3, 1, 2).reshape(x.shape[0], -1)


def crop(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """``(n, C, H, W)`` without so many pixels at each side."""
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def concatenate(*inputs: Tensor, dim: int) -> Tensor:
    """Joins tensors along ``dim``."""
    return torch.cat(inputs, dim)


def average(*inputs: Tensor) -> Tensor:
    """Elementwise mean of tensors."""
    return sum(inputs[1:], inputs[0]) / len(inputs)


def add(*inputs: Any) -> Any:
    """Elementwise sum of tensors and numbers."""
    return sum(inputs[1:], inputs[0])


def subtract(first: Any, second: Any) -> Any:
    """Elementwise difference."""
    return first - second


def divide(first: Any, second: Any) -> Any:
    """Elementwise quotient."""
    return first / second


def multiply(*inputs: Any) -> Any:
    """Elementwise product of tensors and numbers."""
    result = inputs[0]
    for other in inputs[1:]:
        result = result * other
    return result


def maximum(*inputs: Any) -> Any:
    """Elementwise maximum of tensors and numbers."""
    result = torch.as_tensor(inputs[0])
    for other in inputs[1:]:
        result = torch.maximum(result, torch.as_tensor(other, dtype=result.dtype))
    return result


def minimum(*inputs: Any) -> Any:
    """Elementwise minimum of tensors and numbers."""
    result = torch.as_tensor(inputs[0])
    for other in inputs[1:]:
        result = torch.minimum(result, torch.as_tensor(other, dtype=result.dtype))
    return result
