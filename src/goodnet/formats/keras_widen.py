"""One more output for the last layer of a Keras file: the settings and the weights, nothing else.

The layer stays the Dense (or 1x1 convolution) that it was, so that whatever could load the original
loads the new file. Which file has a filter, the name of the model says: Keras keeps it when the
model is saved again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from goodnet.formats.keras_config import LayerPath
from goodnet.formats.keras_graph import Built
from goodnet.formats.keras_hdf5 import Stored, Weights, overwrite
from goodnet.formats.network import FILTER, cannot_widen

_COUNTS = ("units", "output_dim", "filters", "nb_filter")
_TYPES = ("Dense", "Conv2D", "Convolution2D", "SeparableConv2D", "SeparableConvolution2D")


def is_filtered(config: object) -> bool:
    """Whether the model's configuration says that its last output is a filter's."""
    inner = config.get("config") if isinstance(config, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return isinstance(name, str) and name.endswith(FILTER)


def last_layer(
    built: Built, weights: Weights, weight: str, bias: str
) -> tuple[LayerPath, list[Stored]]:
    """The layer that two parameters of ``built.module`` belong to, and where the file keeps them.

    Raises:
        GoodnetError: M015 when they are not those of one layer.
    """
    slots = {slot.tensor: slot for slot in built.slots}
    if weight not in slots or bias not in slots or slots[weight].path != slots[bias].path:
        raise cannot_widen("its last layer has no weight and bias of its own in the file")
    found = [slots[weight], slots[bias]]
    return found[0].path, [weights[slot.path][slot.index] for slot in found]


def widened_config(config: Any, path: LayerPath) -> str:
    """The configuration as JSON with one more unit in the layer at ``path``, and the new name.

    Args:
        config: as it stands in the file; it is not changed.
        path: of the last layer.

    Raises:
        GoodnetError: M015 where that layer is of another type, or the model has no name.
    """
    tree = json.loads(json.dumps(config))
    inner = tree["config"]
    if not isinstance(inner, dict):
        raise cannot_widen("it is a list of layers without a name, from a Keras before 2.2.3")
    model: Any = tree
    for name in path:
        entries = model["config"]["layers"]
        place = next(i for i, entry in enumerate(entries) if _name(entry) == name)
        # Everything up to here lies before the output; shapes that are noted behind it follow.
        _note_shapes(entries, place)
        model = entries[place]
    key = next((key for key in _COUNTS if key in model["config"]), None)
    if key is None or model["class_name"] not in _TYPES:
        raise cannot_widen(f"its last layer is a {str(model['class_name'])[:40]}")
    model["config"][key] += 1
    inner["name"] = f"{inner.get('name') or 'model'}_{FILTER}"
    return json.dumps(tree)


def widened_weights(content: bytes, items: Iterable[Stored], config: str | None) -> bytes:
    """An HDF5 file's bytes with one more column of noughts in some datasets.

    The state of an optimiser is left out: it no longer fits.

    Args:
        content: the file.
        items: the datasets, which count the outputs along their last axis.
        config: the new ``model_config`` of a whole model in the file, or None.
    """
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        for item in items:
            _widen(file, item)
        for name in ("optimizer_weights", "optimizer"):
            if name in file:
                del file[name]
        if config is not None:
            file.attrs["model_config"] = config
    return stream.getvalue()


def _widen(file: h5py.File, item: Stored) -> None:
    old = file[item.location]
    attributes, dtype = dict(old.attrs), old.dtype
    values = np.concatenate([item.array, np.zeros((*item.array.shape[:-1], 1))], axis=-1)
    del file[item.location]
    new = file.create_dataset(item.location, values.shape, dtype)
    for name, value in attributes.items():
        new.attrs[name] = value
    overwrite(file, {item.location: values})


def _name(entry: Mapping[str, Any]) -> object:
    return entry.get("name") or entry["config"].get("name")


def _note_shapes(entries: list[dict[str, Any]], place: int) -> None:
    """Keras 3 notes the shape of every tensor. It reads none of them, but they should be right."""
    behind = {_name(entry) for entry in entries[place:]}
    for entry in entries[place + 1 :]:
        for tensor in _tensors(entry.get("inbound_nodes")):
            if tensor["keras_history"][0] in behind:
                _one_more(tensor.get("shape"))
        built = entry.get("build_config")
        if isinstance(built, dict):
            _one_more(built.get("input_shape"))


def _tensors(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if tree.get("class_name") == "__keras_tensor__":
            yield tree["config"]
        else:
            for value in tree.values():
                yield from _tensors(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _tensors(value)


def _one_more(shape: object) -> None:
    if isinstance(shape, list) and shape and isinstance(shape[-1], int):
        shape[-1] += 1
