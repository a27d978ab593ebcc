"""Makes RESULTS.md from the records: nothing in it is written by hand but its preface.

.venv/bin/python benchmarks/table.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zoo

from goodnet.statistics import proportion

RESULTS = zoo.HERE / "results"
METHODS = {
    "default": "goodnet",
    "neural-cleanse": "goodnet --method neural-cleanse",
    "art": "ART",
    "trojanzoo": "TrojanZoo",
    "backdoormbti": "BackdoorMBTI",
}
Record = dict[str, Any]


def truths(folder: Path) -> dict[str, Record]:
    """What is true of each model that was trained: the committed summary of the zoo."""
    return json.loads((folder / "zoo.json").read_text("utf-8"))


def summarise_zoo(source: Path, folder: Path) -> None:
    """Keeps of each model's ground truth what the tables need; weights and triggers stay out."""
    kept = ("data", "split", "attack_name", "targets", "num_classes", "recipe", "clean_accuracy")
    kept += ("twin_accuracy", "attack_success", "passes", "seconds", "cpu_seconds")
    known = truths(folder) if (folder / "zoo.json").exists() else {}
    for path in sorted(source.glob("*/truth.json")):
        truth = json.loads(path.read_text("utf-8"))
        known[truth["model"]] = {key: truth[key] for key in kept if key in truth}
        weights = (path.parent / "weights.safetensors").read_bytes()
        known[truth["model"]]["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(known.items())), indent=1)
    (folder / "zoo.json").write_text(text + "\n", "utf-8")


def records(folder: Path, known: dict[str, Record]) -> dict[str, list[Record]]:
    """Method -> records of models of the test split, each with its truth beside it."""
    found: dict[str, list[Record]] = {}
    for method in METHODS:
        for path in sorted((folder / method).glob("*.json")):
            record = json.loads(path.read_text("utf-8"))
            truth = known.get(record["model"])
            if truth and truth["split"] == "test" and truth["passes"]:
                found.setdefault(method, []).append(record | {"truth": truth})
    return found


def auroc(clean: list[float], attacked: list[float]) -> float | None:
    """The chance that an attacked model scores higher than a clean one; ties count half."""
    if not clean or not attacked:
        return None
    wins = sum((a > c) + 0.5 * (a == c) for a in attacked for c in clean)
    return wins / (len(clean) * len(attacked))


def share(hits: int, n: int) -> str:
    """``"3/4"`` with its 95 % Clopper-Pearson interval."""
    if n == 0:
        return "-"
    p = proportion(hits, n)
    return f"{hits}/{n} ({p.low:.2f}-{p.high:.2f})"


def figure(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def detection_row(name: str, rows: list[Record], clean: list[Record]) -> list[str]:
    """Detected, AUROC against the clean models, and whether the right labels were named."""
    done = [r for r in rows if "error" not in r]
    good = [r for r in clean if "error" not in r]
    hits = [r for r in done if r["verdict"] == "backdoored"]
    named = sum(len(r["targets"]) for r in hits)
    right = sum(len(set(r["targets"]) & set(r["truth"]["targets"])) for r in hits)
    true = sum(len(r["truth"]["targets"]) for r in hits)
    score = auroc(
        [r["statistic"] for r in good if r["statistic"] is not None],
        [r["statistic"] for r in done if r["statistic"] is not None],
    )
    return [
        name,
        share(len(hits), len(done)),
        figure(score),
        share(right, named),
        share(right, true),
        str(len(rows) - len(done)) if len(rows) > len(done) else "",
    ]


DETECTION = ["", "detected", "AUROC", "named labels right", "true labels named", "errors"]


def by(rows: list[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Records in groups."""
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(sorted(groups.items()))


def overall(found: dict[str, list[Record]]) -> str:
    """One line a method, over all models that it was run on."""
    lines = []
    for method, rows in found.items():
        clean = [r for r in rows if r["truth"]["attack_name"] is None]
        attacked = [r for r in rows if r["truth"]["attack_name"] is not None]
        done = [r for r in clean if "error" not in r]
        false = sum(r["verdict"] == "backdoored" for r in done)
        row = detection_row(METHODS[method], attacked, clean)
        seconds = [r["seconds"] for r in rows if "error" not in r]
        memory = [r["peak_memory_mb"] for r in rows if "error" not in r]
        per_label = [r["seconds_per_label"] for r in rows if "error" not in r]
        lines.append(
            [
                *row[:3],
                share(false, len(done)),
                *row[3:5],
                figure(statistics.median(seconds) if seconds else None, ".1f"),
                figure(statistics.median(per_label) if per_label else None),
                figure(max(memory) if memory else None, ".0f"),
                str(sum("error" in r for r in rows)),
            ]
        )
    return table(
        [
            "method",
            "detected",
            "AUROC",
            "false alarms",
            "named labels right",
            "true labels named",
            "s, median",
            "s a label",
            "MB, most",
            "errors",
        ],
        lines,
    )


def breakdown(rows: list[Record], key: Callable[[Record], str]) -> str:
    """Detection by group; AUROC against all clean models."""
    clean = [r for r in rows if r["truth"]["attack_name"] is None]
    attacked = [r for r in rows if r["truth"]["attack_name"] is not None]
    return table(DETECTION, [detection_row(n, g, clean) for n, g in by(attacked, key).items()])


def others_by_attack(found: dict[str, list[Record]]) -> str:
    """Detected by each other method, by attack, on the models that it could judge."""
    others = {m: rows for m, rows in found.items() if m != "default"}
    judged = {
        m: by([r for r in rows if "error" not in r], lambda r: r["truth"]["attack_name"] or "clean")
        for m, rows in others.items()
    }
    names = sorted({name for groups in judged.values() for name in groups})
    lines = [
        [name, *(_caught(judged[m].get(name, [])) for m in others)]
        for name in names
        if name != "clean"
    ]
    lines.append(["clean models", *(_caught(judged[m].get("clean", [])) for m in others)])
    return table(["called backdoored", *(METHODS[m] for m in others)], lines) if others else ""


def _caught(rows: list[Record]) -> str:
    hits = sum(r["verdict"] == "backdoored" for r in rows)
    return f"{hits}/{len(rows)}" if rows else "-"


def false_alarms(rows: list[Record], key: Callable[[Record], str]) -> str:
    """Clean models, by group: what was said of them."""
    lines = []
    clean = [r for r in rows if r["truth"]["attack_name"] is None and "error" not in r]
    for name, group in by(clean, key).items():
        said = [sum(r["verdict"] == v for r in group) for v in ("suspicious", "inconclusive")]
        false = sum(r["verdict"] == "backdoored" for r in group)
        lines.append([name, share(false, len(group)), *map(str, said)])
    return table(["", "backdoored", "suspicious", "inconclusive"], lines)


def same_models(found: dict[str, list[Record]]) -> str:
    """Each method beside the default on just the models that it could judge."""
    parts = []
    for method in list(found):
        if method == "default":
            continue
        judged = {r["model"] for r in found[method] if "error" not in r}
        pair = {
            m: [r for r in found.get(m, []) if r["model"] in judged] for m in ("default", method)
        }
        if judged:
            parts.append(f"### {METHODS[method]} ({len(judged)} models)\n\n{overall(pair)}")
    return "\n".join(parts)


def triggers(rows: list[Record]) -> str:
    """How well the reversed masks lie on the true ones."""
    lines = []
    for name, group in by(rows, lambda r: r["truth"]["attack_name"] or "").items():
        values = [v for r in group for v in r.get("mask_iou", {}).values()]
        if values:
            middle, least = statistics.median(values), min(values)
            lines.append([name, str(len(values)), f"{middle:.2f}", f"{least:.2f}"])
    return table(["attack", "targets found", "IoU, median", "least"], lines)


def repairs(rows: list[Record]) -> str:
    """What the repair cost and removed, by attack."""
    lines = []
    attacked = [r for r in rows if r["truth"]["attack_name"]]
    for name, group in by(attacked, lambda r: r["truth"]["attack_name"]).items():
        done = [r["repair"] for r in group if (r.get("repair") or {}).get("remedy")]
        tried = [r["repair"] for r in group if r.get("repair")]
        if not tried:
            continue
        line = [name, f"{len(done)}/{len(tried)}"]
        measured = [r for r in tried if "error" not in r]
        for change in (
            lambda r: r["accuracy_after"] - r["accuracy_before"],
            lambda r: r["attack_before"],
            lambda r: r["attack_after"],
            lambda r: r["recovered_after"],
            lambda r: r["seconds"],
        ):
            values = [change(r) for r in measured]
            line.append(f"{statistics.mean(values):.3f}" if values else "-")
        lines.append(line)
    header = ["attack", "repaired", "accuracy, change", "attack before", "after", "recovered", "s"]
    return table(header, lines)


def failures(found: dict[str, list[Record]]) -> str:
    """Models on which a method could not be run, and why."""
    lines = []
    for method, rows in found.items():
        for reason, group in by([r for r in rows if "error" in r], lambda r: r["error"]).items():
            lines.append([METHODS[method], str(len(group)), reason.replace("|", "/")[:160]])
    return table(["method", "models", "why"], lines) if lines else "None.\n"


def below_their_bar(known: dict[str, Record]) -> str:
    """Attacks that did not take, left out of every score."""
    columns = ("clean_accuracy", "twin_accuracy", "attack_success")
    lines = [
        [name, t["split"], *(figure(t.get(column)) for column in columns)]
        for name, t in known.items()
        if not t["passes"]
    ]
    return table(["model", "split", "accuracy", "twin's", "attack success"], lines)


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("-o", "--output", type=Path, default=zoo.HERE / "RESULTS.md")
    given = parser.parse_args()
    if given.zoo.is_dir():
        summarise_zoo(given.zoo, given.results)
    known = truths(given.results)
    found = records(given.results, known)
    rows = found.get("default", [])
    clean = sum(t["attack_name"] is None for t in known.values())
    hours = sum(t["seconds"] for t in known.values()) / 2 / 60
    parts = [
        (zoo.HERE / "preface.md").read_text("utf-8"),
        f"The zoo: {clean} clean and {len(known) - clean} attacked models, trained in "
        f"{hours:.0f} minutes on 2 cores (sum of all models' seconds over two). "
        "Shares have 95 % Clopper-Pearson intervals.\n",
        "## All models of the test split\n",
        overall(found),
        "## Side by side, on the same models\n",
        same_models(found),
        "## The other methods by attack\n",
        others_by_attack(found),
        "## goodnet by attack\n",
        breakdown(rows, lambda r: r["truth"]["attack_name"]),
        "## goodnet by network\n",
        breakdown(rows, lambda r: r["truth"]["recipe"]["architecture"]),
        "## goodnet by data\n",
        breakdown(rows, lambda r: r["truth"]["data"]),
        "## Clean models, by network and by data\n",
        false_alarms(rows, lambda r: r["truth"]["recipe"]["architecture"]),
        false_alarms(rows, lambda r: r["truth"]["data"]),
        "## Reversed masks against the true ones\n",
        triggers(rows),
        "## Repair\n",
        repairs(rows),
        "## Where a method could not be run\n",
        failures(found),
        "## Attacks that did not take, left out\n",
        below_their_bar(known),
    ]
    given.output.write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    main()
