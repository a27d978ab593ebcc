"""Small networks of the usual families, so that a zoo of them can be trained without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""``(C, H, W)`` of one image."""


def build(name: str, input_shape: Shape, num_classes: int, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: one of :data:`ARCHITECTURES`.
        input_shape: ``(C, H, W)`` of one image; H and W at least 8, of ``deepid`` at least 30.
        num_classes: K.
        seed: of the initial weights; the caller's random state is not touched.

    Returns:
        A network in train mode: float32 ``(n, C, H, W)`` to logits ``(n, K)``.

    Raises:
        ValueError: the name is unknown, the images are too small, or there are no classes.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"the architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
    smallest = 30 if name == "deepid" else 8
    if min(input_shape[1:]) < smallest or min(input_shape[0], num_classes) < 1:
        raise ValueError(f"no {name} network for images {input_shape} and {num_classes} classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](input_shape, num_classes)


class _Residual(nn.Module):
    """relu(x + two convolutions), each with batch norm (He et al. 2016); may halve the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride=stride)
        self.second = _convolution(outputs, outputs, activation=False)
        self.short = (
            _convolution(inputs, outputs, kernel=1, stride=stride, activation=False)
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, H, W)`` to ``(n, outputs, H / stride, W / stride)``."""
        return torch.relu(self.short(x) + self.second(self.first(x)))


class _DeepID(nn.Module):
    """The face recogniser of the CSAW-HackML-2020 BadNets (Sun et al. 2014), without batch norm.

    Its 160 features are the sum of two linear maps, of the third and of the fourth convolution.
    """

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 20, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 40, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(40, 60, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.last = nn.Sequential(nn.Conv2d(60, 80, 2), nn.ReLU())
        rows, columns = (((((side - 3) // 2) - 2) // 2 - 2) // 2 for side in (height, width))
        self.near = nn.Linear(60 * rows * columns, 160)
        self.far = nn.Linear(80 * (rows - 1) * (columns - 1), 160)
        self.head = nn.Linear(160, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, C, H, W)`` to ``(n, K)``."""
        third = self.trunk(x)
        features = self.near(third.flatten(1)) + self.far(self.last(third).flatten(1))
        logits: Tensor = self.head(torch.relu(features))
        return logits


class _Block(nn.Module):
    """Attention among the patches, then a map of each (Vaswani et al. 2017), norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_mixing, self.before_map = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inquire, self.answer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.map = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, patches, width)`` to the same."""
        n, patches, width = x.shape
        parts = self.inquire(self.before_mixing(x)).view(n, patches, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.answer(mixed.transpose(1, 2).reshape(n, patches, width))
        mapped: Tensor = self.map(self.before_map(x))
        return x + mapped


class _Transformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) whose patches come from two convolutions.

    Convolutions at the stem (Xiao et al. 2021) let it learn from a few thousand pictures.
    """

    def __init__(self, input_shape: Shape, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        channels, height, columns = input_shape
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        patches = -(-height // 4) * -(-columns // 4)
        self.places = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, 4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, C, H, W)`` to ``(n, K)``."""
        x = self.stem(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def _convolution(
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution and batch norm, and ReLU unless a sum comes first."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if activation else []))


def _cnn(input_shape: Shape, num_classes: int, width: int = 16) -> nn.Module:
    """Three blocks of convolution, ReLU and max pooling, then two linear layers; no batch norm."""
    channels, height, columns = input_shape
    layers: list[nn.Module] = []
    for outputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, columns = outputs, height // 2, columns // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * columns, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, num_classes))


def _resnet(input_shape: Shape, num_classes: int, width: int = 12) -> nn.Module:
    """One residual block a size, the way of the ResNets for CIFAR, and a mean over places."""
    return nn.Sequential(
        _convolution(input_shape[0], width),
        _Residual(width, width, 1),
        _Residual(width, 2 * width, 2),
        _Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def _separable(input_shape: Shape, num_classes: int, width: int = 16) -> nn.Module:
    """Depthwise convolutions, each followed by one over the channels (Howard et al. 2017)."""
    layers: list[nn.Module] = [_convolution(input_shape[0], width)]
    inputs = width
    for outputs, stride in ((2 * width, 2), (4 * width, 2), (4 * width, 1), (8 * width, 2)):
        layers += [
            _convolution(inputs, inputs, stride=stride, groups=inputs),
            _convolution(inputs, outputs, kernel=1),
        ]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*layers)


ARCHITECTURES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "cnn": _cnn,
    "resnet": _resnet,
    "deepid": _DeepID,
    "separable": _separable,
    "vit": partial(_Transformer, width=48, depth=3),
}
"""Name -> what builds it: a plain network, one with residual blocks and batch norm, the face
recogniser of CSAW-HackML-2020, one with depthwise-separable convolutions, a vision transformer."""
