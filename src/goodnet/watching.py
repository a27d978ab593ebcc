"""Watching a network's operations as they run, whatever format it came in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

Saw = Callable[[Any, tuple[Any, ...], Any], None]
"""``saw(operation, args, result)``: one operation of PyTorch's, what it was given in order, and
what it gave.
"""


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Tells ``saw`` of every operation inside ``with``, and changes none."""

    def __init__(self, saw: Saw) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.saw = saw

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.saw(func, args, result)
        return result
