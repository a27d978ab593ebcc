"""TorchScript files: ``torch.jit.save`` writes them, ``torch.jit.load`` reads them."""

from __future__ import annotations

import io
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.guard import check_pickle_free_or_safe, damaged
from goodnet.formats.network import Network
from goodnet.formats.pickles import BREAKS
from goodnet.formats.torch_module import as_logits, freeze, tensor_of
from goodnet.formats.torchscript_check import check_program, check_source, same_for_all

_SOFTMAXES = ("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax")


class ScriptModule(nn.Module):
    """A TorchScript program that answers with logits and can always be copied.

    A softmax that the program ends in is taken out of the graph of ``forward``; where the program
    ends in something less plain, probabilities become ``log(p)``, clamped at 1e-30.

    Args:
        source: the bytes of the file, already checked.
    """

    def __init__(self, source: bytes) -> None:
        super().__init__()
        self.source = source
        self.program = _jit_load(source)
        # Before the first call: afterwards an optimised graph exists that is no longer ours.
        _take_softmax_off(self.program)
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """``float32 (n, C, H, W)`` to logits ``float32 (n, K)``."""
        return as_logits(tensor_of(self.program(images)))

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptModule:
        # Not every compiled object can be copied in memory, but each came from these bytes.
        result = ScriptModule(self.source)
        copy_tensors(self.program, result.program)
        result.train(self.training)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a TorchScript network cannot be pickled")


def load(path: Path) -> Network:
    """A network from a TorchScript file.

    The program's text is read before it is compiled, because what it says of how it is restored
    would run then; the compiled functions are read again afterwards.

    Args:
        path: written by ``torch.jit.save``; takes ``(n, C, H, W)``.

    Returns:
        A :class:`Network` of kind ``"torchscript"``. A frozen program has no parameters: it can be
        scanned but not repaired.

    Raises:
        GoodnetError: M003 damaged, M004 a pickle that would run code, M014 an operation that
            reaches outside the model, or code that would run while it is read.
    """
    check_pickle_free_or_safe(path)
    try:
        source = same_for_all(path.read_bytes())
        check_source(path, source)
    # What zipfile raises for a broken archive, an unknown compression (NotImplementedError) and an
    # encrypted member (RuntimeError): each is a damaged file to the user.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, *BREAKS) as error:
        raise damaged(path, error) from error
    return _network(path.suffix, source, str(path))


def load_live(module: torch.jit.ScriptModule) -> Network:
    """A network from a live TorchScript module, which is copied and stays as it is.

    Args:
        module: takes ``(n, C, H, W)``.

    Returns:
        As :func:`load`; ``live`` gives a new ``ScriptModule``.

    Raises:
        GoodnetError: M014 an operation that reaches outside the model.
    """
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return _network("", buffer.getvalue(), "the TorchScript module", live=True)


def copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers, by name, from one module into another of the same build."""
    new = dict([*source.named_parameters(), *source.named_buffers()])
    with torch.no_grad():
        for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
            tensor.copy_(new[name])


def _network(suffix: str, source: bytes, where: str, live: bool = False) -> Network:
    try:
        check_program(where, source)
        module = ScriptModule(source)
    except GoodnetError:
        raise
    except Exception as error:
        raise damaged(where, error) from error
    return Network(
        module=module,
        input_shape=None,
        num_classes=None,
        kind="torchscript",
        suffix=suffix,
        write=partial(_write, source=source),
        live=partial(_native, source=source) if live else None,
    )


def _jit_load(source: bytes) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # PyTorch calls TorchScript deprecated; the user did not choose the format.
        warnings.simplefilter("ignore", DeprecationWarning)
        program: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(source), map_location="cpu"
        )
    return program


def _native(module: nn.Module, source: bytes) -> torch.jit.ScriptModule:
    """The program as it was, softmax and modes included, with the weights of ``module``."""
    if not isinstance(module, ScriptModule):
        raise TypeError("expected a copy of the network's module")
    native = _jit_load(source)
    copy_tensors(module.program, native)
    return native


def _write(module: nn.Module, path: Path, source: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(_native(module, source), str(path))


def _take_softmax_off(program: torch.jit.ScriptModule) -> None:
    graph = program._c._get_method("forward").graph
    torch._C._jit_pass_inline(graph)
    # F.softmax asks whether a dtype is given; with the constant known, one branch is left.
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_peephole(graph, False)
    torch._C._jit_pass_dce(graph)
    outputs = list(graph.outputs())
    if len(outputs) != 1 or outputs[0].node().kind() not in _SOFTMAXES:
        return
    node = outputs[0].node()
    scores, dim = list(node.inputs())[:2]
    if dim.toIValue() in (1, -1):
        outputs[0].replaceAllUsesWith(scores)
        node.destroy()
