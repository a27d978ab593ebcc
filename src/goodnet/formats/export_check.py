"""What stands in a torch.export program, checked before anything of it is believed.

``torch.export.load`` turns the text of the program into Python: operators are looked up by dotted
name, sizes are evaluated as expressions, tensor names become variables of generated code. goodnet
reads the program with an interpreter of its own and does none of that; but the repaired file is
meant for ``torch.export.load``, so a text that could become code is refused here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

import torch

from goodnet.errors import GoodnetError
from goodnet.formats.export_numbers import on_numbers
from goodnet.formats.guard import damaged
from goodnet.formats.operations import is_allowed

HIGHER_ORDER = "torch.ops.higher_order.wrap_with_set_grad_enabled"
"""The one operator with a graph inside: what ``with torch.no_grad()`` becomes."""

_NAME = re.compile(r"[\w.]*")
_LOOSE = re.compile(r"[\w.+:\- ]*")
_CONTEXT = re.compile(r"[\w\s\[\]\",.\-]*")
_TREE_TYPES = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
)
_SIZE_WORDS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs",
    "Eq", "Ne", "Le", "Lt", "Ge", "Gt", "And", "Or", "Not", "FloorDiv", "CeilDiv",
    "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "ToFloat", "RoundToInt", "Identity", "positive",
    "integer", "nonnegative", "real", "finite", "commutative", "True", "False", "true", "false",
    "int_oo", "oo",
})  # fmt: skip
_GUARD_NODES = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
    ast.Compare, ast.cmpop, ast.Subscript, ast.Constant, ast.Load,
)  # fmt: skip


def resolve(target: str, where: str) -> Callable[..., Any]:
    """The operator that a node names.

    Args:
        target: e.g. ``"torch.ops.aten.conv2d.default"``.
        where: the file, for the message.

    Raises:
        GoodnetError: M014 when it is not one that :mod:`goodnet.formats.operations` lets through.
    """
    parts = target.split(".")
    found: object = on_numbers(target)
    if parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5 and is_allowed(parts[3]):
        packet = getattr(torch.ops.aten, parts[3], None)
        if (
            isinstance(packet, torch._ops.OpOverloadPacket)
            # Those write to a tensor that they are given, and resize it.
            and not parts[4].endswith("out")
            and parts[4] in packet.overloads()  # type: ignore[no-untyped-call]
        ):
            found = getattr(packet, parts[4])
    if not callable(found):
        raise GoodnetError(
            "M014",
            f"{where} calls {target[:100]}, which is not one of the operations of classifiers",
            "export the model again with ordinary PyTorch layers only",
        )
    return found


def check_text(value: object, where: str, key: str = "") -> None:
    """Refuse a program with a text in it that ``torch.export.load`` could turn into code.

    Args:
        value: the program, or a part of it.
        where: the file, for the message.
        key: under which ``value`` stands.

    Raises:
        GoodnetError: M014 naming the place of the text.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            fits = _is_size(name) if key == "range_constraints" else _NAME.fullmatch(name)
            if not fits:
                raise _suspicious(where, key, name)
            # Metadata are shown and stored, never evaluated; texts among arguments are quoted.
            if name not in ("metadata", "as_string", "as_strings"):
                check_text(part, where, name)
    elif isinstance(value, list):
        for part in value:
            check_text(part, where, key)
    elif isinstance(value, str) and not _is_harmless(value, key):
        raise _suspicious(where, key, value)


def _is_harmless(text: str, key: str) -> bool:
    if key in ("in_spec", "out_spec"):
        return _is_tree(text)
    if key == "expr_str":
        return _is_size(text)
    if key == "guards_code":
        return _is_guard(text)
    if text == "-Infinity":
        return True
    pattern = _LOOSE if key in ("torch_version", "type", "verifiers") else _NAME
    return pattern.fullmatch(text) is not None


def _is_size(text: str) -> bool:
    """Whether a text is arithmetic on sizes, in the words of sympy and nothing else."""
    if not re.fullmatch(r"[\w\s+\-*/(),.<>=']*", text):
        return False
    if re.search(r"[^\d\s]\s*\.|\.\s*[^\d\s+\-*/(),<>=]", text):  # an attribute
        return False
    words = re.findall(r"[A-Za-z_]\w*", text)
    return all(word in _SIZE_WORDS or re.fullmatch(r"z?[suf]\d+", word) for word in words)


def _is_guard(text: str) -> bool:
    """Whether a text only compares sizes of the inputs, e.g. ``L['x'].size()[0] <= 64``."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            fits = re.fullmatch(r"[A-Za-z]\w*", node.id) is not None
        elif isinstance(node, ast.Call):
            fits = isinstance(node.func, ast.Attribute) and not node.args and not node.keywords
        elif isinstance(node, ast.Attribute):
            fits = node.attr == "size"
        else:
            fits = isinstance(node, _GUARD_NODES)
        if not fits:
            return False
    return True


def _is_tree(text: str) -> bool:
    """Whether a text describes nested tuples, lists and dicts; other types import modules."""
    try:
        _, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text == ""
    pending = [tree]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or node.get("type") not in _TREE_TYPES:
            return False
        context = node.get("context")
        if context is not None and not (isinstance(context, str) and _CONTEXT.fullmatch(context)):
            return False
        children = node.get("children_spec", [])
        if not isinstance(children, list):
            return False
        pending += children
    return True


def _suspicious(where: str, key: str, text: str) -> GoodnetError:
    return GoodnetError(
        "M014",
        f"{where} has the text {text[:80]!r} as {key or 'a name'}, which could run as code",
        "do not load this file; ask for a fresh torch.export of the model",
    )


def read_program(data: bytes, where: str) -> dict[str, Any]:
    """The program of an archive, parsed and with all its texts checked.

    Args:
        data: the JSON document.
        where: the file, for the message.

    Raises:
        GoodnetError: M003 not a program, M014 a text in it could become code.
    """
    try:
        program: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(where, error) from error
    if not isinstance(program, dict) or "graph_module" not in program:
        raise damaged(where, "it holds no program")
    check_text(program, where)
    return program
