"""Keras model files in and out, read from their data alone: Keras is neither needed nor run.

A repaired file is the original with the changed weights overwritten in place, so whatever could
load the original loads the repaired one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats.files import sha256
from goodnet.formats.keras_archive import CONFIG, METADATA, WEIGHTS, archive_members, with_member
from goodnet.formats.keras_config import damaged, parse
from goodnet.formats.keras_graph import Built, build
from goodnet.formats.keras_hdf5 import (
    Stored,
    Weights,
    assign_legacy,
    changes,
    child,
    layers_with_weights,
    opened,
    overwrite,
    read_legacy,
    read_native,
    text,
)
from goodnet.formats.keras_widen import is_filtered, last_layer, widened_config, widened_weights
from goodnet.formats.network import Network

KEPT_BYTES = 200 << 20
"""Files up to this size are kept in memory, so that writing does not depend on the original."""


class Original:
    """The file that a model came from: its bytes, or its path where it is large.

    Args:
        path: the file.
        content: what it is to hold, where that is not on disk.

    Raises:
        GoodnetError: M001 when there is none, M002 when it is a directory, M003 when it is empty
            or cannot be read.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.digest = ""
        self.source: Path | bytes
        if content is not None:
            self.source = content
            return
        try:
            size = path.stat().st_size
            self.source = path if size >= KEPT_BYTES else path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(path) from error
        except IsADirectoryError as error:
            raise GoodnetError(
                "M002", f"{path} is a directory", "pass the .h5 or .keras file itself"
            ) from error
        except OSError as error:
            raise damaged(f"{path} cannot be read: {error.strerror or error}") from error
        if size == 0:
            raise damaged(f"{path} is empty")
        if isinstance(self.source, Path):
            self.digest = sha256(path)

    def content(self) -> bytes:
        """The bytes that were read at first.

        Raises:
            GoodnetError: M001 or M003 when a large original has gone or changed since.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            content = self.source.read_bytes()
        except OSError as error:
            raise _missing(self.source) from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise damaged(f"{self.source} has changed since it was loaded")
        return content


def _missing(path: Path) -> GoodnetError:
    return GoodnetError("M001", f"there is no file {path}", "check the path")


def is_weights_only(path: Path) -> bool:
    """Whether an HDF5 file holds the weights of a Keras model without its architecture.

    Args:
        path: any file; False for one that cannot be read.
    """
    try:
        with opened(path) as file:
            return _holds_weights(file)
    except GoodnetError:
        return False


def _holds_weights(file: h5py.File) -> bool:
    if "model_config" in file.attrs:
        return False
    legacy = "layer_names" in file.attrs or "layer_names0" in file.attrs
    return legacy or any(name in file for name in ("layers", "_layer_checkpoint_dependencies"))


def load_h5(path: Path) -> Network:
    """A whole model in Keras' legacy HDF5 format, written by Keras 1, 2 or 3.

    Args:
        path: the ``.h5`` or ``.hdf5`` file.

    Returns:
        A network of kind ``"keras-h5"``: NCHW float32 in the model's own scale to logits.

    Raises:
        GoodnetError: M001, M002, M003 for the file; M005 when it carries Python code, M006 for a
            layer that cannot be translated, M007 when it holds weights only, M009 when it is no
            image classifier with two classes or more, M012 for weights that are not finite.
    """
    return _whole_h5(Original(path), path)


def _whole_h5(original: Original, path: Path) -> Network:
    with opened(original.source) as file:
        config = text(file, "model_config")
        if config is None:
            raise _without_architecture(path, file)
        group = child(file, "model_weights")
        if not isinstance(group, h5py.Group):
            raise damaged(f"{path} holds no weights")
        found = read_legacy(group)
        major = _major(text(file, "keras_version"))
    tree = _json(config)
    model = parse(tree)
    weights = assign_legacy(model, found)
    built = build(model, _arrays(weights), keras=major)

    def widen(weight: str, bias: str, axis: int) -> Network:
        layer, items = last_layer(built, weights, weight, bias)
        settings = widened_config(tree, layer)
        content = widened_weights(original.content(), items, settings)
        return _whole_h5(Original(path, content), path)

    write = _hdf5_writer(original, built, weights)
    return replace(
        _network("keras-h5", path, built, write), filtered=is_filtered(tree), widen=widen
    )


def _without_architecture(path: Path, file: h5py.File) -> GoodnetError:
    if not _holds_weights(file):
        return damaged(f"{path} is an HDF5 file, but no Keras model")
    return GoodnetError(
        "M007",
        f"{path} holds the weights of a Keras model without its architecture",
        "pass --architecture FILE.py:FUNCTION, where FUNCTION() returns the untrained model",
    )


def load_keras(path: Path) -> Network:
    """A model in Keras 3's own format, a zip archive.

    Args:
        path: the ``.keras`` file.

    Returns:
        A network of kind ``"keras"``: NCHW float32 in the model's own scale to logits.

    Raises:
        GoodnetError: as :func:`load_h5`, but M007.
    """
    return _archive(Original(path), path)


def _archive(original: Original, path: Path) -> Network:
    found = archive_members(original.source)
    if CONFIG not in found or WEIGHTS not in found:
        raise damaged(f"{path} lacks {CONFIG} or {WEIGHTS}")
    tree = _json(found[CONFIG].decode("utf-8", "replace"))
    model = parse(tree)
    metadata = _json(found.get(METADATA, b"{}").decode("utf-8", "replace"))
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    with opened(found[WEIGHTS]) as file:
        weights = read_native(file, model)
    built = build(model, _arrays(weights), keras=_major(version))

    def write(module: nn.Module, target: Path) -> None:
        content = _patched(found[WEIGHTS], changes(weights, built.read(module)))
        target.write_bytes(with_member(original.content(), WEIGHTS, content))

    def widen(weight: str, bias: str, axis: int) -> Network:
        layer, items = last_layer(built, weights, weight, bias)
        settings = widened_config(tree, layer).encode()
        content = with_member(original.content(), CONFIG, settings)
        content = with_member(content, WEIGHTS, widened_weights(found[WEIGHTS], items, None))
        return _archive(Original(path, content), path)

    return replace(_network("keras", path, built, write), filtered=is_filtered(tree), widen=widen)


def load_h5_weights(path: Path, architecture: object) -> Network:
    """A Keras weights file together with the model that it belongs to.

    Weights find their layers by name, or by order where the names differ, as in Keras.

    Args:
        path: weights in the legacy layout of Keras 1 and 2, in Keras 3's ``.weights.h5`` layout,
            or a whole ``.h5`` model of which only the weights are used.
        architecture: a ``keras.Model`` of any backend; it is asked for its configuration only.

    Returns:
        A network of kind ``"keras-weights"``; it writes a weights file.

    Raises:
        GoodnetError: as :func:`load_h5`, M008 when the weights do not fit the architecture, and
            M011 when that is no Keras model.
    """
    model = parse(live_config(architecture))
    original = Original(path)
    with opened(original.source) as file:
        group = child(file, "model_weights")
        root = group if isinstance(group, h5py.Group) else file
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            found = read_legacy(root)
            expected = layers_with_weights(model)
            if sum(bool(arrays) for _, arrays in found) != len(expected):
                raise GoodnetError(
                    "M008",
                    f"{path} holds weights of {sum(bool(arrays) for _, arrays in found)} layers, "
                    f"the architecture has {len(expected)} such layers",
                    "pass the function that makes the very model whose weights were saved",
                )
            weights = assign_legacy(model, found, by_order=True)
        elif _holds_weights(file):
            weights = read_native(file, model)
        else:
            raise damaged(f"{path} holds no weights of a Keras model")
        major = _major(text(root, "keras_version"))
    built = build(model, _arrays(weights), mismatch="M008", keras=major)
    return _network("keras-weights", path, built, _hdf5_writer(original, built, weights))


def read_legacy_weights(path: Path) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """The weights in a legacy Keras HDF5 file.

    Args:
        path: a weights file of Keras 1 or 2, or a whole ``.h5`` model.

    Returns:
        ``(layer name, [(weight name, array), ...])`` in the file's order, arrays in Keras' layout;
        layers without weights are there with an empty list.

    Raises:
        GoodnetError: M001, M002, M003.
    """
    with opened(Original(path).source) as file:
        return [
            (layer, [(item.name, item.array) for item in items])
            for layer, items in legacy_arrays(file, path)
        ]


def legacy_arrays(file: h5py.File, path: Path) -> list[tuple[str, list[Stored]]]:
    """As :func:`read_legacy_weights` of an open file, with the places of the datasets.

    Raises:
        GoodnetError: M003 when the file has another layout.
    """
    group = child(file, "model_weights")
    root = group if isinstance(group, h5py.Group) else file
    if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
        raise damaged(f"{path} holds no weights in the legacy layout of Keras")
    return read_legacy(root)


def live_config(model: object) -> object:
    """The configuration of a live ``keras.Model`` as plain data.

    Raises:
        GoodnetError: M011 when ``model`` is none or cannot say how it is made.
    """
    describe = getattr(model, "to_json", None)
    try:
        if not callable(describe):
            raise TypeError("it has no to_json()")
        return json.loads(describe())
    except Exception as error:
        raise GoodnetError(
            "M011",
            f"the {type(model).__name__} is no Keras model that can describe itself",
            "pass a functional or sequential keras.Model",
        ) from error


def _json(content: str) -> object:
    try:
        result: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged("the model's configuration is no JSON") from error
    return result


def _major(version: object) -> int:
    head = str(version or "3").split(".", 1)[0]
    return int(head) if head in ("1", "2", "3") else 3


def _arrays(weights: Weights) -> dict[tuple[str, ...], list[np.ndarray]]:
    return {path: [item.array for item in items] for path, items in weights.items()}


def _network(
    kind: str, path: Path, built: Built, write: Callable[[nn.Module, Path], None]
) -> Network:
    return Network(
        built.module, built.input_shape, built.num_classes, kind, path.suffix.lower(), write
    )


def _hdf5_writer(
    original: Original, built: Built, weights: Weights
) -> Callable[[nn.Module, Path], None]:
    def write(module: nn.Module, target: Path) -> None:
        changed = changes(weights, built.read(module))
        target.write_bytes(_patched(original.content(), changed))

    return write


def _patched(content: bytes, changed: dict[str, np.ndarray]) -> bytes:
    """An HDF5 file's bytes with new values in some datasets."""
    if not changed:
        return content
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        overwrite(file, changed)
    return stream.getvalue()
