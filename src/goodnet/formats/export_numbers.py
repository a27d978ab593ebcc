"""Arithmetic on sizes in an exported program: on numbers that fit a machine word, and no others.

Python counts as far as memory goes, and hears nothing while it does: a power of two numbers that a
file names could keep the process for ever. Lists and texts, which the same operators multiply, are
no sizes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

_WORD = 2**63
_OPERATORS = frozenset({
    "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "ge", "gt", "le", "lt", "eq",
    "ne", "and_", "or_", "not_",
})  # fmt: skip
_MATH = frozenset({"ceil", "floor", "trunc", "sqrt"})
_SYMBOLIC = frozenset({
    "sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum", "_sym_sqrt",
})  # fmt: skip
"""What PyTorch calls instead of the above where a size was not known at export."""
_SUM = getattr(torch, "sym_sum", None)


def on_numbers(target: str) -> Callable[..., Any] | None:
    """The function that a node names, which takes and gives numbers only; None if it is none.

    Args:
        target: e.g. ``"_operator.mul"`` or ``"math.ceil"``.

    Returns:
        A function that raises TypeError for anything but numbers (``getitem``: a list and a
        place), and ValueError for numbers that no size has.
    """
    library, _, name = target.partition(".")
    if target == "_operator.getitem":
        return _item
    if library == "_operator" and name in _OPERATORS:
        return _checked(getattr(operator, name))
    if library == "math" and name in _MATH:
        return _checked(getattr(math, name))
    if library == "torch" and name in _SYMBOLIC and hasattr(torch, name):
        return _checked(getattr(torch, name))
    return None


def _item(values: Any, place: Any) -> Any:
    if not isinstance(values, list | tuple) or not isinstance(place, int):
        raise TypeError("a place of a list is wanted")
    return values[place]


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        # A list that is multiplied could fill the memory; a sum alone takes one.
        listed = function is _SUM
        for value in values:
            for number in value if listed and isinstance(value, list | tuple) else [value]:
                _check(number)
        if function is operator.pow and abs(values[1]) > 63:
            raise ValueError("no size is such a power")
        try:
            result = function(*values)
        except (OverflowError, ZeroDivisionError) as error:
            raise ValueError(str(error)) from error
        _check(result)
        return result

    return run


def _check(number: Any) -> None:
    if not isinstance(number, int | float):
        raise TypeError(f"{type(number).__name__} where a number is wanted")
    if isinstance(number, int) and abs(number) >= _WORD:
        raise ValueError("a number beyond any size")
