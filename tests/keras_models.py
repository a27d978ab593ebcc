"""Small Keras models that together use every layer that goodnet translates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L  # noqa: N812 - its usual name
from torch import Tensor

from goodnet.errors import GoodnetError
from goodnet.formats.keras_files import load_h5, load_keras
from goodnet.formats.network import Network

CLASSES = 5


def head(x: Any) -> Any:
    return L.Dense(CLASSES, activation="softmax")(L.Flatten()(x))


def functional(body: Callable[[Any], Any], shape: tuple[int, ...] = (9, 8, 3)) -> keras.Model:
    image = keras.Input(shape)
    return keras.Model(image, body(image))


def convolutions() -> keras.Model:
    return keras.Sequential(
        [
            L.Input((11, 10, 4)),
            L.Conv2D(6, 3, padding="same", activation="relu"),
            L.Conv2D(6, (2, 3), strides=2, padding="same", use_bias=False),
            L.Conv2D(8, 3, dilation_rate=2, padding="same", groups=2),
            L.Conv2D(4, (1, 2), activation="tanh"),
            L.Flatten(),
            L.Dropout(0.5),
            L.Dense(7, activation="relu"),
            L.Dense(CLASSES),
            L.Softmax(),
        ]
    )


def separable(x: Any) -> Any:
    x = L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, activation="relu")(x)
    x = L.SeparableConv2D(5, 2, use_bias=False)(x)
    x = L.DepthwiseConv2D((2, 1), use_bias=False, activation="sigmoid")(x)
    return head(x)


def pools(x: Any) -> Any:
    a = L.MaxPooling2D(3, strides=2, padding="same")(x)
    b = L.AveragePooling2D(3, strides=2, padding="same")(L.Cropping2D(((0, 0), (0, 1)))(x))
    c = L.AveragePooling2D((2, 3), strides=(2, 2))(L.ZeroPadding2D(((1, 0), (1, 1)))(x))
    d = L.Cropping2D(((1, 0), (0, 0)))(L.MaxPooling2D(2, strides=2)(L.ZeroPadding2D((2, 0))(x)))
    x = L.Concatenate()([a, b, c, L.Conv2D(2, 1, padding="valid")(d)])
    y = L.GlobalAveragePooling2D()(x)
    z = L.GlobalMaxPooling2D(keepdims=True)(x)
    return L.Dense(CLASSES, activation="softmax")(L.Concatenate()([y, L.Flatten()(z)]))


def average_same(x: Any) -> Any:
    """An odd pixel of padding, which Keras on torch gets wrong: TensorFlow is the measure."""
    return head(L.AveragePooling2D(3, strides=2, padding="same")(x))


def norms(x: Any) -> Any:
    x = L.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.2, 0.3, 0.1])(x)
    x = L.Conv2D(6, 3, use_bias=False)(x)
    x = L.BatchNormalization(scale=False)(x)
    x = L.BatchNormalization(center=False, epsilon=1e-2)(x)
    x = L.BatchNormalization(axis=1)(x)
    x = L.LayerNormalization()(x)
    x = L.GroupNormalization(groups=3)(x)
    x = L.PReLU(shared_axes=[1, 2])(x)
    x = L.PReLU()(x)
    x = L.Flatten()(x)
    x = L.BatchNormalization()(x)
    x = L.LayerNormalization(scale=False)(x)
    return L.Dense(CLASSES, activation="softmax")(x)


def merges(x: Any) -> Any:
    a, b = L.Conv2D(4, 3)(x), L.Conv2D(4, 3)(x)
    x = L.Add()([a, b])
    x = L.Subtract()([x, L.Multiply()([a, b])])
    x = L.Maximum()([L.Average()([x, b]), L.Minimum()([x, a])])
    gate = L.Reshape((1, 1, 4))(L.GlobalAveragePooling2D()(x))
    x = L.Multiply()([x, L.Conv2D(4, 1, activation="sigmoid")(gate)])
    f, g = L.Flatten()(x), L.Flatten()(L.MaxPooling2D(2)(a))
    x = L.Concatenate()([L.Add()([f, L.Flatten()(b)]), g])
    return L.Dense(CLASSES, activation="softmax")(x)


def shapes(x: Any) -> Any:
    x = L.Resizing(12, 10)(L.Rescaling(1 / 2, offset=-0.25)(x))
    x = L.Rescaling([1.0, 2.0, 3.0], offset=[0.1, 0.2, 0.3])(x)
    x = L.UpSampling2D(2, interpolation="bilinear")(L.UpSampling2D((1, 2))(x))
    x = L.MaxPooling2D(4)(x)
    x = L.Permute((2, 1, 3))(x)
    x = L.Conv2D(3, 2)(x)
    x = L.Dense(4, activation="relu")(x)
    x = L.Softmax(axis=1)(x)
    x = L.LayerNormalization(axis=[1, 2, 3], center=False)(x)
    x = L.Concatenate(axis=2)([x, x])
    x = L.Reshape((-1, 8))(x)
    x = L.BatchNormalization()(x)
    x = L.Dense(3, activation="softmax")(x)
    return head(x)


def noise(x: Any) -> Any:
    for layer in (
        L.RandomFlip(),
        L.RandomRotation(0.1),
        L.RandomZoom(0.1),
        L.RandomTranslation(0.1, 0.1),
        L.RandomContrast(0.1),
        L.GaussianNoise(0.5),
        L.GaussianDropout(0.5),
        L.AlphaDropout(0.5),
        L.SpatialDropout2D(0.5),
        L.ActivityRegularization(0.1),
        L.Identity(),
    ):
        x = layer(x)
    return head(x)


def augmentation(x: Any) -> Any:
    """Those that Keras itself cannot save as HDF5, or that need other pixel ranges."""
    for layer in (
        L.RandomBrightness(0.1),
        L.RandomShear(0.1),
        L.RandomErasing(0.1),
        L.RandomGrayscale(0.1),
        L.RandomHue(0.1),
        L.RandomInvert(0.1),
        L.RandomSaturation(0.1),
        L.RandomSharpness(0.1),
        L.RandomPerspective(0.1),
        L.RandomPosterization(4),
        L.RandomColorJitter(),
        L.RandomColorDegeneration(0.1),
        L.RandomGaussianBlur(0.1),
        L.RandomElasticTransform(0.1),
        L.RandAugment(),
        L.MixUp(),
        L.CutMix(),
        L.AugMix(),
    ):
        x = layer(x)
    return head(x)


def operations(x: Any) -> Any:
    y = (2.0 * x - 1) / 3.0
    y = keras.ops.relu(y + x)
    z = keras.ops.silu(1 - y)
    y = keras.ops.concatenate([y * z, keras.ops.maximum(y, z)], axis=-1)
    return keras.ops.softmax(L.Dense(CLASSES)(L.Flatten()(y)))


def activations(x: Any) -> Any:
    names = [
        *("relu", "relu6", "elu", "celu", "selu", "gelu", "silu", "swish", "sigmoid", "mish"),
        *("log_sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "tanh", "linear"),
        *("tanh_shrink", "softplus", "softsign", "exponential", "leaky_relu", "softmax"),
        "log_softmax",
    ]
    x = L.Rescaling(4.0, offset=-2.0)(x)
    ends = [L.Activation(name)(x) for name in names]
    ends += [
        L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.5)(x),
        L.ReLU(6.0)(x),
        L.ReLU()(x),
        L.LeakyReLU(0.1)(x),
        L.ELU(0.5)(x),
        L.Conv2D(3, 1, activation=L.LeakyReLU(0.3))(x),
    ]
    return head(L.Concatenate()(ends))


def shared(x: Any) -> Any:
    block = keras.Sequential(
        [L.Input((9, 8, 3)), L.Conv2D(3, 3, padding="same"), L.BatchNormalization(), L.ReLU()],
        name="block",
    )
    conv, dense = L.Conv2D(3, 3, padding="same"), L.Dense(6)
    x = conv(block(conv(block(x))))
    return L.Dense(CLASSES, activation="softmax")(
        L.Add()([dense(L.Flatten()(x)), dense(L.Reshape((-1,))(block(x)))])
    )


def transfer(trainable: bool = False) -> keras.Model:
    """A frozen backbone with a sequential model inside, called with ``training=False``."""
    inner = keras.Sequential(
        [L.Input((7, 6, 4)), L.Conv2D(5, 3), L.BatchNormalization(), L.Dropout(0.1)], name="inner"
    )
    image = keras.Input((9, 8, 3))
    x = L.BatchNormalization()(L.Conv2D(4, 3)(image))
    backbone = keras.Model(image, [inner(x), x], name="backbone")
    backbone.trainable = trainable
    top = keras.Input((9, 8, 3))
    deep, shallow = backbone(L.RandomFlip()(top), training=False)
    x = L.Concatenate()([L.GlobalAveragePooling2D()(deep), L.GlobalMaxPooling2D()(shallow)])
    return keras.Model(top, L.Dense(CLASSES, activation="softmax")(x))


def channels_first() -> keras.Model:
    first = {"data_format": "channels_first"}
    return keras.Sequential(
        [
            L.Input((3, 9, 8)),
            L.Conv2D(4, 3, padding="same", strides=2, **first),
            L.BatchNormalization(axis=1),
            L.MaxPooling2D(2, **first),
            L.Flatten(**first),
            L.Dense(CLASSES, activation="softmax"),
        ]
    )


def plain_flatten_of_channels_first() -> keras.Model:
    first = {"data_format": "channels_first"}
    return keras.Sequential(
        [
            L.Input((3, 9, 8)),
            L.DepthwiseConv2D(3, **first),
            L.Flatten(),
            L.Dense(CLASSES, activation="sigmoid"),
        ]
    )


def gray() -> keras.Model:
    return keras.Sequential(
        [L.Input((9, 8)), L.Flatten(), L.Dense(6, activation="relu"), L.Dense(CLASSES)]
    )


MODELS: dict[str, Callable[[], keras.Model]] = {
    "convolutions": convolutions,
    "average_same": lambda: functional(average_same),
    "separable": lambda: functional(separable),
    "pools": lambda: functional(pools),
    "norms": lambda: functional(norms),
    "merges": lambda: functional(merges),
    "shapes": lambda: functional(shapes),
    "noise": lambda: functional(noise),
    "augmentation": lambda: functional(augmentation),
    "operations": lambda: functional(operations),
    "activations": lambda: functional(activations),
    "shared": lambda: functional(shared),
    "transfer": transfer,
    "transfer_unfrozen": lambda: transfer(trainable=True),
    "channels_first": channels_first,
    "flatten_first": plain_flatten_of_channels_first,
    "gray": gray,
}


def make(name: str) -> keras.Model:
    """The model, with weights in which no two numbers are alike."""
    model = MODELS[name]()
    shake(model)
    return model


def shake(model: keras.Model, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if not np.issubdtype(np.dtype(str(variable.dtype)), np.floating):
            continue
        if variable.name in ("gamma", "moving_variance", "variance"):
            variable.assign(generator.uniform(0.5, 1.5, shape).astype("float32"))
        else:
            spread = 2.5 / max(1, int(np.prod(shape[:-1]))) ** 0.5
            variable.assign((generator.normal(0, spread, shape)).astype("float32"))


def images(model: keras.Model, count: int = 6) -> np.ndarray:
    """Random images in the model's own layout."""
    shape = tuple(224 if size is None else size for size in model.input_shape[1:])
    return np.random.default_rng(1).random((count, *shape), dtype=np.float32)


def torch_images(model: keras.Model, images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(images)
    if tensor.dim() == 3:
        return tensor[:, None]
    first = any(getattr(layer, "data_format", "") == "channels_first" for layer in model.layers)
    return tensor if first else tensor.permute(0, 3, 1, 2)


def load(path: Path) -> Network:
    return load_keras(path) if path.suffix == ".keras" else load_h5(path)


def code_of(path: Path) -> str:
    with pytest.raises(GoodnetError) as caught:
        load(path)
    assert "\n" not in caught.value.message
    return caught.value.code
