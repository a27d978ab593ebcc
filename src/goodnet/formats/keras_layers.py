"""The table of Keras layers: how each one is translated and which weights it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from goodnet.formats import keras_ops as ops
from goodnet.formats import keras_plain_layers as plain
from goodnet.formats import keras_weighted_layers as weighted
from goodnet.formats.keras_config import Layer, untranslatable
from goodnet.formats.keras_plain_layers import Builder

FROZEN_WEIGHTS = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})
"""Weights that training does not change by gradient: old files list them after all others."""


class LayerType(NamedTuple):
    """How one Keras layer is translated.

    Attributes:
        build: records the layer on the tape.
        weights: from the layer's settings to the names of its weights, in Keras' order.
    """

    build: Builder
    weights: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda config: ()


def weight_names(layer: Layer) -> tuple[str, ...]:
    """The names of a layer's weights in Keras' order, e.g. ``("kernel", "bias")``.

    Raises:
        GoodnetError: M006 when the layer is not in the table.
    """
    return find(layer).weights(layer.config)


def find(layer: Layer) -> LayerType:
    """The table's entry for a layer.

    Raises:
        GoodnetError: M006 when there is none.
    """
    found = TABLE.get(layer.type)
    if found is None:
        raise untranslatable(layer.name, layer.type)
    if layer.config.get("quantization_config") is not None:
        raise untranslatable(layer.name, layer.type, "it is quantized")
    return found


TABLE: dict[str, LayerType] = {
    "InputLayer": LayerType(plain.identity),
    "Conv2D": LayerType(weighted.conv2d, weighted.biased("kernel")),
    "DepthwiseConv2D": LayerType(weighted.depthwise_conv2d, weighted.biased("depthwise_kernel")),
    "SeparableConv2D": LayerType(
        weighted.depthwise_conv2d, weighted.biased("depthwise_kernel", "pointwise_kernel")
    ),
    "Dense": LayerType(weighted.dense, weighted.biased("kernel")),
    "BatchNormalization": LayerType(
        weighted.batch_normalization, weighted.scaled("moving_mean", "moving_variance")
    ),
    "LayerNormalization": LayerType(weighted.layer_normalization, weighted.scaled()),
    "GroupNormalization": LayerType(weighted.group_normalization, weighted.scaled()),
    "PReLU": LayerType(weighted.prelu, lambda config: ("alpha",)),
    "Normalization": LayerType(weighted.normalization, weighted.normalization_weights),
    "MaxPooling2D": LayerType(plain.pooling(average=False)),
    "AveragePooling2D": LayerType(plain.pooling(average=True)),
    "GlobalAveragePooling2D": LayerType(plain.global_pooling(ops.global_average)),
    "GlobalMaxPooling2D": LayerType(plain.global_pooling(ops.global_max)),
    "Flatten": LayerType(plain.flatten),
    "Reshape": LayerType(plain.reshape),
    "Permute": LayerType(plain.permute),
    "Add": LayerType(plain.merging(ops.add)),
    "Subtract": LayerType(plain.merging(ops.subtract)),
    "Multiply": LayerType(plain.merging(ops.multiply)),
    "Average": LayerType(plain.merging(ops.average)),
    "Maximum": LayerType(plain.merging(ops.maximum)),
    "Minimum": LayerType(plain.merging(ops.minimum)),
    "Concatenate": LayerType(plain.concatenate),
    "ZeroPadding2D": LayerType(plain.zero_padding),
    "Cropping2D": LayerType(plain.cropping),
    "UpSampling2D": LayerType(plain.up_sampling),
    "Resizing": LayerType(plain.resizing),
    "Rescaling": LayerType(plain.rescaling),
}
"""Keras class -> how it is translated."""

_ALIASES = {
    "Convolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
}
_AT_REST = [
    "ActivityRegularization",
    "AlphaDropout",
    "AugMix",
    "CutMix",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHeight",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomWidth",
    "RandomZoom",
    "SpatialDropout2D",
]
_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "ops.Add": ops.add,
    "ops.Subtract": ops.subtract,
    "ops.Multiply": ops.multiply,
    "ops.TrueDivide": ops.divide,
    "ops.Divide": ops.divide,
    "ops.Maximum": ops.maximum,
    "ops.Minimum": ops.minimum,
    "tf.__operators__.add": ops.add,
    "tf.math.add": ops.add,
    "tf.math.subtract": ops.subtract,
    "tf.math.multiply": ops.multiply,
    "tf.math.truediv": ops.divide,
    "tf.math.divide": ops.divide,
}
_NAMED = {
    "ops.Relu": "relu",
    "ops.Relu6": "relu6",
    "ops.Sigmoid": "sigmoid",
    "ops.Silu": "silu",
    "ops.Tanh": "tanh",
    "ops.HardSigmoid": "hard_sigmoid",
    "ops.HardSilu": "hard_silu",
    "tf.nn.relu": "relu",
    "tf.nn.relu6": "relu6",
    "tf.nn.silu": "silu",
    "tf.math.sigmoid": "sigmoid",
    "tf.math.tanh": "tanh",
}
TABLE.update({old: TABLE[new] for old, new in _ALIASES.items()})
TABLE.update({name: LayerType(plain.identity) for name in _AT_REST})
TABLE.update({name: LayerType(build) for name, build in plain.ACTIVATION_LAYERS.items()})
TABLE.update(
    {name: LayerType(plain.merging(do, operation=True)) for name, do in _OPERATIONS.items()}
)
TABLE.update({name: LayerType(plain.named(activation)) for name, activation in _NAMED.items()})
TABLE.update(
    {
        "ops.Concatenate": LayerType(plain.concatenate),
        "ops.Softmax": LayerType(plain.softmax_layer),
        "tf.nn.softmax": LayerType(plain.softmax_layer),
    }
)
