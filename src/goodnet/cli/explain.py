"""``goodnet explain``."""

from __future__ import annotations

from typing import Annotated

import typer

from goodnet.cli.failures import run
from goodnet.cli.terminal import Terminal


def explain(
    code: Annotated[
        str,
        typer.Argument(
            metavar="CODE", show_default=False, help="Of an error (M004) or a finding (F001)."
        ),
    ],
) -> None:
    """Explain the code of an error or a finding."""
    raise typer.Exit(run(lambda terminal: _explain(terminal, code)))


def _explain(terminal: Terminal, code: str) -> int:
    from goodnet.render.explain import explain as page

    terminal.write(page(code))
    return 0
