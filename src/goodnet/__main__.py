"""The command ``goodnet``, also as ``python -m goodnet``."""

from __future__ import annotations

import contextlib
import io
import os
import sys

INTERRUPTED = 130
"""How Typer leaves when Ctrl-C comes while it still reads the command line."""


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A sign that the terminal's encoding lacks must not turn a finished scan into an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = INTERRUPTED
    # No traceback on Ctrl-C, not even while the command line is being imported.
    with contextlib.suppress(KeyboardInterrupt):
        code = _run()
    if code == INTERRUPTED:
        from goodnet.cli.failures import FAILURE, complain, interrupted

        complain(interrupted())
        code = FAILURE
    if "goodnet.patience" in sys.modules:
        from goodnet.cli.failures import FAILURE
        from goodnet.patience import left_behind

        if left_behind():
            for stream in (sys.stdout, sys.stderr):
                # Whether what reads it is still there plays no part any more.
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(code if isinstance(code, int) else FAILURE)
    sys.exit(code)


def _run() -> int | str | None:
    from goodnet.cli import app
    from goodnet.cli.failures import FAILURE, complain, silence, translate

    code: int | str | None = 0
    try:
        try:
            app(prog_name="goodnet")
        except SystemExit as exit_:
            code = exit_.code
        # Python flushes only after the exit code is settled: a full disk would go unnoticed.
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        complain(translate(error, "standard output"))
        return FAILURE
    return code


if __name__ == "__main__":
    main()
