"""Makes the calibration tables that goodnet ships, from scans of clean calibration models.

    .venv/bin/python benchmarks/run.py --method evidence --split calibration
    .venv/bin/python benchmarks/run.py --method inner --split calibration
    .venv/bin/python benchmarks/calibrate.py

Only clean models get in, of the `calibration` split and of those that were in `test` before
(`compared`, `retired`); that a test model is among them is an error.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from records import ELSEWHERE, RESULTS, truths

import goodnet
from goodnet.inner import inner_index
from goodnet.joint import joint, kinds
from goodnet.reports import Family
from goodnet.scores import Floats, Raw, Scores, combine, corroborated, is_handful
from goodnet.tables import FILE, SURE, ReferenceModel, Tables, laws, usual_leads
from goodnet.together import Scored, standing_together

SHIPPED = zoo.HERE.parent / "src" / "goodnet" / FILE


def rescored(
    record: dict[str, Any], usual: Sequence[tuple[float, float]] = ()
) -> tuple[Scores, list[bool], Scored]:
    """A record's scores by today's formula, which labels are the reference, and what makes the
    scores anew with some labels set apart.

    Args:
        record: of ``--method evidence``.
        usual: what is usual of the leads of networks like this one.
    """
    rows = record["labels"]
    labels = [row["label"] for row in rows]
    leaning = {int(label): value for label, value in record.get("leaning", {}).items()}
    signatures = {int(label): row for label, row in record["signatures"].items()}
    driven = {int(label): value for label, value in record["driven"].items()}
    raw = Raw(
        margins={row["label"]: list(row["margins"].values()) for row in rows if row["margins"]},
        masks={row["label"]: row["mask_l1"] for row in rows if row["mask_l1"] is not None},
        warps={r["label"]: list(r["warps"].values()) for r in rows if r["warps"]},
        noise={r["label"]: r["noise_margin"] for r in rows if r["noise_margin"] is not None},
        patches={r["label"]: r["patch_margin"] for r in rows if r.get("patch_margin") is not None},
        tinted={int(label): value for label, value in record.get("tinted", {}).items()},
        leaning=leaning,
        inner=inner_index(leaning, signatures, driven),
        clean_margin=record["settings"]["clean_margin"],
        usual_leads=usual,
    )
    controls = [row["label"] for row in rows if row["control"]] or labels

    def scored(apart: Collection[int]) -> Scores:
        return combine(labels, raw, controls, apart=apart)

    return scored(()), [label in controls for label in labels], scored


def reference_model(
    record: dict[str, Any], accuracy: float, usual_leads: Sequence[tuple[float, float]] = ()
) -> ReferenceModel:
    """One line of the tables."""
    rated, usual, scored = rescored(record, usual_leads)
    ranked = any(row["control"] for row in record["labels"])
    # Records of before there were patches say nothing of the permutation, which is looked for by
    # them: what else they hold is as it was.
    complete = ranked or bool(np.isfinite(rated.patch).all())
    scores = rated.score.tolist() if complete or not is_handful(len(rated.labels)) else []
    return ReferenceModel(
        name=record["model"],
        num_classes=record["num_classes"],
        batch_norm=record["batch_norm"],
        family=record["settings"].get("family") or FAMILIES[record["model"].split("-")[1]],
        images=record["images"],
        accuracy=round(accuracy, 4),
        ranked=ranked,
        scores=sorted(round(s, 4) for s, one in zip(scores, usual, strict=False) if one),
        highest=_rounded(max(scores, default=None)),
        leads=_leads(rated) if scores and is_handful(len(rated.labels)) else (),
        together=_together(scored) if scores and not ranked else None,
        permutation=_rounded(record["settings"].get("permutation")) if complete else None,
        preferred=round(record["preferred"], 4),
        warped=_rounded(_largest(rated.warp_index)),
        tinted=_rounded(
            max(
                corroborated(record.get("tinted", {}), record.get("leaning", {})).values(),
                default=None,
            )
        ),
    )


def with_joint(
    models: Sequence[ReferenceModel], place: int, record: dict[str, Any]
) -> ReferenceModel:
    """One line with what speaks for one label together, by all the other models."""
    mine = models[place]
    if mine.highest is None or mine.ranked:
        return mine
    usual = usual_leads(models, mine.accuracy >= SURE, mine.family)
    others = [*models[:place], *models[place + 1 :]]
    known = laws(others, mine.num_classes, False, mine.accuracy >= SURE, mine.family)
    rows = record["labels"]
    preferred = {r["label"]: r["preferred"] for r in rows if r.get("preferred") is not None}
    tinted = corroborated(
        *({int(n): v for n, v in record.get(key, {}).items()} for key in ("tinted", "leaning"))
    )
    told = kinds(rescored(record, usual)[0], preferred, tinted, known, mine.num_classes)
    return mine.model_copy(update={"joint": _rounded(joint(told)[0])})


FAMILIES: dict[str, Family] = {"vit": "transformer"} | dict.fromkeys(
    ("cnn", "separable", "resnet", "deepid"), "other"
)
"""Of the zoo's architectures, for records that do not tell it."""


def measured_later(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What the model tells by itself, where its other evidence is older (``--method inner``). Of
    some dozen classes and more it plays no part in the score.
    """
    path = folder / "inner" / f"{record['model']}.json"
    if "driven" in record or not is_handful(record["num_classes"]):
        return {"signatures": {}, "driven": {}}
    later: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if later["weights_sha256"] != record["weights_sha256"]:
        raise SystemExit(f"{path} is of other weights")
    return {key: later[key] for key in ("signatures", "driven")}


def _leads(rated: Scores) -> tuple[float, ...]:
    return tuple(round(float(np.nanmax(row)), 4) for row in rated.leads)


def _together(scored: Scored) -> float | None:
    number = standing_together(scored)[0]
    return None if math.isnan(number) else round(number, 4)


def _largest(values: Floats) -> float | None:
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED)
    given = parser.parse_args()
    forbidden = {s.name for s in zoo.setups() if s.split == "test"}
    told = []
    for folder in (RESULTS, ELSEWHERE):
        known = truths(folder)
        for path in sorted((folder / "evidence").glob("*.clean.json")):
            record = json.loads(path.read_text("utf-8"))
            if record["model"].removesuffix(".clean") in forbidden:
                raise SystemExit(f"{record['model']} is of the test split")
            if "error" in record:
                raise SystemExit(f"{record['model']}: {record['error']}")
            record = measured_later(folder, record) | record
            told.append((record, known[record["model"]]["clean_accuracy"]))
    # A score knows how far ahead the leaders of other networks are: so that comes first.
    bare = [reference_model(record, accuracy) for record, accuracy in told]
    models = [
        reference_model(record, accuracy, usual_leads(bare, accuracy >= SURE, model.family))
        for (record, accuracy), model in zip(told, bare, strict=True)
    ]
    models = [with_joint(models, place, record) for place, (record, _) in enumerate(told)]
    made = Tables(version=goodnet.__version__, made=time.strftime("%Y-%m-%d"), models=models)
    given.output.write_text(made.model_dump_json(indent=1) + "\n", "utf-8")
    print(f"{len(models)} clean models in {given.output.name}")


if __name__ == "__main__":
    main()
