"""What every measurement of speed shares: a process of its own, a record that is never changed."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from run import commit, processor

sys.path.append(str(zoo.HERE / "peers"))

import bench

SPEED = zoo.HERE / "results" / "speed"
NET = zoo.HERE.parents[1] / "shared" / "models" / "csaw" / "sunglasses_bd_net.h5"
FACES = zoo.SHARED / "csaw" / "clean_validation.h5"
TARGET = 0
"""Of the backdoor in :data:`NET`."""

PACKAGES = ("torch", "numpy", "scipy", "h5py", "ray")


def need_net() -> None:
    """Ends the program where the real BadNet is missing."""
    for path in (NET, FACES):
        if not path.exists():
            raise SystemExit(f"{path} is not on this machine")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of Python, goodnet, and what it computes with."""
    from goodnet import __version__

    told = {"python": platform.python_version(), "goodnet": __version__}
    for name in PACKAGES:
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return told


def write(folder: Path, row: str, found: dict[str, Any], *, seed: int, smoke: bool) -> Path:
    """Adds a record; those that are there stay as they are.

    Args:
        folder: of the records.
        row: of the table.
        found: what was measured.
        seed: of everything random in it.
        smoke: whether it was a trial with tiny settings, which no table shows.
    """
    now = time.gmtime()
    record = {
        "row": row,
        **found,
        "smoke": smoke,
        "seed": seed,
        "machine": f"{processor()}, {cores()} of {os.cpu_count()} cores",
        "load_before": load_before(),
        "versions": versions(),
        "commit": commit(),
        "when": time.strftime("%Y-%m-%d %H:%M:%SZ", now),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row}-{time.strftime('%Y%m%dT%H%M%S', now)}.json"
    # "x": a record is never written over.
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    return path


_LOAD: list[float] = []


def note_load() -> None:
    """Keeps how busy the machine is before anything is measured: who reads should know."""
    _LOAD[:] = [round(os.getloadavg()[0], 2)] if hasattr(os, "getloadavg") else []


def load_before() -> float | None:
    """Processes that wanted a core in the minute before the measurement began."""
    return _LOAD[0] if _LOAD else None


def latest(folder: Path) -> dict[str, dict[str, Any]]:
    """The newest record of each row, but for those of trials.

    Peers need not be measured together, each beside a default scan: one that the newest record of
    them lacks is taken from the newest that has it, with its date.
    """
    found: dict[str, dict[str, Any]] = {}
    earlier: dict[str, Any] = {}
    kept = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    for record in sorted(kept, key=lambda one: one["when"]):
        if record["smoke"]:
            continue
        found[record["row"]] = record
        if record["row"] == "peers":
            dated = {
                name: {**peer, "when": record["when"]} for name, peer in record["peers"].items()
            }
            earlier |= dated
            record["peers"] = {**earlier, **record["peers"]}
    return found


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``work(*arguments)`` gives in a process of its own, with that process's peak memory.

    Args:
        work: a function of a module, which a new process can import.
        arguments: of it.

    Returns:
        Its result with ``peak_memory_mb``.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    found = work(*arguments)
    return found | {"peak_memory_mb": round(bench.peak_memory_mb(), 1)}


class Stages:
    """Takes the time of each stage of a scan by its progress."""

    def __init__(self) -> None:
        self.stage, self.since = "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """The progress callback."""
        if stage != self.stage:
            self.close()
            self.stage = stage

    def close(self) -> dict[str, float]:
        """Ends the last stage; seconds by stage."""
        now = time.perf_counter()
        if self.stage:
            before = self.seconds.get(self.stage, 0.0)
            self.seconds[self.stage] = round(before + now - self.since, 2)
        self.stage, self.since = "", now
        return self.seconds


def interval(sample: list[float], share: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of few values; of a single one, nothing is known.

    Args:
        sample: at least one value.
        share: of the interval.
    """
    from scipy import stats

    if len(sample) < 2:
        return 0.0, float("inf")
    values = np.asarray(sample)
    reach = stats.t.ppf((1 + share) / 2, len(values) - 1) * values.std(ddof=1)
    reach /= np.sqrt(len(values))
    return max(0.0, float(values.mean() - reach)), float(values.mean() + reach)
