"""Bare PyTorch weights (``.pt``, ``.pth``, ``.safetensors``) and the network they belong to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.guard import STATE_DICT_HINT, check_pickle_free_or_safe, damaged, sniff
from goodnet.formats.network import Network
from goodnet.formats.torch_module import LogitsModule, freeze

NESTS = ("state_dict", "model_state_dict", "model", "net")
"""Where checkpoints keep the weights beside the optimiser, the epoch and so on."""
PREFIXES = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put before every name."""


@dataclass(frozen=True)
class _Checkpoint:
    """What stood in a file of weights, so that it can be written back the same.

    Attributes:
        kind: as :func:`goodnet.formats.guard.sniff` gives it.
        content: the whole unpickled file, or the tensors of a safetensors file.
        nest: the key under which the weights stand, or None.
        weights: the weights under the names of the file.
        prefix: what stands before every name.
        metadata: the strings in the header of a safetensors file.
    """

    kind: str
    content: dict[str, Any]
    nest: str | None
    weights: dict[str, Tensor]
    prefix: str
    metadata: dict[str, str] | None

    def __call__(self, module: nn.Module, path: Path) -> None:
        """Write ``path`` as the file that was read, with the weights of ``module``."""
        if not isinstance(module, LogitsModule):
            raise TypeError("expected a copy of the network's module")
        state = module.inner.state_dict()
        # A copy keeps the type and the version record (OrderedDict with _metadata).
        weights = copy.copy(self.weights)
        for name, old in self.weights.items():
            weights[name] = state[name.removeprefix(self.prefix)].detach().to(old.dtype)
        if self.kind == "safetensors":
            from safetensors.torch import save_file

            # The format forbids tensors that share memory; tied weights do.
            plain = {name: value.clone().contiguous() for name, value in weights.items()}
            save_file(plain, path, metadata=self.metadata)
            return
        content: dict[str, Any] = weights
        if self.nest is not None:
            content = copy.copy(self.content)
            content[self.nest] = weights
        torch.save(content, path, _use_new_zipfile_serialization=self.kind == "torch-zip")


def load(path: Path, architecture: nn.Module) -> Network:
    """Weights from a file in the network that they belong to.

    A checkpoint with the weights under ``"state_dict"``, ``"model_state_dict"``, ``"model"`` or
    ``"net"`` is understood, and so are the prefixes of ``DataParallel`` and ``torch.compile``.

    Args:
        path: a state dict written by ``torch.save``, or safetensors.
        architecture: the untrained network; it is taken over, not copied.

    Returns:
        A :class:`Network` of kind ``"torch-zip"``, ``"torch-legacy"`` or ``"safetensors"``;
        ``write`` keeps nesting, prefix, precision and the other entries of the checkpoint.

    Raises:
        GoodnetError: M003 damaged, M004 a pickle that would run code, M008 the weights do not fit.
    """
    check_pickle_free_or_safe(path)
    keys = set(architecture.state_dict())
    checkpoint = _read(path, keys)
    _fill(architecture, checkpoint, path)
    return Network(
        module=freeze(LogitsModule(architecture.cpu().float())),
        input_shape=None,
        num_classes=None,
        kind=checkpoint.kind,
        suffix=path.suffix,
        write=checkpoint,
    )


def _read(path: Path, wanted: set[str]) -> _Checkpoint:
    kind = sniff(path)
    metadata: dict[str, str] | None = None
    if kind == "safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content = _read_pickled(path)
    nest, weights = _find_weights(path, content)
    prefix = ""
    for candidate in PREFIXES:
        if all(name.startswith(candidate) for name in weights) and not any(
            name.startswith(candidate) for name in wanted
        ):
            prefix = candidate
    return _Checkpoint(kind, content, nest, weights, prefix, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def _read_pickled(path: Path) -> dict[str, Any]:
    try:
        with _numpy_scalars():
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise GoodnetError("M004", f"{path}: {reason}", STATE_DICT_HINT) from error
    except Exception as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise GoodnetError(
            "M003", f"{path} holds a {type(content).__name__}, not a state dict", STATE_DICT_HINT
        )
    return content


@contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let ``torch.load`` read the numpy numbers (a best accuracy) that checkpoints often hold."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *kinds,
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _find_weights(path: Path, content: dict[str, Any]) -> tuple[str | None, dict[str, Tensor]]:
    for nest in (None, *NESTS):
        inside = content if nest is None else content.get(nest)
        if (
            isinstance(inside, dict)
            and inside
            and all(isinstance(value, Tensor) for value in inside.values())
            and all(isinstance(name, str) for name in inside)
        ):
            return nest, inside
    names = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    raise GoodnetError("M008", f"{path} holds no state dict, but {names}", STATE_DICT_HINT)


def _fill(module: nn.Module, checkpoint: _Checkpoint, path: Path) -> None:
    state = {name.removeprefix(checkpoint.prefix): t for name, t in checkpoint.weights.items()}
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 lack this counter, which only training uses.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    surplus = [n for n in state if n not in own]
    shapes = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}"
        for n in own
        if n in state and own[n].shape != state[n].shape
    ]
    problems = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("lacks", missing), ("has extra", surplus), ("shapes:", shapes))
        if names
    ]
    if problems:
        raise GoodnetError(
            "M008",
            f"the weights in {path} do not fit: the file {'; '.join(problems)}",
            "pass the architecture that these weights were trained in",
        )
    module.load_state_dict(state, strict=False)
