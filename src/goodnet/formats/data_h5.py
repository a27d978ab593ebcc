"""Images from HDF5, in the layout of CSAW-HackML-2020: ``data`` and ``label``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from goodnet.errors import GoodnetError
from goodnet.formats.data_arrays import (
    Array,
    RawImages,
    as_labels,
    as_pixels,
    check_declared,
    damaged,
)
from goodnet.formats.files import sha256

NAMES = (("data", "label"), ("images", "labels"), ("x", "y"))
"""Names of images and labels; the first pair that is there is read."""
_BREAKS = (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, AttributeError)


def read_h5(path: Path) -> RawImages:
    """Images from an HDF5 file.

    Args:
        path: holds ``data`` (NCHW or NHWC, 0..255 or 0..1), ``label``, and perhaps ``true_label``
            (-1 for "unknown"). Links, external and virtual storage are not followed.

    Raises:
        GoodnetError: D002 for links, D003 for a damaged file, D004 where names are missing; those
            of :func:`~goodnet.formats.data_arrays.as_pixels` and ``as_labels``.
    """
    where = str(path)
    try:
        # A data set on a read-only or network disk cannot be locked and need not be.
        with h5py.File(path, "r", locking="best-effort") as file:
            images, labels = _names(file, where)
            pixels = _read(file, images, path)
            values = _read(file, labels, path)
            true_name = next((n for n in ("true_label", "true_labels") if _has(file, n)), None)
            true_values = _read(file, true_name, path) if true_name else None
    except GoodnetError:
        raise
    except _BREAKS as error:
        raise damaged(where, error) from error
    uniform = as_pixels(pixels, where)
    count = len(uniform)
    return RawImages(
        pixels=uniform,
        labels=as_labels(values, count, where),
        true_labels=None
        if true_values is None
        else as_labels(true_values, count, where, unknown=True),
        sha256=sha256(path),
    )


def _names(file: Any, where: str) -> tuple[str, str]:
    for images, labels in NAMES:
        if _has(file, images) and _has(file, labels):
            return images, labels
    found = [str(name) for name in list(file)[:8]]
    is_model = "model_weights" in found or "layer_names" in file.attrs
    raise GoodnetError(
        "D004",
        f"{where} has no 'data' with 'label'; it has {', '.join(found) or 'nothing'}",
        "this is a Keras model: give it as MODEL, and the images as --data"
        if is_model
        else "name the images 'data' and their class numbers 'label'",
    )


def _has(file: Any, name: str) -> bool:
    # "name in file" would follow a link, and so open another file, to see where it leads.
    return bool(file.id.links.exists(name.encode()))


def _refuse_link(file: Any, name: str, where: str) -> None:
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise GoodnetError(
            "D002",
            f"'{name}' in {where} is a link to elsewhere, which is not followed",
            "write the images themselves into the file",
        )


def _read(file: Any, name: str, path: Path) -> Array:
    _refuse_link(file, name, str(path))
    dataset = file[name]
    where = f"'{name}' in {path}"
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise GoodnetError(
            "D004", f"{where} is not an array", "store images and labels as HDF5 datasets"
        )
    if dataset.is_virtual or dataset.external:
        raise GoodnetError(
            "D002",
            f"{where} keeps its contents in another file, which is not opened",
            "write the images themselves into the file",
        )
    if dataset.dtype.kind not in "biuf":
        raise GoodnetError(
            "D002", f"{where} is of type {dataset.dtype}, not numbers", "store plain numbers"
        )
    stored = int(dataset.id.get_storage_size())
    if stored > path.stat().st_size:
        raise damaged(where, "it claims more bytes than the file has")
    declared = int(dataset.size) * int(dataset.dtype.itemsize)
    packed = dataset.chunks is not None and dataset.id.get_create_plist().get_nfilters() > 0
    if declared > stored and not packed:
        raise damaged(where, f"it declares {declared} bytes and stores {stored}")
    check_declared(declared, stored, where)
    return np.asarray(dataset[()])
