"""What a peer makes of one model of the zoo, by its own code in its own environment."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo
from trained import load_network

from goodnet.pipelines.attack import write_model

PEERS = {"art": ".h5", "trojanzoo": ".pt", "backdoormbti": ".pt"}
"""Peer -> the format that it gets."""

FEW_LABELS, TIMED = 5, 1
"""Of more labels than so many, this many are timed first."""

BENEFIT = 1.5
"""A scan is not begun that would take this much longer than it may, by the timed labels; goodnet's
own is given up by the same measure."""

START_UP = 60
"""Seconds that a peer may need on one core before its first label: imports, model, images."""


def peer_record(
    peer: str, truth: dict[str, Any], place: Path, limit: float | None
) -> dict[str, Any]:
    """Runs a peer on the model in a format that it reads; arguments as for goodnet's record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = handed_over(peer, truth, place, folder)
        if arguments is None:
            return {"error": "ART's Neural Cleanse takes Keras models only; this is PyTorch"}
        if limit is not None and truth["num_classes"] > FEW_LABELS:
            share = BENEFIT * limit * TIMED / truth["num_classes"]
            first = [*arguments, "--labels", str(TIMED)]
            probe = run_peer(peer, first, folder / "probe.json", START_UP + share)
            if probe.get("error", "").startswith("not done"):
                # Its other labels would tell nothing more: it is over its limit by these alone.
                reason = f"would take more than {BENEFIT * limit:.0f} s ({TIMED} label"
                reason += f" {probe['error']}); the limit is {limit:.0f} s"
                return {"error": reason, "seconds": probe["seconds"]}
            ahead = probe.get("seconds_all_labels_extrapolated", 0.0)
            if "error" in probe:
                return probe
            if ahead > BENEFIT * limit:
                reason = f"would take about {ahead:.0f} s; the limit is {limit:.0f} s"
                return {"error": reason, "seconds": probe["seconds"]}
        report = run_peer(peer, arguments, folder / "report.json", limit)
    if "error" in report:
        return report
    labels = report["labels"].values()
    indices = [e["anomaly_index"] for e in labels if e.get("anomaly_index") is not None]
    middle = float(np.median([e["l1"] for e in labels]))
    small = [
        e["anomaly_index"]
        for e in labels
        if e.get("anomaly_index") is not None and e["l1"] <= middle
    ]
    return {
        "verdict": report["verdict"],
        # A peer whose masks never moved has no index at all: that is no statistic of 0.
        "statistic": max(map(abs, small), default=0.0) if indices else None,
        "targets": report["targets"],
        "seconds": report["seconds"],
        "seconds_per_label": report["seconds_per_label"],
        "peak_memory_mb": report["peak_memory_mb"],
        "version": report["version"],
        "settings": report.get("settings"),
    }


def handed_over(
    peer: str, truth: dict[str, Any], place: Path, folder: Path, *, training: bool = False
) -> list[str] | None:
    """Writes a model of the zoo and its images as a peer reads them.

    Args:
        peer: its name.
        truth: the model's ``truth.json``.
        place: its directory.
        folder: where to write.
        training: hand over what the network was trained on (before it was poisoned) instead of the
            defender's images: TrojanZoo's own loader does.

    Returns:
        What the peer's program is told; None where the peer does not take this kind of model.
    """
    setup = next(s for s in zoo.setups() if truth["model"] in s.models())
    shown = zoo.pictures(truth["data"], truth["recipe"]["seed"], truth["split"])
    network, scale = load_network(setup, place, shown), truth["recipe"]["preprocess"]
    model, data = folder / f"m{PEERS[peer]}", folder / "d.npz"
    if peer == "art":
        if setup.suffix == ".pt2":
            return None
        write_model(network, shown.judge.shape, model)
    else:
        # Told no scale, the peer takes images in [0, 1]: the network's own step goes inside.
        torch.jit.trace(network, torch.zeros(1, *shown.judge.shape)).save(str(model))
        scale = "unit"
    images = shown.training if training else shown.defender
    pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    np.savez(data, images=pixels, labels=images.labels.numpy())
    return ["--model", str(model), "--data", str(data), "--scale", scale]


def program(peer: str) -> Path:
    """The Python of a peer's environment, which may not be there."""
    return zoo.HERE.parent / ".peers" / peer / "bin" / "python"


def run_peer(peer: str, arguments: list[str], output: Path, limit: float | None) -> dict[str, Any]:
    """One call of the peer's program, on as many threads as this process has."""
    command = [
        str(program(peer)),
        str(zoo.HERE / "peers" / peer / "run.py"),
        *arguments,
        *("--seed", "0", "--threads", str(torch.get_num_threads()), "-o", str(output)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except FileNotFoundError:
        hint = "benchmarks/peers/setup.sh makes it"
        raise SystemExit(f"{peer} has no environment; {hint}") from None
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s", "seconds": limit}
    if not output.exists():
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    report = json.loads(output.read_text("utf-8"))
    return {"error": report["error"]} if "error" in report else report
