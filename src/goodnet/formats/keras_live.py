"""Live objects and Keras: ``keras.Model`` in and out, and torch modules filled from Keras files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.keras_config import LayerPath
from goodnet.formats.keras_files import Original, legacy_arrays, live_config
from goodnet.formats.keras_graph import build
from goodnet.formats.keras_hdf5 import Stored, Weights, changes, opened, overwrite
from goodnet.formats.keras_tape import CONVOLUTION, LINEAR, SAME, Layout
from goodnet.formats.network import Network
from goodnet.formats.torch_module import LogitsModule, freeze

_CONVOLUTIONS = (nn.Conv2d,)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def load_live(model: Any) -> Network:
    """A network from a live ``keras.Model`` of any backend, without running it.

    Args:
        model: a functional or sequential model; it stays as it is.

    Returns:
        A network of kind ``"keras-live"``. Its ``live`` makes a new model of the same kind with
        the softmax that was taken off, its ``write`` saves such a model with ``model.save``.

    Raises:
        GoodnetError: M005 when it has Python code in it, M006 for a layer that cannot be
            translated, M009 when it is no image classifier, M011 when it is no Keras model, M012
            for weights that are not finite.
    """
    config = live_config(model)
    arrays = {
        path: [np.array(array) for array in layer.get_weights()]
        for path, layer in _leaves(model, ())
    }
    built = build(config, arrays)

    def live(module: nn.Module) -> object:
        fresh = {path: list(values) for path, values in arrays.items()}
        for (path, index), tensor in built.read(module).items():
            fresh[path][index] = tensor.numpy()
        copy = type(model).from_config(model.get_config())
        for path, layer in _leaves(copy, ()):
            if fresh[path]:
                layer.set_weights(fresh[path])
        return copy

    def write(module: nn.Module, target: Path) -> None:
        copy: Any = live(module)
        copy.save(str(target))

    return Network(
        built.module, built.input_shape, built.num_classes, "keras-live", "", write, live
    )


def _leaves(model: Any, path: LayerPath) -> Iterator[tuple[LayerPath, Any]]:
    """The layers of a live model, those of models inside it by their full path."""
    for layer in model.layers:
        place = (*path, str(layer.name))
        if hasattr(layer, "layers"):
            yield from _leaves(layer, place)
        else:
            yield place, layer


def load_h5_weights_into_torch(path: Path, module: nn.Module) -> Network:
    """A PyTorch module with the weights of a legacy Keras file.

    Layers find each other by name, or by order (the file's, and that of ``named_modules``) where
    the names differ. Kernels of convolutions become (out, in, H, W), those of dense layers are
    transposed. A Keras model flattens an image as (H, W, C): nothing in the file says so, hence
    the module must do the same before its first dense layer, with ``x.permute(0, 2, 3, 1)``.

    Args:
        path: a weights file of Keras 1 or 2.
        module: made of ``Conv2d``, ``Linear`` and batch normalization; filled in place.

    Returns:
        A network of kind ``"keras-weights"`` that writes a Keras weights file.

    Raises:
        GoodnetError: M001, M002, M003 for the file, M008 when the weights do not fit.
    """
    original = Original(path)
    with opened(original.source) as file:
        found = [(name, items) for name, items in legacy_arrays(file, path) if items]
    targets = [
        (name, inner)
        for name, inner in module.named_modules()
        if any(True for _ in inner.parameters(recurse=False))
    ]
    if len(targets) != len(found):
        raise _unfit(path, f"{len(found)} layers with weights", f"{len(targets)} modules with them")
    names = {name.rpartition(".")[2]: inner for name, inner in targets}
    if set(names) == {name for name, _ in found}:
        pairs = [(name, names[name], items) for name, items in found]
    else:
        pairs = [
            (name, inner, items) for (_, inner), (name, items) in zip(targets, found, strict=True)
        ]
    places: list[tuple[str, Layout, Stored]] = []
    paths = {id(inner): name for name, inner in targets}
    for name, inner, items in pairs:
        for attribute, layout, item in _fill(path, name, inner, items):
            places.append((f"{paths[id(inner)]}.{attribute}", layout, item))
    weights: Weights = {("file",): [item for _, _, item in places]}
    wrapped = LogitsModule(freeze(module))

    def write(changed: nn.Module, target: Path) -> None:
        inner = changed.inner if isinstance(changed, LogitsModule) else changed
        state = inner.state_dict()
        current: dict[tuple[LayerPath, int], Tensor] = {
            (("file",), index): layout.to_keras(state[place].detach().cpu()).contiguous()
            for index, (place, layout, _) in enumerate(places)
        }
        stream = io.BytesIO(original.content())
        with h5py.File(stream, "r+") as file:
            overwrite(file, changes(weights, current))
        target.write_bytes(stream.getvalue())

    return Network(wrapped, None, None, "keras-weights", path.suffix.lower(), write)


def _fill(
    path: Path, name: str, module: nn.Module, items: list[Stored]
) -> Iterator[tuple[str, Layout, Stored]]:
    """Copies one layer's arrays into one module; yields where each went."""
    if isinstance(module, _NORMS):
        attributes = ["weight", "bias", "running_mean", "running_var"]
    else:
        attributes = ["weight", "bias"][: len(items)]
    kernel = CONVOLUTION if isinstance(module, _CONVOLUTIONS) else LINEAR
    known = isinstance(module, (*_CONVOLUTIONS, *_NORMS, nn.Linear))
    if not known or len(attributes) != len(items):
        raise _unfit(path, f"{len(items)} arrays for '{name}'", f"a {type(module).__name__}")
    for attribute, item in zip(attributes, items, strict=True):
        layout = kernel if attribute == "weight" and not isinstance(module, _NORMS) else SAME
        target = getattr(module, attribute)
        array = torch.from_numpy(np.array(item.array, dtype=np.float32))
        wanted = None if target is None else tuple(layout.to_keras(target.detach()).shape)
        if wanted is None or array.dim() != len(wanted) or tuple(array.shape) != wanted:
            raise _unfit(path, f"'{item.name}' of shape {tuple(array.shape)}", f"{wanted}")
        if not torch.isfinite(array).all():
            raise GoodnetError(
                "M012",
                f"the weights of the layer '{name}' hold NaN or infinity",
                "take a model whose training did not diverge",
            )
        with torch.no_grad():
            target.copy_(layout.to_torch(array))
        yield attribute, layout, item


def _unfit(path: Path, has: str, wants: str) -> GoodnetError:
    return GoodnetError(
        "M008",
        f"{path} has {has}, the architecture {wants}",
        "pass the function that makes the very network whose weights were saved",
    )
