"""TorchScript files: ``torch.jit.save`` writes them, ``torch.jit.load`` reads them."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.guard import check_pickle_free_or_safe, damaged
from goodnet.formats.network import Network
from goodnet.formats.torch_module import as_logits, freeze, tensor_of

FORBIDDEN = frozenset({"save", "from_file", "rpc_sync", "rpc_async", "rpc_remote"})
"""Names in TorchScript source that write or map files, or call other machines."""
FORBIDDEN_KINDS = frozenset(
    {
        "aten::save",
        "aten::from_file",
        "aten::_print",
        "prim::Print",
        "prim::PythonOp",
        "prim::IgnoredPythonOp",
        "prim::rpc_sync",
        "prim::rpc_async",
        "prim::rpc_remote",
    }
)
"""The same as nodes of a compiled graph."""

_SOFTMAXES = ("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax")
_HINT = "ask for a torch.export file (.pt2), or for the weights and the architecture"


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

    The program's text is read before it is compiled, because ``__setstate__`` methods run while a
    file is loaded; the compiled graphs of all methods are read again afterwards.

    Args:
        path: written by ``torch.jit.save``; takes ``(n, C, H, W)``.

    Returns:
        A :class:`Network` of kind ``"torchscript"``. A frozen program has no parameters: it can be
        scanned but not repaired.

    Raises:
        GoodnetError: M003 damaged, M004 a pickle that would run code, M014 an operation that
            reaches outside the model, M016 one that may not end while it is read.
    """
    check_pickle_free_or_safe(path)
    source = path.read_bytes()
    _check_source(path, source)
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
        _check_graphs(where, _jit_load(source))
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


def _check_source(path: Path, source: bytes) -> None:
    """Refuse by the bare words of the program's text, whatever they are meant to be there."""
    wakes = loops = False
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        for name in archive.namelist():
            inside = name.casefold().split("/")[1:]
            if inside[:1] != ["code"] or name.endswith(".debug_pkl"):
                continue
            text = archive.read(name).decode("utf-8", "replace")
            found = FORBIDDEN & set(re.findall(r"[A-Za-z_]\w*", text))
            foreign = _foreign_namespace(text)
            if found or foreign:
                raise _reaches_out(str(path), min(found) if found else foreign)
            wakes |= "__setstate__" in text
            loops |= re.search(r"^\s*(while|for)\b", text, re.MULTILINE) is not None
    if wakes and loops:
        # PyTorch runs it inside its reader, which nothing can interrupt.
        raise GoodnetError(
            "M016", f"{path} runs code while it is read, and loops, perhaps for ever", _HINT
        )


def _foreign_namespace(text: str) -> str:
    if re.search(r"__torch__\s*\.\s*torch\s*\.\s*classes", text):
        return "torch.classes"
    for match in re.finditer(r"(?<![\w.])ops\b(.{0,40})", text):
        if not re.match(r"\.(aten|prim)\.", match[1]):
            return f"ops{match[1].split('(')[0]}"
    return ""


def _check_graphs(where: str, program: torch.jit.ScriptModule) -> None:
    for part in program.modules():
        compiled = part._c
        for name in compiled._method_names():  # type: ignore[operator,union-attr]
            graph = compiled._get_method(name).inlined_graph  # type: ignore[operator,union-attr]
            for kind in _kinds(graph):
                if kind.split("::")[0] not in ("aten", "prim") or kind in FORBIDDEN_KINDS:
                    raise _reaches_out(where, kind)


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


def _reaches_out(where: str, what: str) -> GoodnetError:
    return GoodnetError("M014", f"{where} calls {what}, which reaches outside the model", _HINT)
