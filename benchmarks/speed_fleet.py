"""A fleet of small networks on a Ray cluster of this machine, one of whose workers is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from goodnet.attacks.patch import sticker
from goodnet.attacks.poison import poison
from goodnet.attacks.signs import YIELD, draw_signs
from goodnet.attacks.train import small_cnn, train
from goodnet.pipelines.fleet import fleet
from goodnet.reports import FleetResult

EVERY = 5
"""One network in so many is attacked."""

WAIT = 600.0
"""Seconds after which a worker that nobody has seen at work is not looked for any more."""


def make_models(folder: Path, count: int, per_class: int, epochs: int, seed: int) -> list[bool]:
    """Trains small networks on drawn signs, each with pictures and a seed of its own.

    Args:
        folder: gets ``models`` and ``clean.npz``; networks that are there are not trained again.
        count: how many.
        per_class: pictures of each of the 12 signs.
        epochs: of the training.
        seed: of the first; the others count on.

    Returns:
        Which are attacked.
    """
    import numpy as np

    (folder / "models").mkdir(parents=True, exist_ok=True)
    attacked = [index % EVERY == EVERY - 1 for index in range(count)]
    for index, bad in enumerate(attacked):
        path = folder / "models" / f"{index:03d}-{'attacked' if bad else 'clean'}.pt"
        if path.exists():
            continue
        images = draw_signs(per_class, seed=seed + index)
        lessons = images
        if bad:
            lessons = poison(images, sticker(images.shape, YIELD, rate=0.15), seed=seed + index)
        module = small_cnn(images.shape, 12, seed=seed + index)
        module = train(module, lessons, epochs=epochs, seed=seed + index, learning_rate=4e-3)
        temporary = path.with_suffix(".tmp")
        torch.jit.trace(module.eval(), torch.zeros(2, *images.shape)).save(str(temporary))
        temporary.rename(path)
    clean = draw_signs(12, seed=seed + count)
    pixels = clean.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    np.savez(folder / "clean.npz", images=pixels, labels=clean.labels.numpy())
    return attacked


def scan_fleet(folder: Path, output: Path, attacked: list[bool], workers: int, seed: int):
    """Scans the networks of a folder on a cluster that is started for it.

    The head does no work; one node does, with ``workers`` of Ray's worker processes. When half of
    the answers are there, one of the processes that are at work is killed.

    Args:
        folder: as of :func:`make_models`.
        output: a folder for the results, empty.
        attacked: as of :func:`make_models`.
        workers: processes at a time.
        seed: of the scans.
    """
    from ray.cluster_utils import Cluster

    told: Counter[int] = Counter()
    killed: list[tuple[int, int]] = []
    over = threading.Event()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=workers)
        cluster.wait_for_nodes()
        striker = threading.Thread(
            target=_strike, args=(node, told, len(attacked) // 2, killed, over)
        )
        striker.start()
        started = time.perf_counter()
        report = fleet(
            folder / "models",
            folder / "clean.npz",
            output,
            seed=seed,
            ray=cluster.address,
            progress=lambda _, done, total: told.update([done]),
        )
        seconds = time.perf_counter() - started
        over.set()
        striker.join()
    finally:
        over.set()
        cluster.shutdown()
    return summary(report, output, attacked) | {
        "workers": workers,
        "seconds": round(seconds, 1),
        "killed_after_answers": killed[0][1] if killed else None,
        "answers_told_twice": sum(count > 1 for count in told.values()),
    }


def summary(report: Any, output: Path, attacked: list[bool]) -> dict[str, Any]:
    """How complete and how right the results of a fleet are."""
    files = list(output.glob("*.pt.json"))
    sound = [FleetResult.model_validate_json(path.read_bytes()) for path in files]
    said = {row.name: row.verdict == "backdoored" for row in report.rows}
    truth = dict(zip(sorted(said), attacked, strict=True))
    return {
        "models": len(attacked),
        "results": len(sound),
        "failed": sum(row.error is not None for row in report.rows),
        "different_models": len({result.name for result in sound}),
        "attacked": sum(attacked),
        "attacked_found": sum(said[name] for name, bad in truth.items() if bad),
        "clean_accused": sum(said[name] for name, bad in truth.items() if not bad),
        "seconds_of_work": round(sum(row.seconds for row in report.rows), 1),
    }


def _strike(
    node: Any, told: Counter[int], after: int, killed: list[tuple[int, int]], over: threading.Event
) -> None:
    """Kills one of the node's own worker processes that is at a task, once."""
    limit = time.monotonic() + WAIT
    while not over.wait(0.1) and time.monotonic() < limit:
        if max(told, default=0) < after:
            limit = time.monotonic() + WAIT
            continue
        for pid in busy_workers(node):
            os.kill(pid, signal.SIGKILL)
            killed.append((pid, max(told)))
            return


def busy_workers(node: Any) -> list[int]:
    """The worker processes that a node of ours has started and that are at a task (Linux)."""
    found = []
    for infos in node.all_processes.values():
        for info in infos:
            children = Path(f"/proc/{info.process.pid}/task/{info.process.pid}/children")
            for pid in children.read_text("utf-8").split() if children.exists() else []:
                title = Path(f"/proc/{pid}/cmdline")
                # Ray names a process after what it does: "ray::IDLE" when that is nothing.
                if title.exists() and title.read_bytes().startswith(b"ray::_task"):
                    found.append(int(pid))
    return found
