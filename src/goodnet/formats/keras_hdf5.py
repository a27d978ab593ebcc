"""Reading weights from HDF5 files that may be hostile, and writing them back in place.

Every name is followed link by link: only hard links count, so that nothing outside the file is
read. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from goodnet.errors import GoodnetError
from goodnet.formats.keras_config import Layer, LayerPath, Model, damaged
from goodnet.formats.keras_layers import FROZEN_WEIGHTS, weight_names

MAX_BYTES = 4 << 30
"""Of all weights together, and of any one array, as declared and unpacked."""
MAX_EXPANSION = 1000
"""How many times larger than on disk an array may be; all zeros shrink by about as much."""
MAX_TEXT = 64 << 20
MAX_LOOSE = 1 << 30
"""Bytes that many texts of any length could come to, each as long as the file. Keras writes texts
of one length."""
MAX_NAMES = 20_000


@dataclass(frozen=True)
class Stored:
    """One array of a file.

    Attributes:
        array: its values.
        location: the full name of its dataset.
        name: what the file calls the weight; empty in Keras 3's own layout.
    """

    array: np.ndarray
    location: str
    name: str = ""


Weights = dict[LayerPath, list[Stored]]


@dataclass
class Budget:
    """What may still be read of a file: one array can stand in it under millions of names.

    Attributes:
        bytes: of all weights together, as declared and unpacked.
        arrays: how many.
    """

    bytes: int = MAX_BYTES
    arrays: int = MAX_NAMES


@contextmanager
def opened(source: Path | bytes) -> Iterator[h5py.File]:
    """An HDF5 file open for reading, from a path or from memory.

    Raises:
        GoodnetError: M003 for whatever the HDF5 library finds wrong with it meanwhile.
    """
    try:
        with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
            yield file
    except GoodnetError:
        raise
    except Exception as error:
        # A damaged file can make h5py fail in any way; nothing but reading goes on here.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise damaged(f"the HDF5 file is damaged: {reason}") from error


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What ``name``, which may have slashes, stands for in ``group``; None where nothing does.

    Raises:
        GoodnetError: M003 when a soft or external link lies on the way.
    """
    found: h5py.Group | h5py.Dataset = group
    for part in name.split("/"):
        if not part:
            continue
        if part == "." or not isinstance(found, h5py.Group):
            return None
        link = found.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise damaged(f"the HDF5 file has a link at '{name[:80]}' that leads elsewhere")
        found = found[part]
    return found


def text(group: h5py.Group, name: str) -> str | None:
    """A text attribute; None where there is none.

    Raises:
        GoodnetError: M003 when it is no text or absurdly long.
    """
    if name not in group.attrs:
        return None
    value = _attribute(group, name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if not isinstance(value, str | bytes):
        raise damaged(f"the attribute '{name}' is no text")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _attribute(group: h5py.Group, name: str) -> Any:
    """An attribute's value, unless it declares an absurd size."""
    identifier = group.attrs.get_id(name)
    count = int(np.prod(identifier.shape or (), dtype=object))
    if count > MAX_NAMES or count * identifier.dtype.itemsize > MAX_TEXT:
        raise damaged(f"the attribute '{name}' is absurdly long")
    kind = h5py.check_string_dtype(identifier.dtype)
    # Of texts of any length, references are what is counted above: all may lead to the same one.
    loose = kind is not None and kind.length is None
    if loose and count > 1 and count * group.file.id.get_filesize() > MAX_LOOSE:
        raise damaged(f"the attribute '{name}' may be absurdly long")
    return group.attrs[name]


def names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names from an attribute, which Keras splits into numbered ones where it is long.

    Raises:
        GoodnetError: M003 when it is no list of names.
    """
    keys = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(keys)}" in group.attrs and attribute not in group.attrs:
        keys.append(f"{attribute}{len(keys)}")
    result: list[str] = []
    for key in keys:
        value = np.asarray(_attribute(group, key)).reshape(-1)
        for item in value.tolist():
            if not isinstance(item, str | bytes):
                raise damaged(f"the attribute '{attribute}' is no list of names")
            result.append(item.decode("utf-8", "replace") if isinstance(item, bytes) else item)
        if len(result) > MAX_NAMES:
            raise damaged(f"the attribute '{attribute}' is absurdly long")
    return result


def stored(group: h5py.Group, name: str, budget: Budget) -> Stored:
    """The dataset ``name`` of ``group``.

    Args:
        group: where to look.
        name: may have slashes.
        budget: lowered by what is read.

    Raises:
        GoodnetError: M003 when it is missing, lies outside the file, holds no numbers, or declares
            a size that the file cannot hold.
    """
    budget.arrays -= 1
    if budget.arrays < 0:
        raise damaged(f"the HDF5 file lists more than {MAX_NAMES} weights")
    dataset = child(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise damaged(f"the weight '{name[:80]}' is missing from the file")
    if dataset.is_virtual or dataset.external:
        raise damaged(f"the weight '{name[:80]}' lies outside the file")
    brain = is_bfloat16(dataset)
    if dataset.shape is None or (dataset.dtype.kind not in "fiu" and not brain):
        raise damaged(f"the weight '{name[:80]}' holds no numbers")
    declared = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    budget.bytes -= declared
    kept = dataset.id.get_storage_size()
    # A contiguous array counts as stored whether or not the file is long enough for it.
    if (
        budget.bytes < 0
        or kept > dataset.file.id.get_filesize()
        or declared > (1 << 20) + MAX_EXPANSION * kept
    ):
        raise damaged(f"the weight '{name[:80]}' declares an absurd size: {dataset.shape}")
    array = np.asarray(dataset[()])
    if brain:
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return Stored(array, dataset.name, name)


def is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Whether Keras wrote 16-bit brain floats, which HDF5 has no type for."""
    return (
        "dtype" in dataset.attrs
        and dataset.dtype.itemsize == 2
        and dataset.attrs["dtype"] in ("bfloat16", b"bfloat16")
    )


def read_native(file: h5py.File, model: Model) -> Weights:
    """The weights in Keras 3's own layout, ``layers/<class>_<n>/vars/<i>``.

    Raises:
        GoodnetError: M003 as :func:`stored`, M006 for a layer that is not known.
    """
    weights: Weights = {}
    _native_model(file, model, weights, Budget())
    return weights


def _native_model(group: h5py.Group, model: Model, weights: Weights, budget: Budget) -> None:
    used: dict[str, int] = {}
    folder = None
    # Keras 2.12 and 2.13 called the folder differently, and wrote backslashes on Windows.
    for name in ("_layer_checkpoint_dependencies", "layers"):
        folder = child(group, name) or folder
    for layer in model.layers:
        if layer.type.startswith(("ops.", "tf.")):
            continue
        kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", layer.type))
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
        number = used.get(kind, 0)
        used[kind] = number + 1
        if layer.model is None and not weight_names(layer):
            continue
        name = f"{kind}_{number}" if number else kind
        place = child(folder, name) if isinstance(folder, h5py.Group) else None
        if not isinstance(place, h5py.Group):
            place = child(group, f"layers\\{name}")
        if not isinstance(place, h5py.Group):
            continue
        if layer.model is not None:
            _native_model(place, layer.model, weights, budget)
            continue
        values = child(place, "vars")
        if isinstance(values, h5py.Group):
            count = min(len(values), MAX_NAMES)
            weights[layer.path] = [stored(values, str(i), budget) for i in range(count)]


def read_legacy(group: h5py.Group) -> list[tuple[str, list[Stored]]]:
    """The weights in the layout of Keras 1 and 2: (layer name, its arrays) in the file's order.

    Raises:
        GoodnetError: M003 as :func:`stored`.
    """
    budget = Budget()
    result: list[tuple[str, list[Stored]]] = []
    for name in names(group, "layer_names"):
        layer = child(group, name)
        if not isinstance(layer, h5py.Group):
            raise damaged(f"the weights of the layer '{name[:80]}' are missing from the file")
        arrays = [stored(layer, weight, budget) for weight in names(layer, "weight_names")]
        result.append((name, arrays))
    return result


def assign_legacy(
    model: Model, found: Sequence[tuple[str, list[Stored]]], by_order: bool = False
) -> Weights:
    """Gives legacy weights to the layers of ``model``.

    Args:
        model: the tree of the model.
        found: see :func:`read_legacy`.
        by_order: go by the order of the layers with weights where their names differ, as Keras
            does when it loads weights into a model that was made anew.

    Raises:
        GoodnetError: M006 for a layer that is not known.
    """
    weighted = layers_with_weights(model)
    known = {layer.name for layer in weighted}
    lists = [(name, arrays) for name, arrays in found if arrays]
    if by_order and known != {name for name, _ in lists} and len(lists) == len(weighted):
        pairs = [(layer, arrays) for layer, (_, arrays) in zip(weighted, lists, strict=True)]
    else:
        table = dict(lists)
        pairs = [(layer, table.get(layer.name, [])) for layer in weighted]
    weights: Weights = {}
    for layer, arrays in pairs:
        if layer.model is None:
            weights[layer.path] = list(arrays)
        else:
            _split(layer, arrays, weights)
    return weights


def layers_with_weights(model: Model) -> list[Layer]:
    """The layers, and models in the model, that have weights, in order.

    Raises:
        GoodnetError: M006 for a layer that is not known.
    """
    return [layer for layer in model.layers if _count(layer)]


def _count(layer: Layer) -> int:
    if layer.model is None:
        return len(weight_names(layer))
    return sum(_count(inner) for inner in layer.model.layers)


def _split(layer: Layer, arrays: Sequence[Stored], weights: Weights) -> None:
    """The flat list of a nested model, handed out to the layers inside it."""
    order = [*_listed(layer, frozen=False), *_listed(layer, frozen=True)]
    by_name = _by_name(layer, arrays)
    for place, (path, name) in enumerate(order):
        found = by_name.get((path, name)) if by_name else None
        if found is None and not by_name and place < len(arrays):
            found = arrays[place]
        if found is not None:
            weights.setdefault(path, []).append(found)


def _listed(layer: Layer, frozen: bool, within: bool = False) -> list[tuple[LayerPath, str]]:
    """Which weights stand in the first part (trained) or the second (frozen) of a flat list."""
    fixed = within or not layer.trainable
    if layer.model is not None:
        return [item for inner in layer.model.layers for item in _listed(inner, frozen, fixed)]
    return [
        (layer.path, name)
        for name in weight_names(layer)
        if (fixed or name in FROZEN_WEIGHTS) == frozen
    ]


def _by_name(layer: Layer, arrays: Sequence[Stored]) -> Mapping[tuple[LayerPath, str], Stored]:
    """The arrays by what the file calls them, ``.../layer/kernel:0``; empty where that fails."""
    leaves = [leaf for leaf in layer.model.leaves() if _count(leaf)] if layer.model else []
    table: dict[str, Layer] = {leaf.name: leaf for leaf in leaves}
    result: dict[tuple[LayerPath, str], Stored] = {}
    if len(table) < len(leaves) or sum(_count(leaf) for leaf in leaves) != len(arrays):
        return {}
    for item in arrays:
        scope, _, name = item.name.rpartition("/")
        name = re.sub(r"(_\d+)?(:\d+)?$", "", name)
        parts = scope.split("/")
        owner = next(
            (table[n] for n in ("/".join(parts[i:]) for i in range(len(parts))) if n in table), None
        )
        if owner is None or name not in weight_names(owner):
            return {}
        result[owner.path, name] = item
    return result if len(result) == len(arrays) else {}


def overwrite(file: h5py.File, changed: Mapping[str, np.ndarray]) -> None:
    """Puts new values into datasets, keeping their shape, type and everything else."""
    for location, values in changed.items():
        dataset = file[location]
        if is_bfloat16(dataset):
            bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            dataset[...] = rounded.astype(np.uint16).view(dataset.dtype)
        else:
            dataset[...] = values.astype(dataset.dtype)


def changes(
    weights: Weights, current: Mapping[tuple[LayerPath, int], Tensor]
) -> dict[str, np.ndarray]:
    """The datasets whose values differ from those that were read: location -> float32 values."""
    changed: dict[str, np.ndarray] = {}
    for (path, index), tensor in current.items():
        before: Any = weights[path][index]
        values = tensor.numpy()
        if not np.array_equal(values, before.array.astype(np.float32)):
            changed[before.location] = values
    return changed
