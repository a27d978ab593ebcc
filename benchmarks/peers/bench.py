"""What the peers' programs share: options, clean images, the report. Needs nothing but NumPy.

Every peer runs in an environment of its own, so this file and the programs beside it never import
goodnet; they meet it through plain files only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SCALES = {"unit": (1.0, 0.0), "byte": (255.0, 0.0), "signed": (2.0, -1.0)}
"""Name -> (factor, offset) that take pixels in [0, 1] to what a model was trained on."""

CAP = 1e6
"""Stands for an infinite anomaly index (a MAD of 0), which JSON cannot hold."""

THRESHOLD = 2.0
"""Beyond it Neural Cleanse calls a label whose mask is smaller than the median an outlier."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all peers' programs have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", required=True, type=Path)
    options.add_argument(
        "--data", required=True, type=Path, help=".npz: images uint8 (N,H,W,C), labels int64 (N,)"
    )
    options.add_argument("-o", "--output", required=True, type=Path, help="the report, JSON")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--scale", choices=SCALES, default="unit", help="of the model's input")
    options.add_argument("--images", type=int, help="use the first N images only")
    options.add_argument("--labels", type=int, help="scan N labels only, drawn with the seed")
    options.add_argument("--include", default="", help="labels that --labels must hold, as 3,17")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--verbose", action="store_true", help="the peer's own output, on stderr")
    return options


def execute(
    peer: str,
    arguments: argparse.Namespace,
    scan: Callable[[argparse.Namespace], dict[str, Any]],
) -> int:
    """Runs a scan, writes its report or its error, and gives the exit code.

    Args:
        peer: its name in the report.
        arguments: as of :func:`parser`.
        scan: gives ``version``, ``num_classes``, ``labels``, ``seconds``, ``clean_accuracy`` and
            ``settings``; may print what it likes.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    random.seed(arguments.seed)
    np.random.seed(arguments.seed)
    started = time.perf_counter()
    # Native code prints too, so the descriptor itself is turned away, not only sys.stdout.
    with Path(os.devnull).open("w") as nowhere:
        if not arguments.verbose:
            os.dup2(nowhere.fileno(), 1)
        else:
            os.dup2(2, 1)
        try:
            report = _report(scan(arguments))
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            report = {"error": f"{type(error).__name__}: {error}"}
    report = {
        "peer": peer,
        "model": arguments.model.name,
        "seed": arguments.seed,
        **report,
        "wall_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    _write(report, arguments.output)
    if "error" in report:
        print(report["error"], file=sys.stderr)
        return 1
    print(f"{report['verdict']}, targets {report['targets']}", file=sys.stderr)
    return 0


def peak_memory_mb() -> float:
    """The most memory that this program has held at once.

    Linux hands ``ru_maxrss`` on to what a process starts: a small program started by a large one
    would seem large. The kernel's own high-water mark begins anew with each program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clean_images(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Float32 images ``(N, H, W, C)`` in [0, 1] and int64 labels ``(N,)``."""
    with np.load(arguments.data, allow_pickle=False) as data:
        images, labels = data["images"][: arguments.images], data["labels"][: arguments.images]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C)")
    return images.astype(np.float32) / 255.0, labels.astype(np.int64)


def chosen_labels(arguments: argparse.Namespace, num_classes: int) -> list[int]:
    """All labels, or the included ones and as many drawn ones as ``--labels`` asks for."""
    if arguments.labels is None or arguments.labels >= num_classes:
        return list(range(num_classes))
    kept = sorted({int(part) for part in arguments.include.split(",") if part})
    if kept and not 0 <= kept[0] <= kept[-1] < num_classes:
        raise ValueError(f"--include {arguments.include}: labels are 0 to {num_classes - 1}")
    others = [label for label in range(num_classes) if label not in kept]
    drawn = np.random.default_rng(arguments.seed).permutation(others)
    return sorted(kept + [int(label) for label in drawn[: max(0, arguments.labels - len(kept))]])


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Fills in ``seconds`` and ``cpu_seconds``, which a busy machine does not stretch."""
    times: dict[str, float] = {}
    wall, processor = time.perf_counter(), time.process_time()
    yield times
    times["seconds"] = time.perf_counter() - wall
    times["cpu_seconds"] = time.process_time() - processor


def gives_logits(outputs: np.ndarray) -> bool:
    """Whether some row of outputs ``(N, K)`` is not a distribution."""
    return bool((outputs < 0).any() or (abs(outputs.sum(1) - 1) > 1e-3).any())


def _report(found: dict[str, Any]) -> dict[str, Any]:
    """Adds the verdict and the seconds per label to what a scan found."""
    labels, scanned = found["labels"], len(found["labels"])
    targets = [int(label) for label, row in labels.items() if row["flagged"]]
    per_label, processor = (
        sum(row[name] for row in labels.values()) / scanned for name in ("seconds", "cpu_seconds")
    )
    report = {
        "version": found["version"],
        "verdict": "backdoored" if targets else "clean",
        "targets": targets,
        "labels": labels,
        "num_classes": found["num_classes"],
        "labels_scanned": scanned,
        "clean_accuracy": found["clean_accuracy"],
        "seconds": found["seconds"],
        "seconds_per_label": per_label,
        "cpu_seconds_per_label": processor,
        "settings": found["settings"],
    }
    if scanned < found["num_classes"]:
        report["seconds_all_labels_extrapolated"] = per_label * found["num_classes"]
    return report


def _write(report: dict[str, Any], path: Path) -> None:
    """Writes JSON beside ``path`` and renames it; NaN becomes null, infinity CAP."""
    text = json.dumps(_plain(report), indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".json", delete=False
    ) as temporary:
        temporary.write(text + "\n")
    Path(temporary.name).replace(path)


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return None if math.isnan(value) else round(max(-CAP, min(CAP, value)), 6)
    return value
