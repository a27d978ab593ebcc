"""``goodnet explain CODE``: a page for every error and every verdict."""

from __future__ import annotations

import textwrap
import tomllib
from functools import cache
from importlib.resources import files

from goodnet.errors import CODES, GoodnetError
from goodnet.render.words import plain

FINDINGS = {
    "F001": "Backdoored: a trigger sends images of other classes to one or several labels.",
    "F002": "Suspicious: a label is unusually easy to force, short of a finding.",
    "F003": "Clean: no evidence of a backdoor of the kinds tested.",
    "F004": "Inconclusive: the scan could not decide.",
}
"""Code of a verdict -> what it says in one sentence."""

HEADINGS = {
    "means": "What it means",
    "matters": "Why it matters",
    "do": "What to do",
    "limits": "Known limits",
}
"""Key in the file of explanations -> heading on the page."""

WIDTH = 80


def explain(code: str) -> str:
    """The page about an error or a finding, as plain text of at most 80 columns.

    Args:
        code: a key of :data:`goodnet.errors.CODES` or of :data:`FINDINGS`, in either case.

    Raises:
        GoodnetError: R003 when there is no such code.
    """
    key = code.strip().upper()
    titles = CODES | FINDINGS
    if key not in titles:
        known = f"{', '.join(sorted(FINDINGS))}, and the codes that error messages begin with"
        raise GoodnetError(
            "R003", f"there is no code {plain(code, 40)!r} to explain", f"known are {known}"
        )
    parts = [textwrap.fill(f"{key}  {titles[key]}", WIDTH, subsequent_indent="      ")]
    page = _pages()[key]
    for field, heading in HEADINGS.items():
        parts.append(f"{heading}\n{_body(page[field])}")
    return "\n\n".join(parts) + "\n"


def _body(text: str) -> str:
    """Paragraphs (divided by an empty line) filled, commands (indented lines) left alone."""
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        if block.startswith("  "):
            blocks.append(textwrap.indent(textwrap.dedent(block), "      "))
        else:
            filled = textwrap.fill(
                " ".join(block.split()), WIDTH - 2, break_long_words=False, break_on_hyphens=False
            )
            blocks.append(textwrap.indent(filled, "  "))
    return "\n\n".join(blocks)


@cache
def _pages() -> dict[str, dict[str, str]]:
    text = files("goodnet.render").joinpath("explanations.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
