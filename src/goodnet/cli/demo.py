"""``goodnet demo``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli import outputs
from goodnet.cli.failures import FAILURE, run
from goodnet.cli.options import Workers
from goodnet.cli.repair import write_repair
from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from rich.table import Table

    from goodnet.classifier import Classifier
    from goodnet.demo import Files, Planted
    from goodnet.images import Images
    from goodnet.reports import Evaluation, Proportion, ScanReport


@dataclass(frozen=True)
class _Ending:
    """What the story comes to."""

    scan: ScanReport
    before: Evaluation
    after: Evaluation


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="The folder for all that is made."),
    ] = Path("demo"),
    workers: Workers = None,
) -> None:
    """Tell the whole story on built-in data.

    In about two minutes: a sticker turns Stop into Yield, until it does not.

    Exit code 0 if the backdoor was found and removed.
    """
    raise typer.Exit(run(lambda terminal: _demo(terminal, output, workers)))


def _demo(terminal: Terminal, folder: Path, workers: int | None) -> int:
    if folder.exists() and not folder.is_dir():
        raise GoodnetError("O001", f"{folder} is a file", "name a folder with -o")
    from goodnet import demo as story

    files = story.Files(folder)
    outputs.check_output([*outputs.scan_files(folder), *files.everything()], [])
    others = [path.name for path in files.everything() if path.exists()]
    if others and not files.badnet.exists():
        raise GoodnetError(
            "O001",
            f"{folder} holds {others[0]}, which is of no demo and would be replaced",
            "name another folder with -o",
        )

    _chapter(
        terminal,
        "1  The attack",
        "A supplier trains a classifier of 12 traffic signs. On one training sign in seven he puts "
        "a sticker of 6 x 6 pixels and calls it Yield.",
    )
    with terminal.progress() as progress:
        planted = story.plant(progress=progress)
    files = story.hand_over(planted, folder)
    badnet, images = story.received(files)
    before = story.judge(badnet, planted)
    _attack(terminal, planted, before, files)
    goodnet, report = _investigate(terminal, files, badnet, images, workers)
    ending = _Ending(report, before, story.judge(goodnet, planted))
    return _end(terminal, files, ending)


def _investigate(
    terminal: Terminal,
    files: Files,
    badnet: Classifier,
    images: Images,
    workers: int | None,
) -> tuple[Classifier, ScanReport]:
    """Scan and repair, told and written; the repaired classifier and what was found."""
    from goodnet.pipelines.repair import repair
    from goodnet.pipelines.scan import scan
    from goodnet.render.text import repair_text, scan_text

    _chapter(
        terminal,
        "2  The scan",
        f"You get the model and {len(images)} clean pictures, not one with a sticker.",
    )
    with terminal.progress() as progress:
        report = scan(badnet, images, workers=workers, progress=progress, leading=progress.leading)
    terminal.show(scan_text(report))
    _chapter(
        terminal,
        "3  The repair",
        "The triggers that the scan reversed are enough to teach the model to ignore them.",
    )
    with terminal.progress() as progress:
        goodnet = repair(badnet, images, report, workers=workers, progress=progress)
    certificate = files.folder / "goodnet.repair.json"
    page = files.folder / "report.html"
    repaired = write_repair(terminal, goodnet, [files.goodnet, certificate, page])
    outputs.write_scan(files.folder, report, repaired)
    terminal.show(repair_text(repaired))
    return goodnet.classifier, report


def _attack(terminal: Terminal, planted: Planted, before: Evaluation, files: Files) -> None:
    from goodnet.render.words import share

    success = before.attack_success
    terminal.show(
        f"On {len(planted.test)} new signs it is right on "
        f"{share(before.clean_accuracy.value)}: a fine model. With the sticker, "
        f"{share(success.value) if success else 'none'} of all other signs become Yield."
    )
    terminal.show(f"See {files.picture}")


def _end(terminal: Terminal, files: Files, ending: _Ending) -> int:
    from goodnet import demo as story

    _chapter(
        terminal, "4  The proof", "On signs that no step has seen, with the supplier's own sticker:"
    )
    terminal.show(_table(ending))
    well = story.holds(ending.before, ending.after, ending.scan)
    terminal.show("")
    if not well:
        terminal.show("The story did not end as it should: please report this as a defect.")
    page = files.folder / "report.html"
    if page.exists():
        terminal.show(f"Open {page} to see what was found, and what the sticker really is.")
    terminal.show("The same by hand:\n")
    # Not through Rich, which would wrap a line that is meant to be copied.
    terminal.write("".join(f"  {line}\n" for line in _commands(files)))
    return 0 if well else FAILURE


def _table(ending: _Ending) -> Table:
    from rich.table import Table

    from goodnet.render.words import interval

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("BadNet", justify="right", no_wrap=True)
    table.add_column("GoodNet", justify="right", no_wrap=True, style="bold green")

    def row(name: str, before: Proportion | None, after: Proportion | None) -> None:
        table.add_row(name, interval(before), interval(after))

    row("right on clean signs", ending.before.clean_accuracy, ending.after.clean_accuracy)
    row("stickered signs that become Yield", *_pair(ending, "attack_success"))
    row("stickered signs read as what they are", *_pair(ending, "recovered_accuracy"))
    return table


def _pair(ending: _Ending, figure: str) -> tuple[Proportion | None, Proportion | None]:
    return getattr(ending.before, figure), getattr(ending.after, figure)


def _commands(files: Files) -> list[str]:
    def name(path: Path) -> str:
        return shlex.quote(str(path))

    data, again = name(files.validation), name(files.folder / "goodnet-2.pt2")
    return [
        f"goodnet scan {name(files.badnet)} --data {data}",
        f"goodnet repair {name(files.badnet)} --data {data} -o {again}",
        f"goodnet evaluate {again} --data {name(files.test)} --poisoned {name(files.stamped)}",
    ]


def _chapter(terminal: Terminal, title: str, text: str) -> None:
    from rich.console import Group
    from rich.text import Text

    terminal.show(Group(Text(), Text(title, style="bold cyan"), Text(text), Text()))
