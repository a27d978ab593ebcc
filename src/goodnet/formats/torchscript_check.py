"""What stands in a TorchScript file, checked before anything of it runs.

PyTorch's reader compiles the program's text, which runs none of it, unless a class says how it is
to be restored. Then all compiled functions lie open, each by itself.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from goodnet.errors import GoodnetError
from goodnet.formats.guard import damaged
from goodnet.formats.operations import is_allowed

FORBIDDEN = frozenset({"save", "from_file", "rpc_sync", "rpc_async", "rpc_remote"})
"""Names in TorchScript source that write or map files, or call other machines."""
FORBIDDEN_KINDS = frozenset(
    {
        "prim::Print",
        "prim::PythonOp",
        "prim::IgnoredPythonOp",
        "prim::fork",
        "prim::forkClosure",
        "prim::awaitable",
        "prim::awaitableClosure",
        "prim::rpc_sync",
        "prim::rpc_async",
        "prim::rpc_remote",
    }
)
"""The same as nodes of a compiled graph."""

MOST_NODES = 2_000_000
"""Operations in a program with every call written out, which is how PyTorch runs it. A network of
a thousand layers has some ten thousand; a few functions that call each other twice, 2**60."""

HINT = "ask for a torch.export file (.pt2), or for the weights and the architecture"


def same_for_all(source: bytes) -> bytes:
    """An archive written anew, of the members that Python's reader finds in it.

    Two readers may see two archives in the same bytes, by a second directory or a comment that one
    of them takes for it. PyTorch's is given what was checked.

    Raises:
        zipfile.BadZipFile: (or another of zipfile's errors) it cannot be read.
    """
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(source)) as archive,
        zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as written,
    ):
        for member in archive.infolist():
            if not member.is_dir():
                written.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    return result.getvalue()


def check_source(path: Path, source: bytes) -> None:
    """Refuses by the bare words of the program's text, whatever they are meant to be there.

    Args:
        path: for the message.
        source: the archive.

    Raises:
        GoodnetError: M014 for an operation that reaches outside the model, or code that would run
            while the file is read.
    """
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
            if "__setstate__" in text:
                # It would run inside PyTorch's reader, which nothing can interrupt.
                raise GoodnetError(
                    "M014", f"{path} has code that runs while it is read (__setstate__)", HINT
                )


def check_program(where: str, source: bytes) -> None:
    """Refuses by the operations of all compiled functions.

    Args:
        where: for the message.
        source: the archive, its text already checked; nothing of it runs here.

    Raises:
        GoodnetError: M014 for an operation that reaches outside the model or is none of a
            classifier, M003 for calls that come to absurdly many operations.
        RuntimeError: PyTorch's, for what is no program.
    """
    unit: Any = torch._C.CompilationUnit()
    # What torch.jit.load does; only the unit tells all functions, each without those it calls.
    read: Any = torch._C.import_ir_module_from_buffer
    read(unit, source, torch.device("cpu"), {}, False)
    calls: dict[str, list[str]] = {}
    for function in unit.get_functions():
        name = function.qualified_name
        calls[name] = []
        for node in _nodes(function.graph):
            kind = node.kind()
            library, _, operation = kind.partition("::")
            if kind in FORBIDDEN_KINDS or not (
                library == "prim" or (library == "aten" and is_allowed(operation, script=True))
            ):
                raise _reaches_out(where, kind)
            calls[name].append(_called(node))
    count = _counter(calls)
    if any(count(name) > MOST_NODES for name in calls):
        raise damaged(where, "its functions call each other millions of times")


def _called(node: Any) -> str:
    """The function that a node calls, by its full name; ``""`` for any other node."""
    if node.kind() == "prim::CallFunction":
        return str(node.inputsAt(0).type().annotation_str)
    if node.kind() == "prim::CallMethod":
        return f"{node.inputsAt(0).type().annotation_str}.{node.s('name')}"
    return ""


def _counter(calls: dict[str, list[str]]) -> Callable[[str], int]:
    """What tells of a function how many operations it is with every call written out."""
    known: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in calls:
            return 1
        if name not in known:
            # A program has no function that calls itself; if one had, this would be its end.
            known[name] = MOST_NODES + 1
            known[name] = sum(count(called) for called in calls[name])
        return known[name]

    return count


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from _nodes(node.g(name))


def _foreign_namespace(text: str) -> str:
    if re.search(r"__torch__\s*\.\s*torch\s*\.\s*classes", text):
        return "torch.classes"
    for match in re.finditer(r"(?<![\w.])ops\b(.{0,40})", text):
        if not re.match(r"\.(aten|prim)\.", match[1]):
            return f"ops{match[1].split('(')[0]}"
    return ""


def _reaches_out(where: str, what: str) -> GoodnetError:
    return GoodnetError("M014", f"{where} calls {what}, which reaches outside the model", HINT)
