"""The table of repairs side by side, from the records of ``run.py --method repair``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from records import Record

ROWS = {
    "goodnet": "goodnet",
    "unlearning": "unlearning (Neural Cleanse)",
    "fine-pruning": "fine-pruning",
    "fine-tuning": "fine-tuning",
}
HEADER = ["clean data", "repair", "models", "accuracy, change", "worst", "attack after", "worst"]
HEADER += ["recovered", "DER", "s, median"]


def repair_records(folder: Path, known: dict[str, Record], split: str) -> list[Record]:
    """The records of a split, each with its truth beside it."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("repair/*.json"))]
    return [
        record | {"truth": known[record["model"]]}
        for record in found
        if record["model"] in known
        and known[record["model"]]["split"] == split
        and "error" not in record
    ]


def effectiveness(row: Record) -> float:
    """Defence effectiveness, in [0, 1]: (max(0, fall of attack success) - max(0, fall of clean
    accuracy) + 1) / 2, as BackdoorBench uses it (Zhu et al. 2023).
    """
    attack = max(0.0, row["attack_before"] - row["attack_after"])
    accuracy = max(0.0, row["accuracy_before"] - row["accuracy_after"])
    return (attack - accuracy + 1) / 2


def comparison(records: list[Record]) -> list[list[str]]:
    """One line for each amount of clean data and each repair."""
    lines = []
    for share in sorted({share for record in records for share in record["shares"]}, reverse=True):
        for name, title in ROWS.items():
            rows = [record["shares"][share]["repairs"][name] for record in records]
            rows = [row for row in rows if "error" not in row]
            if not rows:
                continue
            cost = [row["accuracy_after"] - row["accuracy_before"] for row in rows]
            left = [row["attack_after"] for row in rows]
            mean = statistics.mean
            lines.append(
                [
                    f"{float(share):.0%}",
                    title,
                    str(len(rows)),
                    f"{mean(cost):+.3f}",
                    f"{min(cost):+.3f}",
                    f"{mean(left):.3f}",
                    f"{max(left):.3f}",
                    f"{mean(row['recovered_after'] for row in rows):.3f}",
                    f"{mean(map(effectiveness, rows)):.3f}",
                    f"{statistics.median(row['seconds'] for row in rows):.1f}",
                ]
            )
    return lines
