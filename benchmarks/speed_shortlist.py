"""Whether the ranking of many labels keeps the true targets: their places, round by round; and
whether a scan that measures every label in full would have named those that it does not keep.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import zoo
from speed_records import FACES, NET

import goodnet
from goodnet.evidence import CHANNELS, Case
from goodnet.images import Images
from goodnet.parallel import silent
from goodnet.pipelines.begin import begin
from goodnet.pipelines.ranking import LEADERS, ROUNDS, Ranking, rank
from goodnet.pipelines.scan import EVERY_LABEL

NETS = (NET, NET.with_name("anonymous_1_bd_net.h5"))
"""Both have the target 0."""


def candidates(folder: Path) -> list[dict[str, Any]]:
    """Attacked networks whose labels are ranked: the real ones, and the zoo's."""
    found: list[dict[str, Any]] = [
        {"model": path.stem, "file": path, "data": None, "targets": [0]} for path in NETS
    ]
    for path in sorted(folder.glob("*/truth.json")):
        truth = json.loads(path.read_text("utf-8"))
        some = truth["attack"] and truth["passes"] and truth["num_classes"] > EVERY_LABEL
        if some and len(truth["targets"]) < truth["num_classes"]:
            found.append(
                {
                    "model": truth["model"],
                    "file": path.parent / truth["file"],
                    "data": (truth["data"], truth["split"]),
                    "targets": truth["targets"],
                }
            )
    return found


def leaders_of_all(case: Case, ranking: Ranking, targets: list[int]) -> set[int]:
    """Those of ``targets`` that would be among the leaders if no round left anything out.

    No run over all labels is needed: whoever has as many labels before it as there are leaders has
    them there, too.
    """
    leaders = ranking.chosen[:LEADERS]
    bar = min(ranking.last[label] for label in leaders)
    others = [label for label in targets if label not in leaders]
    climbed = CHANNELS["universal_margin"](case, others, ROUNDS[-1][1]).values
    return {n for n in targets if n in leaders or (n in climbed and climbed[n][0] > bar)}


def exhaustive(file: Path, clean: Images, workers: int | None) -> dict[str, Any]:
    """What a scan says that measures every label in full."""
    report = goodnet.scan(goodnet.load(file, clean), clean, exhaustive=True, workers=workers)
    suspects = report.targets or [row.label for row in report.labels[:LEADERS]]
    return {
        "verdict": report.verdict,
        "targets": report.targets,
        "leading": suspects[:LEADERS],
        "seconds": report.seconds,
    }


def places(folder: Path, seeds: int, workers: int | None) -> dict[str, Any]:
    """Ranks all labels of each network, with other images and controls for each seed.

    Networks one of whose targets is not kept are scanned again, every label in full.

    Args:
        folder: of the zoo.
        seeds: 0 to ``seeds`` - 1.
        workers: threads.

    Returns:
        ``rows``: for each target its place (from 1) after the first round, whether it is among
        the leaders that are measured in full (``kept``), and whether it would be if the last round
        were of all labels (``leads``); ``kept`` of ``targets`` are, ``lost`` would be and are not.
        ``exhaustive``: model -> what that scan says; ``missed``: rows whose target it names and the
        ranking does not keep.
    """
    rows: list[dict[str, Any]] = []
    doubtful = []
    for net in candidates(folder):
        clean = goodnet.load_images(FACES) if net["data"] is None else zoo.defender(*net["data"])
        classifier = goodnet.load(net["file"], clean)
        for seed in range(seeds):
            begun = begin(classifier, clean, "default", None, seed, workers, silent, None, None)
            ranking = rank(begun.case, begun.wanted)
            leading = leaders_of_all(begun.case, ranking, net["targets"])
            order = sorted(ranking.margins, key=lambda label: -ranking.margins[label])
            rows += [
                {
                    "model": net["model"],
                    "seed": seed,
                    "target": target,
                    "first_round": order.index(target) + 1,
                    "kept": target in ranking.chosen[:LEADERS],
                    "leads": target in leading,
                }
                for target in net["targets"]
            ]
        here = [row["kept"] for row in rows if row["model"] == net["model"]]
        print(f"{net['model']}: {sum(here)} of {len(here)} targets kept", file=sys.stderr)
        if not all(here):
            doubtful.append((net["model"], net["file"], clean))
    in_full = {model: exhaustive(file, clean, workers) for model, file, clean in doubtful}
    named = {model: set(said["targets"]) for model, said in in_full.items()}
    return {
        "rows": rows,
        "leaders": LEADERS,
        "seeds": seeds,
        "targets": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "lost": sum(row["leads"] and not row["kept"] for row in rows),
        "exhaustive": in_full,
        "missed": sum(
            not row["kept"] and row["target"] in named.get(row["model"], ()) for row in rows
        ),
    }
