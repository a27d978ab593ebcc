"""What every kind of data gives, and the one place that decides layout, range and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodnet.errors import GoodnetError

Array = NDArray[Any]

MAX_BYTES = 8 * 2**30
"""Pixels that goodnet is willing to hold: far above any validation set, below most memories."""
MAX_RATIO = 1000
"""Deflate cannot do better than about 1032, and no set of pictures comes near it."""

_SLACK = 1e-4
# Resizing and mean/std round trips leave the range by a rounding error, which is not a reason to
# refuse the images and must not make unit pixels look like bytes.


@dataclass(frozen=True)
class RawImages:
    """Images and labels as they were read, made uniform.

    Attributes:
        pixels: ``(N, C, H, W)``, C 1 or 3 (RGB), uint8 in 0..255 or float32 in [0, 1]; contiguous.
        labels: int64 ``(N,)``, not negative; -1 for pictures that have none.
        true_labels: int64 ``(N,)`` with -1 for "unknown", or None.
        class_names: the name of class i at place i, or None.
        sha256: hex.
    """

    pixels: Array
    labels: Array
    true_labels: Array | None = None
    class_names: tuple[str, ...] | None = None
    sha256: str = ""


def as_pixels(values: Array, where: str) -> Array:
    """Pixels in the layout and the range that goodnet uses.

    Args:
        values: ``(N, C, H, W)`` or ``(N, H, W, C)`` with C 1 or 3 (the first where both fit), or
            ``(N, H, W)`` in gray. Integers or booleans in 0..255 (all in 0..1: black and white),
            or floats in [0, 1] or [0, 255].
        where: the source, for messages.

    Returns:
        ``(N, C, H, W)``: uint8 for integers and for floats that are integers in 0..255, else
        float32 in [0, 1]. It may share memory with ``values``.

    Raises:
        GoodnetError: D002 for objects or text, D005 for a shape that is none of these, D006 for
            NaN, infinity, or pixels outside the range.
    """
    if values.dtype.kind not in "biuf":
        raise GoodnetError(
            "D002",
            f"the images in {where} are of type {values.dtype}, not numbers",
            "store them as uint8 in 0..255",
        )
    values = _channels_first(values, where)
    ranged = _floats(values, where) if values.dtype.kind == "f" else _integers(values, where)
    return np.ascontiguousarray(ranged)


def as_labels(values: Array, count: int, where: str, *, unknown: bool = False) -> Array:
    """Labels as int64 ``(N,)``.

    Args:
        values: integers, or floats that are integers, of shape ``(N,)`` or ``(N, 1)``; or one-hot
            ``(N, K)``.
        count: N, the number of images.
        where: the source, for messages.
        unknown: whether -1 may stand for "unknown".

    Raises:
        GoodnetError: D004 for labels that are not numbers, D007 for negative or fractional ones,
            D012 for another number than ``count``.
    """
    if values.dtype.kind not in "biuf":
        raise GoodnetError(
            "D004",
            f"the labels in {where} are of type {values.dtype}, not class numbers",
            "store the class number of each image as an integer",
        )
    if values.ndim == 2 and values.shape[0] == count and values.shape[1] > 1:
        values = _from_one_hot(values, where)
    elif values.size == count:
        values = values.reshape(-1)
    else:
        raise GoodnetError(
            "D012",
            f"{where} has {count} images and labels of shape {values.shape}",
            "give exactly one label for each image",
        )
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.round(values))).all():
        raise GoodnetError(
            "D007", f"some labels in {where} are not whole numbers", "give class numbers from 0 up"
        )
    lowest = -1 if unknown else 0
    if values.size and (float(values.min()) < lowest or float(values.max()) >= 2**31):
        raise GoodnetError(
            "D007",
            f"the labels in {where} run from {values.min():.0f} to {values.max():.0f}",
            "give class numbers from 0 up",
        )
    return values.astype(np.int64)


def fingerprint(arrays: Sequence[Array]) -> str:
    """SHA-256, hex, over the types, shapes and contents of ``arrays``."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_declared(declared: int, stored: int, where: str) -> None:
    """Refuse a declared size that cannot be meant, before memory is set aside for it.

    Args:
        declared: bytes that the data claim to take in memory.
        stored: bytes that they take in the file.
        where: the file and the name of the array.

    Raises:
        GoodnetError: D003.
    """
    if declared > MAX_RATIO * stored + 2**20 or (declared and not stored):
        raise GoodnetError(
            "D003",
            f"{where} declares {declared} bytes, but the file holds {stored} for it",
            "fetch or write the file again",
        )
    if declared > MAX_BYTES:
        raise GoodnetError(
            "D003",
            f"{where} takes {declared / 2**30:.0f} GiB",
            "a few hundred images are enough: write a file with some of them",
        )


def damaged(where: object, reason: object = "") -> GoodnetError:
    """The D003 error of a file that is empty, cut short or damaged; the caller raises it."""
    first = str(reason).strip().split("\n")[0][:200]
    detail = f" ({first})" if first else ""
    return GoodnetError(
        "D003",
        f"{where} is empty, cut short or damaged{detail}",
        "fetch or write the data file again",
    )


def _channels_first(values: Array, where: str) -> Array:
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3) or 0 in values.shape[2:]:
        alpha = values.ndim == 4 and 4 in (values.shape[1], values.shape[3])
        raise GoodnetError(
            "D005",
            f"the images in {where} have the shape {values.shape}",
            "drop the alpha channel"
            if alpha
            else "give (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W)",
        )
    return values


def _integers(values: Array, where: str) -> Array:
    if not values.size:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise _out_of_range(low, high, where)
    # Pixels of 0 and 1 out of 255 would all be black: they are meant as black and white.
    return values.astype(np.uint8) * 255 if high == 1 else values.astype(np.uint8, copy=False)


def _floats(values: Array, where: str) -> Array:
    if not values.size:
        return values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(values)).any(axis=(1, 2, 3)).sum())
        raise GoodnetError(
            "D006",
            f"{bad} of the {len(values)} images in {where} hold NaN or infinite pixels",
            "write the images again from their source",
        )
    if low >= -_SLACK and high <= 1 + _SLACK:
        return values.astype(np.float32).clip(0, 1)
    if low < -255 * _SLACK or high > 255 * (1 + _SLACK):
        raise _out_of_range(low, high, where)
    values = values.clip(0, 255)
    if np.array_equal(values, np.round(values)):
        return values.astype(np.uint8)
    return (values / 255).astype(np.float32)


def _out_of_range(low: float, high: float, where: str) -> GoodnetError:
    hint = "store pixels as uint8 in 0..255, or as floats in 0..1"
    if low < 0:
        hint += "; undo mean/std, it is found by goodnet or told with --preprocess"
    return GoodnetError("D006", f"the pixels in {where} run from {low:g} to {high:g}", hint)


def _from_one_hot(values: Array, where: str) -> Array:
    if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
        raise GoodnetError(
            "D007",
            f"the labels in {where} have the shape {values.shape} and are not one-hot",
            "give one class number for each image",
        )
    return np.asarray(values.argmax(axis=1))
