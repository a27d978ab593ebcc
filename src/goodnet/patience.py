"""Waiting for foreign code, but not for ever.

A program in a model file may never come to an answer, and nothing can end it from outside: Ctrl-C
is heard only when it is done. So it gets a thread of its own, and this one can be interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from goodnet.errors import GoodnetError

PATIENCE = 300.0
"""Seconds for what takes a large network some seconds at most: being read, and two images."""

Result = TypeVar("Result")

_NAME = "goodnet: foreign code"


def left_behind() -> bool:
    """Whether foreign code that nobody waits for is still running in this process.

    Python's way out of a process would then end in PyTorch's abort: whoever owns the process should
    leave with :func:`os._exit`.
    """
    return any(thread.name == _NAME for thread in threading.enumerate())


def awaited(work: Callable[[], Result], what: str, seconds: float | None = None) -> Result:
    """``work()``, in a thread of its own.

    Args:
        work: foreign code. Where it does not end, its thread goes on until the process ends.
        what: the subject of the message, as ``"the model"``.
        seconds: that it gets; :data:`PATIENCE` by default.

    Returns:
        Its result.

    Raises:
        GoodnetError: M016 when the time is over.
        BaseException: whatever ``work`` raises.
    """
    limit = PATIENCE if seconds is None else seconds
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        # Not swallowed: it is raised again where the result is waited for.
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, name=_NAME, daemon=True)
    thread.start()
    thread.join(limit)
    if failures:
        raise failures[0]
    if not results:
        raise GoodnetError(
            "M016",
            f"{what} has not come to an end after {limit:.0f} seconds",
            "do not trust the file: a classifier answers at once; ask for a .pt2 or for weights",
        )
    return results[0]
