"""Makes RESULTS.md and HISTORY.md from the records.

.venv/bin/python benchmarks/table.py

Written by hand are `preface.md`, `closing.md` and `compared.md`, in the one, and `earlier.md`, in
the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import zoo
from records import (
    ELSEWHERE,
    METHODS,
    RESULTS,
    Record,
    accused,
    attacked,
    by,
    clean,
    judged,
    labels_named,
    records,
    separation,
    share,
    summarise_zoo,
    truths,
)
from table_repair import HEADER, comparison, repair_records

KEYS: dict[str, Callable[[Record], str]] = {
    "attack": lambda r: r["truth"]["attack_name"] or "clean",
    "network": lambda r: r["truth"]["recipe"]["architecture"],
    "data": lambda r: r["truth"]["data"],
}
"""What the models are grouped by."""

HISTORY = """# Earlier runs

Made by `benchmarks/table.py`. The networks of these runs are retired: their results were known to
those who worked on the detector afterwards, so they say what it was, and how it came to be what it
is. What it is worth today is in [RESULTS.md](RESULTS.md), whose columns these tables have.

- The fourth to the sixth run's networks are in RESULTS.md, as other tools were run on them.
- The first run's AUROC is by the highest score of a label less its bar: there was no p-value yet.
- *The third run's recipes, trained on another processor*: before training kept to AVX2, weights
  hung on a processor's instructions. What was measured on such networks (records in `elsewhere`) is
  held against nothing else.
"""
"""What stands above the tables of retired models."""

ENOUGH = 20
"""With fewer models than this a method is broken down by attack alone."""


def figure(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def middle(values: list[float], form: str = ".1f") -> str:
    """The median, or a dash where there is none."""
    return figure(statistics.median(values) if values else None, form)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


OVERALL = ["method", "judged", "detected", "false alarms", "AUROC", "named labels right"]
OVERALL += ["true labels named", "s, median", "s, sum", "s a label", "MB, most"]


def overall(found: dict[str, list[Record]], expected: int) -> str:
    """One line a method, over all models that it judged."""
    lines = []
    for method, rows in found.items():
        done = judged(rows)
        right, named, true = labels_named(rows)
        seconds = [r["seconds"] for r in done]
        lines.append(
            [
                METHODS[method],
                f"{len(done)} of {expected}",
                share(len(accused(attacked(rows))), len(attacked(done))),
                share(len(accused(clean(rows))), len(clean(done))),
                figure(separation(rows)),
                f"{right}/{named}",
                f"{right}/{true}",
                middle(seconds),
                figure(sum(seconds), ".0f"),
                middle([r["seconds_per_label"] for r in done], ".2f"),
                figure(max((r["peak_memory_mb"] for r in done), default=None), ".0f"),
            ]
        )
    return table(OVERALL, lines)


def ours(found: dict[str, list[Record]]) -> str:
    """The method that the others stand beside: the default, or the latest earlier run."""
    runs = [method for method in METHODS if method == "default" or method.endswith("-run")]
    return next((run for run in runs if run in found), "default")


def same_models(found: dict[str, list[Record]]) -> str:
    """Each method beside goodnet's on just the models that both judged."""
    parts, own = [], ours(found)
    for method in found.keys() - {own}:
        both = {r["model"] for r in judged(found[method])}
        both &= {r["model"] for r in judged(found.get(own, []))}
        pair = {m: [r for r in found.get(m, []) if r["model"] in both] for m in (own, method)}
        if both:
            parts.append((METHODS[method], overall(pair, len(both))))
    return "\n".join(f"### {name}\n\n{text}" for name, text in sorted(parts)) or "None yet.\n"


def breakdown(rows: list[Record], group: str) -> str:
    """Attacked models by group; AUROC against the clean models of the same network or data."""
    key, lines = KEYS[group], []
    for name, part in by(attacked(rows), key).items():
        peers = clean(rows) if group == "attack" else [r for r in clean(rows) if key(r) == name]
        right, named, true = labels_named(part)
        lines.append(
            [
                name,
                share(len(accused(part)), len(judged(part))),
                figure(separation(part + peers)),
                f"{right}/{named}" if named else "-",
                f"{right}/{true}" if true else "-",
            ]
        )
    return table(
        [group, "detected", "AUROC", "named labels right", "true labels named"],
        lines,
    )


def false_alarms(rows: list[Record], group: str) -> str:
    """Clean models, by group: what was said of them."""
    lines = []
    for name, part in by(judged(clean(rows)), KEYS[group]).items():
        said = [sum(r["verdict"] == v for r in part) for v in ("suspicious", "inconclusive")]
        lines.append([name, share(len(accused(part)), len(part)), *map(str, said)])
    return table([group, "backdoored", "suspicious", "inconclusive"], lines)


def each_method(found: dict[str, list[Record]]) -> str:
    """The breakdowns of all methods, goodnet's first."""
    parts = []
    for method, rows in found.items():
        if not judged(rows):
            continue
        parts.append(f"### {METHODS[method]}\n")
        # A handful of models in groups of one or two would be noise with a frame around it.
        groups = list(KEYS) if len(judged(rows)) >= ENOUGH else ["attack"]
        parts += [breakdown(rows, group) for group in groups]
        parts.append("Clean models:\n")
        parts += [false_alarms(rows, group) for group in groups[1:] or ["data"]]
    return "\n".join(parts)


def triggers(rows: list[Record]) -> str:
    """How well the reversed masks lie on the true ones."""
    lines = []
    for name, part in by(attacked(rows), KEYS["attack"]).items():
        values = [v for r in part for v in r.get("mask_iou", {}).values()]
        if values:
            lines.append([name, str(len(values)), middle(values, ".2f"), f"{min(values):.2f}"])
    return table(["attack", "targets named rightly", "IoU, median", "least"], lines)


def with_todays_repair(rows: list[Record], folder: Path) -> list[Record]:
    """The records with the repairs of ``run.py --method repaired``, where those were measured."""
    files = {row["model"]: folder / "repaired" / f"{row['model']}.json" for row in rows}
    found = {m: json.loads(f.read_text("utf-8")) for m, f in files.items() if f.exists()}
    return [row | {"repair": found.get(row["model"], row).get("repair")} for row in rows]


def repairs(rows: list[Record]) -> str:
    """What the repair cost and removed, by attack; of falsely accused clean models, what it cost.

    *Gone* counts the models whose real attack succeeds on at most 5 % afterwards.
    """
    lines = []
    for name, part in by(rows, KEYS["attack"]).items():
        tried = [r["repair"] for r in part if r.get("repair")]
        done = [r for r in tried if "error" not in r]
        if not tried:
            continue
        issued = sum(bool(r["remedy"]) for r in done)
        real = [r for r in done if "attack_after" in r]
        gone = sum(r["attack_after"] <= 0.05 for r in real)
        line = [name, f"{issued}/{len(tried)}", f"{gone}/{len(real)}" if real else "-"]
        cost = [r["accuracy_after"] - r["accuracy_before"] for r in done]
        line.append(figure(statistics.mean(cost), "+.3f") if cost else "-")
        for key in ("attack_before", "attack_after", "recovered_after"):
            values = [r[key] for r in real]
            line.append(figure(statistics.mean(values), ".3f") if values else "-")
        lines.append([*line, middle([r["seconds"] for r in done])])
    header = ["attack", "repaired", "gone", "accuracy, change", "attack before", "after"]
    return table([*header, "recovered", "s, median"], lines)


def repairs_compared(rows: list[Record]) -> str:
    """Repairs side by side: where the scan named a label, and on all attacked models."""
    if not rows:
        return "Not measured yet.\n"
    parts = []
    for title, part in (
        ("Where the scan named a label:", [r for r in rows if r["targets"]]),
        ("All that were tried, also where the scan named none:", rows),
    ):
        parts += [title + "\n", table(HEADER, comparison(part))]
    return "\n".join(parts)


def failures(found: dict[str, list[Record]]) -> str:
    """Models on which a method could not be run, and why."""
    lines = []
    for method, rows in found.items():
        for reason, part in by([r for r in rows if "error" in r], lambda r: r["error"]).items():
            names = ", ".join(sorted({r["model"] for r in part})[:3])
            more = f" and {len(part) - 3} more" if len(part) > 3 else ""
            lines.append([METHODS[method], reason.replace("|", "/")[:200], names + more])
    return table(["method", "why", "models"], lines) if lines else "None.\n"


def below_their_bar(known: dict[str, Record]) -> str:
    """Attacks that did not take, left out of every score."""
    columns = ("clean_accuracy", "twin_accuracy", "attack_success")
    lines = [
        [name, t["split"], *(figure(t.get(column)) for column in columns)]
        for name, t in known.items()
        if not t["passes"] and t["split"] != "retired"
    ]
    return table(["model", "split", "accuracy", "twin's", "attack success"], lines)


def settings() -> str:
    """What the zoo's attacks were set to."""
    lines = []
    for name, options in zoo.description()["attack"].items():
        common = {k: v for k, v in options.items() if not isinstance(v, dict)}
        own = [f"{k}: {_words(v)}" for k, v in options.items() if isinstance(v, dict)]
        lines.append([name, "; ".join(filter(None, [_words(common), *own])) or "none"])
    return table(["attack", "options that differ from the attack's own defaults"], lines)


def _words(options: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


def the_zoo(known: dict[str, Record]) -> str:
    """How many models, how good, how long they took."""
    known = {name: t for name, t in known.items() if t["split"] != "retired"}
    whole = sum(len(setup.models()) for setup in zoo.setups() if setup.split != "retired")
    untouched = [t for t in known.values() if t["attack_name"] is None]
    minutes = sum(t["cpu_seconds"] for t in known.values()) / 2 / 60
    lines = [
        [name, str(len(part)), f"{min(part):.2f}-{max(part):.2f}"]
        for name, part in (
            (n, [t["clean_accuracy"] for t in untouched if t["data"] == n])
            for n in sorted({t["data"] for t in untouched})
        )
    ]
    return (
        f"The zoo: {len(known)} of its {whole} models are trained, {len(untouched)} of them clean; "
        f"{minutes:.0f} minutes on 2 cores (half of all models' processor time). Accuracy of the "
        "clean ones:\n\n" + table(["data", "models", "accuracy"], lines)
    )


def earlier(folder: Path, known: dict[str, Record], split: str) -> list[str]:
    """What was measured on models that are retired, beside the test split only."""
    found = records(folder, known, "retired") if split == "test" else {}
    if not found:
        return []
    retired = {name for name, t in known.items() if t["split"] == "retired" and t["passes"]}
    tenth, ninth, eighth, seventh, third = (
        {row["model"] for row in found.get(run, [])}
        for run in ("tenth-run", "ninth-run", "eighth-run", "seventh-run", "third-run")
    )
    runs = (
        ("The tenth run", tenth),
        ("The ninth run", ninth),
        ("The eighth run", eighth),
        ("The seventh run", seventh),
        ("The third run", third),
        ("The first two runs", retired - third - seventh - eighth - ninth - tenth),
    )
    parts = []
    for title, models in runs:
        mine = {m: [row for row in rows if row["model"] in models] for m, rows in found.items()}
        mine = {method: rows for method, rows in mine.items() if rows}
        parts += [f"## {title}\n", overall(mine, len(models))] * bool(mine)
    return parts


def beside_others(folder: Path, known: dict[str, Record]) -> list[str]:
    """What other tools, and the goodnet of then, made of the networks that those were run on."""
    found = records(folder, known, "compared")
    if not found:
        return []
    expected = sum(t["split"] == "compared" and t["passes"] for t in known.values())
    return [
        (zoo.HERE / "compared.md").read_text("utf-8"),
        overall(found, expected),
        "## Side by side, on the same models\n",
        same_models(found),
        "## Other tools by attack, network and data\n",
        each_method(found),
        "## Repairs of these networks side by side\n",
        repairs_compared(repair_records(folder, known, "compared")),
        "## Where another tool could not be run\n",
        failures(found),
    ]


def elsewhere(folder: Path) -> list[str]:
    """What was measured on the third run's recipes, trained to other weights."""
    known = truths(folder)
    found = records(folder, known, "retired")
    expected = sum(t["split"] == "retired" and t["passes"] for t in known.values())
    told = [overall(found, expected), same_models(found)]
    told += [failures(found)] * any("error" in row for rows in found.values() for row in rows)
    return ["## The third run's recipes, trained on another processor\n", *told] if found else []


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("-o", "--output", type=Path, default=zoo.HERE / "RESULTS.md")
    parser.add_argument("--split", choices=list(zoo.SPLITS), default="test")
    given = parser.parse_args()
    if given.zoo.is_dir():
        summarise_zoo(given.zoo, given.results)
    known = truths(given.results)
    found = records(given.results, known, given.split)
    rows = found.get(ours(found), [])
    expected = sum(t["split"] == given.split and t["passes"] for t in known.values())
    closing, published = zoo.HERE / "closing.md", given.output.resolve().parent == zoo.HERE
    if published and given.split != "test":
        raise SystemExit("what is published is of the test split: name another place with -o")
    parts = [
        (zoo.HERE / "preface.md").read_text("utf-8") if published else "# Results\n",
        the_zoo(known),
        f"## All models of the {given.split} split\n",
        overall(found, expected),
        *([closing.read_text("utf-8")] if published else []),
        "## By attack, network and data\n",
        each_method(found),
        "## Reversed masks against the true ones\n",
        triggers(rows),
        "## Repair by goodnet's default\n",
        repairs(with_todays_repair(rows, given.results)),
        "## Repairs side by side\n",
        repairs_compared(repair_records(given.results, known, given.split)),
        "## Where goodnet could not be run\n",
        failures(found),
        "## Attacks that did not take, left out\n",
        below_their_bar(known),
        "## Settings of the attacks\n",
        settings(),
        *(beside_others(given.results, known) if published else []),
    ]
    given.output.write_text("\n".join(parts), "utf-8")
    if published:
        past = [HISTORY, *earlier(given.results, known, given.split), *elsewhere(ELSEWHERE)]
        past.append((zoo.HERE / "earlier.md").read_text("utf-8"))
        (zoo.HERE / "HISTORY.md").write_text("\n".join(past), "utf-8")


if __name__ == "__main__":
    main()
