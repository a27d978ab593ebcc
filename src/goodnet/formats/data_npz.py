"""Images from NumPy archives: ``images`` and ``labels``."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

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

NAMES = (
    ("images", "labels"),
    ("x", "y"),
    ("data", "label"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
)
"""Names of images and labels; the first pair that is there is read."""
_BREAKS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    SyntaxError,
    TypeError,
    OverflowError,
)


def read_npz(path: Path) -> RawImages:
    """Images from an ``.npz`` file.

    Args:
        path: holds a pair of :data:`NAMES`, perhaps ``true_labels`` (-1 for "unknown") and
            ``class_names`` or ``classes`` (text). Images are ``(N, C, H, W)``, ``(N, H, W, C)`` or
            ``(N, H, W)``. Nothing is unpickled.

    Raises:
        GoodnetError: D002 for object arrays or an archive that holds no arrays, D003 for a damaged
            file, D004 where names are missing; those of
            :func:`~goodnet.formats.data_arrays.as_pixels` and ``as_labels``.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            found = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
            images, labels = _names(found, list(members), where)
            pixels = _read(archive, members, images, where)
            values = _read(archive, members, labels, where)
            true_name = next((n for n in ("true_labels", "true_label") if n in found), None)
            true_values = _read(archive, members, true_name, where) if true_name else None
            names_key = next((n for n in ("class_names", "classes") if n in found), None)
            names = _read(archive, members, names_key, where) if names_key else None
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
        # "classes" may also be numbers, which say no more than the labels do.
        class_names=tuple(str(name) for name in names)
        if names is not None and names.ndim == 1 and names.dtype.kind == "U"
        else None,
        sha256=sha256(path),
    )


def _names(found: list[str], members: list[str], where: str) -> tuple[str, str]:
    for images, labels in NAMES:
        if images in found and labels in found:
            return images, labels
    if not found:
        raise GoodnetError(
            "D002",
            f"{where} is an archive without arrays ({', '.join(members[:3]) or 'empty'})",
            "unpack an archive of pictures and name its folder; write arrays with np.savez",
        )
    raise GoodnetError(
        "D004",
        f"{where} has no 'images' with 'labels'; it has {', '.join(found[:8])}",
        "write it with np.savez(path, images=..., labels=...)",
    )


def _read(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, where: str
) -> Array:
    member = members[f"{name}.npy"]
    place = f"'{name}' in {where}"
    # NumPy sets memory aside for whatever shape the header claims, so the header is read first.
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise damaged(place, f"version {version} of the npy format")
        start = stream.tell()
    if dtype.hasobject:
        raise GoodnetError(
            "D002",
            f"{place} holds Python objects, which would run code while they are loaded",
            "store the images as one uint8 array",
        )
    # Python's own numbers do not overflow; NumPy takes True for a length.
    declared = math.prod(int(length) for length in shape) * dtype.itemsize
    if declared > member.file_size - start:
        raise damaged(place, f"the shape {shape} needs {declared} bytes")
    check_declared(declared, member.compress_size, place)
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
