"""The command line. Nothing here imports torch before a verb begins its work."""

from __future__ import annotations

from typing import Annotated

import typer

from goodnet.cli import attack, demo, evaluate, explain, fleet, predict, repair, scan
from goodnet.version import __version__

app = typer.Typer(
    name="goodnet",
    help="Finds the backdoor in an image classifier and hands back the model without it.",
    epilog="Exit codes of a scan: 0 no backdoor found, 1 backdoor found, 2 not decided or failed.",
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks are for GOODNET_DEBUG=1; the verbs turn every failure into a message themselves.
    # Drawing frames around the help would take longer than everything else before it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in (scan, repair, evaluate, predict, fleet, attack, demo, explain):
    app.command()(getattr(_module, _module.__name__.rpartition(".")[2]))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"goodnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Finds the backdoor in an image classifier and hands back the model without it."""
