"""Results on stdout; progress and messages on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from goodnet.reports import Data


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


class Watcher:
    """What draws a run. Called as a :data:`goodnet.parallel.Progress`, which cannot be imported
    without torch.
    """

    def __init__(
        self,
        draw: Callable[[str, int, int], None],
        leading: Callable[[list[int]], None] = lambda labels: None,
    ) -> None:
        self._draw = draw
        self.leading = leading

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` in a stage."""
        self._draw(stage, done, total)


@dataclass(frozen=True)
class Terminal:
    """Where a verb prints.

    Attributes:
        results: the true stdout; ``sys.stdout`` is stderr while a verb works.
        notes: the console on stderr.
    """

    results: TextIO
    notes: Console

    @classmethod
    def open(cls) -> Terminal:
        """The terminal of this process, as it is now."""
        from rich.console import Console

        return cls(sys.stdout, Console(file=sys.stderr, highlight=False))

    def write(self, text: str) -> None:
        """Writes a result as it is.

        Raises:
            OSError: it cannot be written, other than for a pipe whose reader has gone.
        """
        try:
            self.results.write(text)
            self.results.flush()
        except BrokenPipeError:
            from goodnet.cli.failures import silence

            # "goodnet scan ... | head -1": the reader has what it wanted, the verdict stands.
            silence(self.results)

    def write_json(self, report: Data) -> None:
        """Writes a report as JSON. What steers a terminal, in a name from a file, is escaped, which
        JSON takes to mean the same.

        Raises:
            OSError: as :meth:`write`.
        """
        from goodnet.reports import as_text

        self.write(re.sub(r"[^\n -~]", _escaped, as_text(report)))

    def show(self, item: RenderableType) -> None:
        """Writes a Rich renderable as a result."""
        from rich.console import Console

        console = Console(file=self.results, highlight=False)
        # Rich would leave the process with exit code 1, "backdoored", on a broken pipe.
        with console.capture() as capture:
            console.print(item)
        self.write(capture.get())

    def plain(self, item: RenderableType) -> str:
        """A Rich renderable as text for a file: 80 columns, no colours."""
        import io

        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=80, color_system=None, highlight=False).print(item)
        return text.getvalue()

    def say(self, text: str) -> None:
        """A message beside the results."""
        from rich.text import Text

        with contextlib.suppress(BrokenPipeError):
            self.notes.print(Text(text, style="dim"), soft_wrap=True)

    def alive(self) -> bool:
        """Whether stdout still takes what is buffered for it."""
        try:
            self.results.flush()
        except (OSError, ValueError):
            return False
        return True

    @contextlib.contextmanager
    def progress(self) -> Iterator[Watcher]:
        """Draws a bar with the time left and the labels that lead, or tells each new stage in a
        line where nobody watches.
        """
        if not self.notes.is_terminal or os.environ.get("TERM") == "dumb":
            yield Watcher(self._lines())
            return
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[ahead]}"),
            console=self.notes,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        tasks: dict[str, progress.TaskID] = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=total, ahead="")
            bar.update(tasks[stage], completed=done, total=total)

        def lead(labels: list[int]) -> None:
            for task in list(tasks.values())[-1:]:
                bar.update(task, ahead=f"ahead: {', '.join(map(str, labels))}")

        with bar:
            yield Watcher(draw, lead)

    def _lines(self) -> Callable[[str, int, int], None]:
        told: set[str] = set()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in told:
                told.add(stage)
                self.say(f"{stage} ({total})")

        return tell
