"""Every way in which a verb can end badly, as a message with a code; never a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

import typer

from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError

FAILURE = 2
"""The exit code of everything that is neither "nothing found" nor "backdoor found"."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""``EFBIG`` is a quota on the size of one file."""

LONGEST = 2_000
"""Characters of a message."""

UNBROKEN = 100_000
"""Columns: wider than any message."""


def run(work: Callable[[Terminal], int]) -> int:
    """Does the work of a verb.

    Args:
        work: returns the exit code. What it prints itself goes to stderr: stdout is only for what
            it hands to the :class:`Terminal`, so that JSON stays one document.

    Returns:
        The exit code; :data:`FAILURE` after an error, which has been told on stderr.
    """
    terminal = Terminal.open()
    try:
        with contextlib.redirect_stdout(sys.stderr), _polite_signals(), _few_warnings():
            return work(terminal)
    except typer.Exit as exit_:
        return exit_.exit_code
    except KeyboardInterrupt:
        error = interrupted()
    except GoodnetError as known:
        _debug()
        error = known
    except OSError as failure:
        _debug()
        if not terminal.alive():
            silence(terminal.results)
        error = translate(failure)
    except Exception as failure:
        _debug()
        error = translate(failure)
    complain(error)
    return FAILURE


def interrupted() -> GoodnetError:
    """The R001 error."""
    return GoodnetError(
        "R001",
        "interrupted; no output was left half-written",
        "run it again when you like; a scan with '-o FOLDER' goes on where it stopped",
    )


def translate(error: Exception, where: str = "") -> GoodnetError:
    """The error that a user is told about instead of ``error``.

    Args:
        error: anything that no reader or writer has explained.
        where: the name of the output, if the exception does not know it.
    """
    reason = next(iter(str(error).strip().splitlines()), "")[:200]
    if _is_full(error):
        name = getattr(error, "filename", None) or where
        return GoodnetError(
            "O002",
            f"the disk is full{f': {name}' if name else ''}",
            "free some space, or name another place",
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return GoodnetError(
            "R006",
            f"MemoryError: {reason or 'the memory is not enough'}",
            "give fewer or smaller images, fewer --workers, or use a machine with more memory",
        )
    kind = type(error).__name__
    # PyTorch's, of a graphics card; torch takes too long to import for its sake.
    if kind == "OutOfMemoryError":
        return GoodnetError(
            "R010",
            f"the graphics card's memory is not enough: {reason}",
            "end what else uses the card, or give --device cpu",
        )
    return GoodnetError(
        "R006",
        f"{kind}: {reason}" if reason else kind,
        "report this line with your command; GOODNET_DEBUG=1 shows where it happened",
    )


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    # Writers in Rust and C++ (safetensors, HDF5, torch) know nothing of Python's errno.
    return any(os.strerror(number) in str(error) for number in NO_SPACE)


def complain(error: GoodnetError) -> None:
    """Tells an error on stderr."""
    # A file can put megabytes into a name.
    error = GoodnetError(error.code, _cut(error.message), _cut(error.hint))
    with contextlib.suppress(ValueError):
        # The message is all that is left to do: a second Ctrl-C must not cut it with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from rich.console import Console

        from goodnet.render.text import error_text

        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            # Other programs look for these lines; only a terminal has a right margin.
            console.width = UNBROKEN
        console.print(error_text(error))
    # After a Ctrl-C in the middle of an import hardly anything can be imported any more.
    except Exception:
        lines = (f"error[{error.code}]: {error.message}", f"  help: {error.hint}")
        with contextlib.suppress(OSError):
            typer.echo("\n".join((*lines, f"  more: goodnet explain {error.code}")), err=True)
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def silence(stream: TextIO) -> None:
    """Lets what is still buffered for a closed pipe or a full disk go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _debug() -> None:
    if debugging():
        traceback.print_exc()


def debugging() -> bool:
    """Whether ``GOODNET_DEBUG=1`` asks for tracebacks and warnings."""
    return os.environ.get("GOODNET_DEBUG", "") not in ("", "0")


@contextlib.contextmanager
def _few_warnings() -> Iterator[None]:
    # What libraries mutter about their own future is not about the user's model.
    with warnings.catch_warnings():
        if not debugging():
            warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _polite_signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that temporary files are removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
