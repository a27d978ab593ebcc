"""Reading the settings of one Keras layer, whatever version of Keras wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from goodnet.formats.keras_config import Layer, untranslatable
from goodnet.formats.keras_tape import Value

MAX_SETTING = 1 << 16


def first(layer: Layer, names: Sequence[str], default: Any = None) -> Any:
    """The setting under the first of its ``names`` (new spelling, old spelling) that is there."""
    for name in names:
        if layer.config.get(name) is not None:
            return layer.config[name]
    return default


def whole(value: object) -> int:
    """A whole number in 0..65536.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SETTING:
        raise ValueError(f"{str(value)[:40]!r} is no usable whole number")
    return value


def pair(value: object) -> tuple[int, int]:
    """``3`` or ``[3, 3]`` as two whole numbers above 0.

    Raises:
        ValueError: it is neither.
    """
    parts = [value, value] if isinstance(value, int) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2 or 0 in parts:
        raise ValueError(f"{str(value)[:40]!r} is no pair of numbers")
    return whole(parts[0]), whole(parts[1])


def sides(value: object) -> tuple[int, int, int, int]:
    """``1``, ``[1, 2]`` or ``[[0, 1], [0, 1]]`` as (top, bottom, left, right).

    Raises:
        ValueError: it is none of them.
    """
    rows = [value, value] if isinstance(value, int) else value
    if not isinstance(rows, list | tuple) or len(rows) != 2:
        raise ValueError(f"{str(value)[:40]!r} is no padding")
    vertical, horizontal = ([row, row] if isinstance(row, int) else row for row in rows)
    return whole(vertical[0]), whole(vertical[1]), whole(horizontal[0]), whole(horizontal[1])


def array(value: object) -> np.ndarray:
    """A number, nested list or Keras' ``__numpy__`` object as float32.

    Raises:
        ValueError: it is none of them, or not finite.
    """
    if isinstance(value, dict):
        config = value["config"]
        value = config["value"] if isinstance(config, dict) else config
    result = np.asarray(value, dtype=np.float32)
    if not np.isfinite(result).all():
        raise ValueError("a setting is not finite")
    return result


def number(layer: Layer, names: Sequence[str], default: float) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    result = float(array(first(layer, names, default)).item())
    if not math.isfinite(result):
        raise ValueError("a setting is not finite")
    return result


def axes(value: object) -> list[int]:
    """``-1`` or ``[1, 2]`` as a list.

    Raises:
        ValueError: it is neither.
    """
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, int) for part in parts):
        raise ValueError("an axis is no whole number")
    return list(parts)


def data_format(layer: Layer) -> str:
    """``"channels_last"`` or ``"channels_first"``; Keras 1 wrote ``dim_ordering``."""
    found = first(layer, ("data_format",))
    if found is None:
        found = {"th": "channels_first"}.get(layer.config.get("dim_ordering", ""), "channels_last")
    if found not in ("channels_last", "channels_first"):
        raise ValueError(f"data_format {str(found)[:40]!r}")
    return str(found)


def same_padding(layer: Layer) -> bool:
    """Whether the padding is 'same' rather than 'valid'.

    Raises:
        GoodnetError: M006 for another padding.
    """
    padding = str(first(layer, ("padding", "border_mode"), "valid")).lower()
    if padding not in ("same", "valid"):
        raise untranslatable(layer.name, layer.type, f"padding '{padding[:40]}'")
    return padding == "same"


def only(layer: Layer, inputs: Sequence[Value | float]) -> Value:
    """The one tensor that the layer takes.

    Raises:
        ValueError: it is given none, several or numbers.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], Value):
        raise ValueError(f"the layer '{layer.name}' takes one tensor")
    return inputs[0]
