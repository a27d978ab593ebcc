"""What is true of the models, what the methods said of them, and figures of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zoo

from goodnet.statistics import proportion

RESULTS = zoo.HERE / "results"
ELSEWHERE = zoo.HERE / "elsewhere"
"""Records of networks of the third run's recipes whose weights are others: before all processors
trained the same ones, a processor without AVX-512 had its own."""
METHODS = {
    "default": "goodnet",
    "tenth-run": "goodnet, before 62 more reference models",
    "ninth-run": "goodnet, before several kinds of evidence for one label counted together",
    "eighth-run": "goodnet, before a label beside others needed more",
    "seventh-run": "goodnet, before targets that stand out together",
    "sixth-run": "goodnet, before targets that hide each other",
    "fifth-run": "goodnet, before transformers had a reference of their own",
    "fourth-run": "goodnet, before the network itself was asked",
    "third-run": "goodnet, third run, before colour filters",
    "second-run": "goodnet, second run, before patches",
    "first-run": "goodnet, first run, before calibration",
    "neural-cleanse": "goodnet --method neural-cleanse",
    "art": "ART",
    "trojanzoo": "TrojanZoo",
    "backdoormbti": "BackdoorMBTI",
}
Record = dict[str, Any]


def truths(folder: Path) -> dict[str, Record]:
    """What is true of each model that was trained: the committed summary of the zoo."""
    path = folder / "zoo.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def checksum(weights: Path) -> str:
    """SHA-256 of a model's weights, hex."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def summarise_zoo(source: Path, folder: Path) -> None:
    """Keeps of each model's ground truth what the tables need; weights and triggers stay out.

    What was trained elsewhere stays in the summary; what the zoo no longer names leaves it. Of what
    was tested before it stays as it was: the records are of those weights.
    """
    kept = ("data", "split", "attack_name", "targets", "num_classes", "recipe", "clean_accuracy")
    kept += ("twin_accuracy", "attack_success", "passes", "seconds", "cpu_seconds")
    known = truths(folder)
    splits = {model: setup.split for setup in zoo.setups() for model in setup.models()}
    for path in sorted(source.glob("*/truth.json")):
        truth = json.loads(path.read_text("utf-8"))
        if splits.get(truth["model"]) in ("retired", "compared") and truth["model"] in known:
            continue
        known[truth["model"]] = {key: truth[key] for key in kept if key in truth}
        known[truth["model"]]["weights_sha256"] = checksum(path.parent / "weights.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    known = {n: known[n] | {"split": splits[n]} for n in sorted(known) if n in splits}
    temporary = folder / "zoo.tmp"
    temporary.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    temporary.rename(folder / "zoo.json")


def records(folder: Path, known: dict[str, Record], split: str) -> dict[str, list[Record]]:
    """Method -> records of models of a split, each with its truth beside it.

    Raises:
        ValueError: a record is of other weights than its model has.
    """
    found: dict[str, list[Record]] = {}
    for method in METHODS:
        for path in sorted((folder / method).glob("*.json")):
            record = json.loads(path.read_text("utf-8"))
            truth = known.get(record["model"])
            if truth is None or truth["split"] != split or not truth["passes"]:
                continue
            if record.get("weights_sha256", truth["weights_sha256"]) != truth["weights_sha256"]:
                raise ValueError(f"{path} is of other weights than {record['model']} has now")
            found.setdefault(method, []).append(record | {"truth": truth})
    return found


def judged(rows: list[Record]) -> list[Record]:
    """Those on which the method came to an answer."""
    return [r for r in rows if "error" not in r]


def clean(rows: list[Record]) -> list[Record]:
    """Those of clean models."""
    return [r for r in rows if r["truth"]["attack_name"] is None]


def attacked(rows: list[Record]) -> list[Record]:
    """Those of attacked models."""
    return [r for r in rows if r["truth"]["attack_name"] is not None]


def accused(rows: list[Record]) -> list[Record]:
    """Those that the method calls backdoored."""
    return [r for r in judged(rows) if r["verdict"] == "backdoored"]


def by(rows: list[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Records in groups, the groups in the order of their names."""
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(sorted(groups.items()))


def auroc(clean: list[float], attacked: list[float]) -> float | None:
    """The chance that an attacked model scores higher than a clean one; ties count half."""
    if not clean or not attacked:
        return None
    wins = sum((a > c) + 0.5 * (a == c) for a in attacked for c in clean)
    return wins / (len(clean) * len(attacked))


def separation(rows: list[Record]) -> float | None:
    """AUROC of a method's own statistic over the models that it judged."""
    sides = [
        [r["statistic"] for r in judged(side) if r["statistic"] is not None]
        for side in (clean(rows), attacked(rows))
    ]
    return auroc(*sides)


def labels_named(rows: list[Record]) -> tuple[int, int, int]:
    """How many labels were named rightly, were named at all, and should have been named.

    Over all models that were judged: a label named on a clean model is one named wrongly, and a
    target of a model that was missed is one not named. All-to-all attacks, of which every label is
    a target, stay out: any answer would be right.
    """
    counted = [r for r in judged(rows) if r["truth"]["attack_name"] != "all-to-all"]
    right = sum(len(set(r["targets"]) & set(r["truth"]["targets"])) for r in counted)
    named = sum(len(r["targets"]) for r in counted)
    return right, named, sum(len(r["truth"]["targets"]) for r in counted)


def share(hits: int, n: int) -> str:
    """``"3/4 (0.19-0.99)"``, with the 95 % Clopper-Pearson interval."""
    if n == 0:
        return "-"
    p = proportion(hits, n)
    return f"{hits}/{n} ({p.low:.2f}-{p.high:.2f})"
