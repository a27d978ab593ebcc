"""Reports for a terminal: Rich renderables that also read well without colour in 80 columns.

Whatever comes from outside goes in as :class:`rich.text.Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from goodnet.errors import GoodnetError
from goodnet.render.words import (
    DASH,
    LONGEST_NAME,
    REPAIR_LIMIT,
    VERDICT_CODES,
    calibration_words,
    certificate_sentence,
    counted,
    duration,
    filter_sentence,
    fresh_sentence,
    interval,
    label_name,
    leaders,
    listing,
    number,
    outcome,
    plain,
    repair_sentence,
    share,
    third_channel,
    treatment,
    verdict_sentence,
    worst_classes_sentence,
)

if TYPE_CHECKING:
    from goodnet.reports import (
        DataRef,
        Evaluation,
        FileRef,
        FleetReport,
        LabelEvidence,
        ModelRef,
        RepairReport,
        ScanReport,
    )

STYLES = {
    "backdoored": "bold red",
    "suspicious": "bold yellow",
    "clean": "bold green",
    "inconclusive": "bold magenta",
}


_NEXT_STEPS = {
    "backdoored": "'goodnet repair MODEL --data DATA -o OUT' removes it",
    "suspicious": "scan again with more images and with another --seed",
    "clean": "this is no proof that there is none; read what was not tested",
    "inconclusive": "the reasons say what was missing",
}


def scan_text(report: ScanReport) -> RenderableType:
    """A scan: the verdict in a sentence, the leading labels, why, and what was looked at."""
    word, sentence = verdict_sentence(report)
    parts: list[RenderableType] = [_headline(word, sentence, STYLES[report.verdict]), Text()]
    if report.labels:
        parts += [_evidence_table(report), Text(_count_line(report), style="dim"), Text()]
    if report.reasons:
        parts += [_bullets(report.reasons), Text()]
    parts += [_facts(_scan_facts(report)), Text()]
    parts.append(Text(calibration_words(report), style="dim"))
    return Group(*parts, _help(_NEXT_STEPS[report.verdict]), _more(VERDICT_CODES[report.verdict]))


def repair_text(report: RepairReport) -> RenderableType:
    """A repair: before and after, the remedies that were tried, and what the certificate says."""
    word, sentence = repair_sentence(report)
    parts: list[RenderableType] = [
        _headline(word, sentence, "bold green" if report.repaired else "bold red"),
        Text(),
        _certificate_table(report),
        Text(),
    ]
    if report.trials:
        parts += [_trials_table(report), Text()]
    parts += [_facts(_repair_facts(report)), Text(), Text(REPAIR_LIMIT, style="dim")]
    return Group(*parts)


def fleet_text(report: FleetReport) -> RenderableType:
    """A fleet: one row a model, and how many of each verdict."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("model", "verdict", "p", "targets", "seconds"):
        table.add_column(heading, justify="right" if heading in ("p", "seconds") else "left")
    counts: dict[str, int] = {}
    for row in report.rows:
        word = row.verdict or "failed"
        counts[word] = counts.get(word, 0) + 1
        table.add_row(
            Text(plain(row.name)),
            Text(word, style=STYLES.get(word, "bold red")),
            Text(DASH if row.p_value is None else f"{row.p_value:.2g}"),
            Text(plain(row.error) if row.error else listing(list(map(str, row.targets)))),
            Text(f"{row.seconds:.1f}"),
        )
    summary = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    return Group(table, Text(), Text(f"{counted(len(report.rows), 'model')}: {summary}"))


def evaluation_text(evaluation: Evaluation) -> RenderableType:
    """An evaluation: one line per figure, with its interval."""
    rows = [("Clean accuracy", interval(evaluation.clean_accuracy, with_n=True))]
    if evaluation.attack_success is not None:
        goal = "" if evaluation.target is None else f", target {evaluation.target}"
        rows.append(("Attack success", interval(evaluation.attack_success, with_n=True) + goal))
    if evaluation.recovered_accuracy is not None:
        rows.append(("Recovered accuracy", interval(evaluation.recovered_accuracy, with_n=True)))
    if evaluation.clean_rejected is not None:
        rows.append(("Clean, rejected", interval(evaluation.clean_rejected, with_n=True)))
    if evaluation.poisoned_rejected is not None:
        rows.append(("Poisoned, rejected", interval(evaluation.poisoned_rejected, with_n=True)))
    rows += [("Model", _model(evaluation.model)), ("Clean images", _data(evaluation.data))]
    if evaluation.poisoned is not None:
        rows.append(("Poisoned images", _data(evaluation.poisoned)))
    rows.append(("Preprocessing", plain(evaluation.preprocess)))
    return Group(
        _facts(rows), Text(), Text("In brackets: exact 95 % intervals, in per cent.", style="dim")
    )


def prediction_text(
    paths: Sequence[str],
    labels: Sequence[int],
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    confidences: Sequence[float] | None = None,
) -> RenderableType:
    """One row per image: its path and its class.

    Args:
        paths: the images, as the user named them.
        labels: what the model answers; ``num_classes`` is a filter's "backdoored input".
        num_classes: K of the model.
        class_names: the name of class i at place i, or None.
        confidences: the softmax probability of each answer, or None.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for place, (path, label) in enumerate(zip(paths, labels, strict=True)):
        caught = label >= num_classes
        name = "backdoored input" if caught else ""
        if not caught and class_names and label < len(class_names):
            name = plain(class_names[label], LONGEST_NAME)
        if confidences is not None and not caught:
            name = f"{name} {share(confidences[place])}".strip()
        style = "bold red" if caught else ""
        table.add_row(Text(plain(path)), Text(str(label), style=style), Text(name, style=style))
    return table


def error_text(error: GoodnetError) -> RenderableType:
    """An error: its code, what is wrong, what to do, and where to read more."""
    head = Text.assemble(
        (f"error[{error.code}]", "bold red"), (": ", "bold"), (plain(error.message), "bold")
    )
    return Group(head, _indented(_help(error.hint)), _indented(_more(error.code)))


def _headline(word: str, sentence: str, style: str) -> Text:
    return Text.assemble((f"{word}: ", style), (sentence, "bold"))


def _help(text: str) -> Text:
    return Text.assemble(("help: ", "bold cyan"), plain(text))


def _more(code: str) -> Text:
    return Text.assemble(("more: ", "bold cyan"), f"goodnet explain {code}")


def _indented(item: RenderableType) -> Padding:
    return Padding(item, (0, 0, 0, 2), expand=False)


def _table(*columns: str, left: int = 1) -> Table:
    """A table without lines; the first ``left`` columns hold words, the others figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, column in enumerate(columns):
        words = place < left
        table.add_column(
            column,
            justify="left" if words else "right",
            overflow="ellipsis" if words else "fold",
            no_wrap=True,
        )
    return table


def _evidence_table(report: ScanReport) -> Table:
    scored = any(label.score is not None for label in report.labels)
    third = third_channel(report)
    heads = ("score", "margin", "mask L1", third) if scored else ("mask L1", "MAD")
    table = _table("", "label", *heads, "attack success", left=2)
    # Where room is short the name gives way, never a figure.
    table.columns[1].max_width, table.columns[1].no_wrap = 20, False
    for evidence in leaders(report):
        style = STYLES.get(report.verdict, "bold") if evidence.flagged else ""
        figures = (
            (
                evidence.score,
                evidence.margin,
                evidence.mask_l1,
                evidence.patch_margin if third == "patch" else evidence.noise_margin,
            )
            if scored
            else (evidence.mask_l1, evidence.anomaly_index)
        )
        cells = [
            _role(evidence),
            plain(label_name(report, evidence.label), 40),
            *map(number, figures),
            interval(evidence.attack_success) if evidence.attack_success else DASH,
        ]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _role(evidence: LabelEvidence) -> str:
    return "target" if evidence.flagged else "control" if evidence.control else "next"


def _count_line(report: ScanReport) -> str:
    flagged = sum(label.flagged for label in report.labels)
    inverted = sum(label.mask_l1 is not None for label in report.labels)
    ranked = counted(len(report.labels), "label")
    line = f"{ranked} ranked, {inverted:,} inverted, {flagged:,} flagged"
    hidden = flagged - sum(label.flagged for label in leaders(report))
    return f"{line}; {hidden:,} of them not shown" if hidden else line


def _bullets(reasons: Sequence[str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for reason in reasons:
        table.add_row(Text("-", style="dim"), Text(plain(reason)))
    return table


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _where(ref: FileRef) -> str:
    return plain(ref.path) if ref.path else "in memory"


def _model(ref: ModelRef) -> str:
    shape = " x ".join(str(side) for side in ref.input_shape)
    kind = plain(ref.kind)
    labels = counted(ref.num_classes, "label")
    return f"{_where(ref)}\n{kind}, {labels}, {shape}, {_digest(ref)}"


def _data(ref: DataRef) -> str:
    images, classes = counted(ref.images, "image"), counted(ref.classes, "class")
    return f"{_where(ref)}\n{images} of {classes}, {_digest(ref)}"


def _digest(ref: FileRef) -> str:
    return f"sha256 {plain(ref.sha256)[:12]}" if ref.sha256 else "no sha256"


def _scan_facts(report: ScanReport) -> list[tuple[str, str]]:
    return [
        ("Model", _model(report.model)),
        ("Images", _data(report.data)),
        ("Preprocessing", plain(report.preprocess)),
        ("Clean accuracy", interval(report.clean_accuracy, with_n=True)),
        ("Method", plain(report.method)),
        ("Run", f"seed {report.seed}, {duration(report.seconds)}, goodnet {plain(report.version)}"),
    ]


def _certificate_table(report: RepairReport) -> Table:
    certificate = report.certificate
    table = _table("", "before", "after")
    table.columns[0].max_width = 32
    table.add_row(
        "clean accuracy",
        interval(certificate.clean_accuracy_before),
        interval(certificate.clean_accuracy_after),
    )
    for label, before in certificate.attack_success_before.items():
        after = certificate.attack_success_after.get(label)
        name = label_name(report.scan, label)
        table.add_row(Text(f"attack success, {name}"), interval(before), interval(after))
        known = (certificate.recovered_before.get(label), certificate.recovered_after.get(label))
        table.add_row(Text(f"stamped, known again, {name}"), *map(interval, known))
    return table


def _trials_table(report: RepairReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("remedy", no_wrap=True)
    table.add_column("")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("attack", justify="right", no_wrap=True)
    table.add_column("why")
    for trial in report.trials:
        worst = [proportion.value for proportion in trial.attack_success.values()]
        table.add_row(
            Text(plain(treatment(trial))),
            Text(outcome(trial), style="green" if trial.accepted else "dim"),
            share(trial.clean_accuracy.value) if trial.made else DASH,
            share(max(worst)) if worst and trial.made else DASH,
            Text(plain(trial.reason)),
        )
    return table


def _repair_facts(report: RepairReport) -> list[tuple[str, str]]:
    certificate = report.certificate
    word, sentence = certificate_sentence(certificate)
    labels = [label_name(report.scan, label) for label in report.targets]
    rows = [
        ("Certificate", plain(f"{word}: {sentence}")),
        ("Fresh scan", plain(fresh_sentence(certificate.fresh)) if certificate.fresh else DASH),
        ("Classes", plain(worst_classes_sentence(report))),
        ("Targets", listing(labels) or "none"),
        ("Model", _model(report.model)),
        ("Images", _data(report.data)),
        ("Split", f"{report.repair_images:,} to repair, {report.held_out_images:,} held out"),
        ("Preprocessing", plain(report.preprocess)),
        ("Run", f"seed {report.seed}, {duration(report.seconds)}, goodnet {plain(report.version)}"),
    ]
    if report.filter is not None:
        rows.insert(2, ("Filter", plain(filter_sentence(report.filter))))
    if report.also:
        along = [label_name(report.scan, label) for label in report.also]
        rows.insert(4, ("Treated along", f"{listing(along)}, which a scan suspected"))
    if report.output is not None:
        rows.insert(0, ("Output", f"{_where(report.output)}\n{_digest(report.output)}"))
    return rows
