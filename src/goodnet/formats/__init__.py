"""Files and live objects in and out: the only place that knows layout, scale and softmax."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats.architecture import is_keras, load_architecture
from goodnet.formats.guard import check_exists, check_pickle_free_or_safe, sniff
from goodnet.formats.network import Network

FORMATS = (
    "goodnet reads Keras (.h5, .keras), torch.export (.pt2), TorchScript, and weights "
    "(.h5, .pt, .pth, .safetensors) with --architecture FILE.py:FUNCTION"
)

KERAS_READERS = {
    "is_weights_only": "goodnet.formats.keras_files",
    "load_h5": "goodnet.formats.keras_files",
    "load_keras": "goodnet.formats.keras_files",
    "load_h5_weights": "goodnet.formats.keras_files",
    "load_h5_weights_into_torch": "goodnet.formats.keras_live",
    "load_live": "goodnet.formats.keras_live",
}
"""Function -> the module that it stands in."""


def read_model(path: Path, architecture: str | None = None) -> Network:
    """A network from a file of any format; the format is found by the content.

    Args:
        path: the model file. It may be hostile: nothing in it is executed.
        architecture: ``"FILE.py:FUNCTION"`` of the user's own, for files of weights only; ignored
            for whole models.

    Returns:
        The :class:`Network`; its ``kind`` is a key of :data:`LOADERS`.

    Raises:
        GoodnetError: M001-M008 and M014, as :data:`goodnet.errors.CODES` tells.
    """
    check_exists(path)
    check_pickle_free_or_safe(path)
    kind = sniff(path)
    if kind not in LOADERS:
        raise GoodnetError("M003", f"{path} is not a model, or it is cut short", FORMATS)
    return LOADERS[kind](path, architecture)


def adopt(model: object) -> Network:
    """A network from a live object.

    Args:
        model: a ``keras.Model`` or an ``nn.Module``; it is copied and stays as it is.

    Returns:
        The :class:`Network`; its ``live`` gives a new object of the same type.

    Raises:
        GoodnetError: M011 for anything else.
    """
    if is_keras(model):
        live: Network = _keras("load_live", model)
        return live
    if isinstance(model, torch.jit.ScriptModule):
        from goodnet.formats import torchscript

        return torchscript.load_live(model)
    if isinstance(model, nn.Module):
        from goodnet.formats import torch_module

        return torch_module.load_live(model)
    raise GoodnetError(
        "M011",
        f"a {type(model).__module__}.{type(model).__name__} is not a model that goodnet reads",
        "pass a keras.Model or a torch.nn.Module, or the path of a file",
    )


def _keras(function: str, *arguments: object) -> Any:
    """Call a reader of Keras models; Keras is imported only now."""
    module = importlib.import_module(KERAS_READERS[function])
    return getattr(module, function)(*arguments)


def _hdf5(path: Path, architecture: str | None) -> Network:
    network: Network
    if not _keras("is_weights_only", path):
        network = _keras("load_h5", path)
        return network
    model = _architecture(path, architecture)
    reader = "load_h5_weights" if is_keras(model) else "load_h5_weights_into_torch"
    network = _keras(reader, path, model)
    return network


def _keras_zip(path: Path, architecture: str | None) -> Network:
    network: Network = _keras("load_keras", path)
    return network


def _pt2(path: Path, architecture: str | None) -> Network:
    from goodnet.formats import torch_export

    return torch_export.load(path)


def _torchscript(path: Path, architecture: str | None) -> Network:
    from goodnet.formats import torchscript

    return torchscript.load(path)


def _torch_weights(path: Path, architecture: str | None) -> Network:
    from goodnet.formats import torch_weights

    model = _architecture(path, architecture)
    if is_keras(model):
        raise GoodnetError(
            "M008",
            f"{path} holds PyTorch weights, but {architecture} makes a Keras model",
            "pass an architecture that makes a torch.nn.Module",
        )
    return torch_weights.load(path, model)


def _architecture(path: Path, architecture: str | None) -> nn.Module:
    if architecture is None:
        raise GoodnetError(
            "M007",
            f"{path} holds weights only",
            "pass --architecture FILE.py:FUNCTION; FUNCTION() returns the untrained network",
        )
    model = load_architecture(architecture)
    # A keras.Model is an nn.Module too when Keras runs on PyTorch, the only backend used here.
    return model  # type: ignore[return-value]


LOADERS: dict[str, Callable[[Path, str | None], Network]] = {
    "hdf5": _hdf5,
    "keras-zip": _keras_zip,
    "pt2": _pt2,
    "torchscript": _torchscript,
    "torch-zip": _torch_weights,
    "torch-legacy": _torch_weights,
    "safetensors": _torch_weights,
}
"""What :func:`goodnet.formats.guard.sniff` found -> what reads it."""
