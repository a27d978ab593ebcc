"""How fast goodnet is: one sub-command for each row of SPEED.md, and one that makes the file.

    .venv/bin/python benchmarks/speed.py scan        # or any other row; --help lists them
    .venv/bin/python benchmarks/speed.py table       # SPEED.md, from the records

Run each row by itself on a machine that does nothing else. A row adds a record under
``results/speed``; what is there is never changed. ``--smoke`` tries a row with tiny settings, into
records that no table shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_records
import speed_rows
import speed_table
import torch
import zoo
from measure_peer import PEERS, handed_over, program, run_peer
from speed_records import SPEED, apart, cores, need_net

SIGNS = "gtsrb-cnn-84.clean"
"""A network of 43 classes that all peers can load; of the calibration split, which all may see."""

SIZES = (100, 300, 1000, 3000, 10000)


def budget(given: argparse.Namespace) -> float | None:
    """Seconds that a scan may take: only a trial is cut short."""
    return 8.0 if given.smoke else None


def scan(given: argparse.Namespace) -> dict[str, Any]:
    """Default scan of the real BadNet with 1,283 labels."""
    need_net()
    return apart(speed_rows.default_scan, given.workers, given.seed, budget(given))


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory at 1,283 labels, with one worker and with all, and of reading the file alone."""
    need_net()
    idle = apart(speed_rows.load_only)
    found = {}
    for workers in sorted({1, given.workers}):
        run = apart(speed_rows.default_scan, workers, given.seed, budget(given))
        found[str(workers)] = {key: run[key] for key in ("peak_memory_mb", "right", "seconds")}
    return {
        "labels": idle["labels"],
        "peak_memory_mb_reading": idle["peak_memory_mb"],
        "by_workers": found,
        "peak_memory_mb": max(run["peak_memory_mb"] for run in found.values()),
    }


def neural_cleanse(given: argparse.Namespace) -> dict[str, Any]:
    """Neural Cleanse as published on a sample of the labels, and a default scan beside it."""
    need_net()
    sample, epochs = (2, 3) if given.smoke else (given.sample, 1000)
    ours = apart(speed_rows.default_scan, given.workers, given.seed, budget(given))
    found = apart(speed_rows.published, sample, epochs, given.workers, given.seed)
    high = found["seconds_all_high"]
    return found | {
        "default_seconds": ours["seconds"],
        "default_right": ours["right"],
        "ratio": round(found["seconds_all"] / ours["seconds"], 1),
        "ratio_low": round(found["seconds_all_low"] / ours["seconds"], 1),
        "ratio_high": None if high is None else round(high / ours["seconds"], 1),
    }


def _network(given: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Directory and truth of the network of 43 classes, trained where it is not there."""
    zoo.need_data()
    setup = next((s for s in zoo.setups() if given.model in s.models()), None)
    if setup is None:
        raise SystemExit(f"the zoo has no model {given.model}")
    place = given.zoo / given.model
    if not (place / "truth.json").exists():
        # A process of its own: training keeps to AVX2, and what is measured here must not.
        train = [sys.executable, str(zoo.HERE / "train.py"), "-o", str(given.zoo)]
        subprocess.run([*train, "--split", setup.split, "--only", setup.name], check=True)
    return place, json.loads((place / "truth.json").read_text("utf-8"))


def gtsrb(given: argparse.Namespace) -> dict[str, Any]:
    """Default scan of a network of 43 traffic signs."""
    place, truth = _network(given)
    found = apart(
        speed_rows.signs,
        place,
        truth["data"],
        truth["file"],
        truth["split"],
        given.seed,
        budget(given),
    )
    return {"model": given.model, "true_targets": truth["targets"], **found}


def peers(given: argparse.Namespace) -> dict[str, Any]:
    """Neural Cleanse of ART and of TrojanZoo, by their code, beside a default scan; one core."""
    place, truth = _network(given)
    labels = 2 if given.smoke else given.labels
    stay = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if stay is not None:
        # Processes that are started from here inherit it: all have the same one core.
        os.sched_setaffinity(0, stay[:1])
    torch.set_num_threads(1)
    try:
        ours = apart(
            speed_rows.signs,
            place,
            truth["data"],
            truth["file"],
            truth["split"],
            given.seed,
            budget(given),
        )
        found = {peer: _peer(peer, truth, place, labels, ours) for peer in given.peer}
        if "trojanzoo" in given.peer:
            # What it does by itself: its loader hands over the training set.
            found["trojanzoo, training set"] = _peer(
                "trojanzoo", truth, place, labels, ours, training=True
            )
    finally:
        if stay is not None:
            os.sched_setaffinity(0, stay)
    return {
        "model": given.model,
        "labels": ours["labels"],
        "default_seconds": ours["seconds"],
        "default_peak_memory_mb": ours["peak_memory_mb"],
        "peers": found,
    }


def _peer(
    peer: str,
    truth: dict[str, Any],
    place: Path,
    labels: int | None,
    ours: dict[str, Any],
    *,
    training: bool = False,
) -> dict[str, Any]:
    """What one peer needs, or why it was not measured."""
    if not program(peer).exists():
        return {"missing": f"no environment for {peer}: run benchmarks/peers/setup.sh"}
    with tempfile.TemporaryDirectory() as name:
        arguments = handed_over(peer, truth, place, Path(name), training=training)
        if arguments is None:
            return {"missing": f"{peer} does not take a {Path(truth['file']).suffix} model"}
        # The peer's own defaults hold, but for the number of labels.
        some = [] if labels is None else ["--labels", str(labels)]
        report = run_peer(peer, [*arguments, *some], Path(name) / "report.json", None)
    if "error" in report:
        return {"missing": report["error"]}
    seconds = report.get("seconds_all_labels_extrapolated", report["seconds"])
    return {
        "version": report["version"],
        "images": report["settings"]["images"],
        "labels_searched": report["labels_scanned"],
        "extrapolated": "seconds_all_labels_extrapolated" in report,
        "seconds": round(seconds, 1),
        "ratio": round(seconds / ours["seconds"], 1),
        "peak_memory_mb": report["peak_memory_mb"],
    }


def kernel(given: argparse.Namespace) -> dict[str, Any]:
    """Images with gradient per second against a bare PyTorch loop at its best batch size."""
    need_net()
    seconds, chunks = (0.2, [16, 48]) if given.smoke else (3.0, [8, 16, 32, 48, 64, 128, 256])
    return apart(speed_rows.kernel, seconds, chunks)


def card(given: argparse.Namespace) -> dict[str, Any]:
    """The same scan on a graphics card, from a cold start and again, and on the processor."""
    need_net()
    if not torch.cuda.is_available():
        raise SystemExit("there is no graphics card here")
    return apart(speed_rows.card, "cuda", 0.2 if given.smoke else 2.0, given.seed)


def workers(given: argparse.Namespace) -> dict[str, Any]:
    """Two workers against one on the same scan."""
    need_net()
    labels, repeats = (1, 1) if given.smoke else (48, 3)
    if cores() < 2:
        raise SystemExit("two workers need two cores")
    return apart(speed_rows.workers, labels, repeats, given.seed)


def growth(given: argparse.Namespace) -> dict[str, Any]:
    """From 100 to 10,000 labels on the real trunk: the time of the ranking, and in all."""
    need_net()
    sizes = (100, 1400) if given.smoke else SIZES
    rows = [
        apart(speed_rows.growth, size, given.noise, given.seed, budget(given)) for size in sizes
    ]
    first, last = rows[0], rows[-1]
    return {
        "sizes": rows,
        "times_labels": round(last["labels"] / first["labels"], 1),
        "times_seconds": round(last["seconds"] / first["seconds"], 2),
        "times_ranking": round(last["seconds_ranking"] / max(first["seconds_ranking"], 0.01), 2),
    }


def shortlist(given: argparse.Namespace) -> dict[str, Any]:
    """Whether the ranking of many labels keeps the true targets."""
    import speed_shortlist

    need_net()
    seeds = 1 if given.smoke else given.seeds
    return apart(speed_shortlist.places, given.zoo, seeds, given.workers)


def fleet(given: argparse.Namespace) -> dict[str, Any]:
    """50 small networks through Ray on this machine, a worker killed midway."""
    import speed_fleet

    count, per_class, epochs = (2, 40, 2) if given.smoke else (given.count, 80, 8)
    folder = given.zoo / f"speed-fleet-{count}-{per_class}-{epochs}-{given.seed}"
    attacked = speed_fleet.make_models(folder, count, per_class, epochs, given.seed)
    with tempfile.TemporaryDirectory() as output:
        found = speed_fleet.scan_fleet(
            folder, Path(output) / "out", attacked, given.workers, given.seed
        )
    return found | {"training": {"per_class": per_class, "epochs": epochs}}


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "scan": scan,
    "neural-cleanse": neural_cleanse,
    "peers": peers,
    "kernel": kernel,
    "memory": memory,
    "card": card,
    "workers": workers,
    "growth": growth,
    "gtsrb": gtsrb,
    "shortlist": shortlist,
    "fleet": fleet,
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="row", required=True)
    for name, row in ROWS.items():
        one = commands.add_parser(name, help=(row.__doc__ or "").splitlines()[0])
        one.add_argument("-o", "--output", type=Path, default=SPEED, help="folder of the records")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--workers", type=int, default=cores())
        one.add_argument("--zoo", type=Path, default=zoo.ZOO)
        one.add_argument("--smoke", action="store_true", help="tiny settings, for a trial")
        if name == "neural-cleanse":
            one.add_argument("--sample", type=int, default=12, help="labels that are searched")
        if name in ("gtsrb", "peers"):
            one.add_argument("--model", default=SIGNS, help="of the zoo")
        if name == "peers":
            one.add_argument("--peer", choices=PEERS, action="append")
            one.add_argument("--labels", type=int, help="search so many only, and extrapolate")
        if name == "shortlist":
            one.add_argument("--seeds", type=int, default=5, help="for each network")
        if name == "growth":
            one.add_argument("--noise", type=float, default=1.0, help="times the rows' spread")
        if name == "fleet":
            one.add_argument("--count", type=int, default=50, help="networks")
    table = commands.add_parser("table", help="make SPEED.md from the records")
    table.add_argument("--records", type=Path, default=SPEED)
    table.add_argument("-o", "--output", type=Path, default=zoo.HERE / "SPEED.md")
    return parser


def main() -> None:
    """Measures a row, or makes the table."""
    given = options().parse_args()
    if given.row == "table":
        text = speed_table.page(speed_records.latest(given.records))
        given.output.write_text(text, "utf-8")
        return
    if given.row == "peers":
        given.peer = given.peer or ["art", "trojanzoo"]
    speed_records.note_load()
    started = time.perf_counter()
    found = ROWS[given.row](given)
    found["seconds_measuring"] = round(time.perf_counter() - started, 1)
    path = speed_records.write(given.output, given.row, found, seed=given.seed, smoke=given.smoke)
    print(path.read_text("utf-8"), end="")
    print(path)


if __name__ == "__main__":
    main()
