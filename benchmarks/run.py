"""Runs one method over the zoo: one JSON a model, resumable, never overwritten.

    .venv/bin/python benchmarks/run.py --method default [--split test] [--small] [--only TEXT]

Each model is a process of its own, so that its peak memory can be told. Peers run in their own
environments (``benchmarks/peers/README.md``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo

RESULTS = zoo.HERE / "results"
METHODS = ("default", "neural-cleanse", "art", "trojanzoo")
PEERS = {"art": ".h5", "trojanzoo": ".pt"}
"""Peer -> the format that it reads."""
SCALES = ("unit", "byte", "signed")
"""The input scales that the peers' programs can be told."""
NC_SECONDS = 900
"""A scan as the paper does it, and a peer's, may take so long for one model."""


def goodnet_record(method: str, truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """Scans one model by its file, as a user would, and repairs what the default method finds."""
    import goodnet
    from goodnet import verdict

    shown = zoo.pictures(truth["data"], truth["recipe"]["seed"])
    classifier = goodnet.load(place / truth["file"], shown.defender)
    started = time.monotonic()
    report = goodnet.scan(classifier, shown.defender, method=method)
    seconds = time.monotonic() - started
    if method == "default":
        scores = [e.score for e in report.labels if e.score is not None]
        bar = verdict.threshold(truth["num_classes"], compared=len(scores))
        statistic = max(scores) - bar if scores else None
    else:
        small = [e for e in report.labels if e.mask_l1 is not None]
        middle = float(np.median([e.mask_l1 for e in small]))
        statistic = max(
            (abs(e.anomaly_index) for e in small if e.anomaly_index and e.mask_l1 < middle),
            default=0.0,
        )
    record = {
        "verdict": report.verdict,
        "statistic": statistic,
        "p_value": report.p_value,
        "targets": report.targets,
        "preprocess": report.preprocess,
        "seconds": seconds,
        "seconds_per_label": seconds / truth["num_classes"],
        "version": report.version,
        "mask_iou": overlaps(report, truth),
    }
    if method == "default":
        record["repair"] = repair_record(goodnet, classifier, report, shown, truth)
    return record


def overlaps(report: Any, truth: dict[str, Any]) -> dict[int, float]:
    """Intersection over union of each found target's mask and the region of the true trigger."""
    from goodnet.attacks.base import from_ground_truth

    region = from_ground_truth(truth["attack"]).region() if truth["attack"] else None
    if region is None:
        return {}
    found = {}
    for target, trigger in report._triggers.items():
        if target in truth["targets"]:
            mask = trigger.mask > 0.5 * trigger.mask.max()
            both = (mask & (region > 0)).sum()
            found[target] = float(both / (mask | (region > 0)).sum())
    return found


def repair_record(goodnet, classifier, report, shown, truth) -> dict[str, Any] | None:
    """What the repair costs and removes, on images that no step has seen; None without a target."""
    from goodnet.attacks.base import from_ground_truth
    from goodnet.attacks.poison import poisoned_test

    if not report.targets:
        return None
    started = time.monotonic()
    try:
        cured = goodnet.repair(classifier, shown.defender, report)
    except goodnet.GoodnetError as error:
        return {"error": str(error)}
    seconds = time.monotonic() - started

    def accuracy(model, images, labels) -> float:
        return float((model.logits(images.pixels).argmax(1) == labels).float().mean())

    judge = shown.judge
    result = {
        "remedy": cured.report.remedy,
        "holds": cured.report.certificate.holds,
        "seconds": seconds,
        "accuracy_before": accuracy(classifier, judge, judge.labels),
        "accuracy_after": accuracy(cured.classifier, judge, judge.labels),
    }
    if truth["attack"]:
        stamped = poisoned_test(judge, from_ground_truth(truth["attack"]))
        for when, model in (("before", classifier), ("after", cured.classifier)):
            result[f"attack_{when}"] = accuracy(model, stamped, stamped.labels)
            result[f"recovered_{when}"] = accuracy(model, stamped, stamped.true_labels)
    return result


def peer_record(peer: str, truth: dict[str, Any], place: Path) -> dict[str, Any]:
    """Runs a peer's own code in its own environment on the model in a format that it reads."""
    from train import load_network

    from goodnet.pipelines.attack import write_model

    setup = next(s for s in zoo.setups() if truth["model"] in s.models())
    shown = zoo.pictures(truth["data"], truth["recipe"]["seed"])
    network, scale = load_network(setup, place, shown), truth["recipe"]["preprocess"]
    with tempfile.TemporaryDirectory() as folder:
        model, data, output = (Path(folder) / n for n in ("m" + PEERS[peer], "d.npz", "o.json"))
        if peer == "art":
            if setup.suffix == ".pt2":
                return {"error": "ART's Neural Cleanse takes Keras models only; this is PyTorch"}
            write_model(network, shown.judge.shape, model)
        else:
            # Told no scale, the peer takes images in [0, 1]: the network's own step goes inside.
            torch.jit.trace(network, torch.zeros(1, *shown.judge.shape)).save(str(model))
            scale = "unit"
        pixels = shown.defender.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        np.savez(data, images=pixels, labels=shown.defender.labels.numpy())
        command = [
            str(zoo.HERE.parent / ".peers" / peer / "bin" / "python"),
            str(zoo.HERE / "peers" / peer / "run.py"),
            *("--model", str(model), "--data", str(data), "-o", str(output)),
            *("--scale", scale, "--seed", "0", "--threads", str(torch.get_num_threads())),
        ]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=NC_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {NC_SECONDS} s", "seconds": float(NC_SECONDS)}
        seconds = time.monotonic() - started
        if not output.exists():
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        report = json.loads(output.read_text("utf-8"))
    if "error" in report:
        return {"error": report["error"], "seconds": seconds}
    labels = report["labels"].values()
    indices = [e["anomaly_index"] for e in labels if e.get("anomaly_index") is not None]
    return {
        "verdict": report["verdict"],
        "statistic": max((abs(i) for i in indices), default=None),
        "targets": report["targets"],
        "seconds": report["seconds"],
        "seconds_per_label": report["seconds_per_label"],
        "peak_memory_mb": report["peak_memory_mb"],
        "version": report["version"],
        "settings": report.get("settings"),
    }


def one(method: str, model: str, folder: Path, output: Path) -> None:
    """Measures one model and writes its record."""
    place = folder / model
    truth = json.loads((place / "truth.json").read_text("utf-8"))
    try:
        make = goodnet_record if method not in PEERS else peer_record
        record = make(method, truth, place)
    except Exception as error:
        traceback.print_exc()
        record = {"error": f"{type(error).__name__}: {error}"}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record = {
        "model": model,
        "method": method,
        "peak_memory_mb": memory,
        **record,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": 0,
        "when": time.strftime("%Y-%m-%d"),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    temporary.rename(output)


def main() -> None:
    """Measures what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="default")
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--split", choices=["test", "calibration"], default="test")
    parser.add_argument("--small", action="store_true", help="the subset of make bench-small")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.method, given.one, given.zoo, given.output / given.method / f"{given.one}.json")
        return
    for setup in zoo.setups():
        if setup.split != given.split or (given.small and not setup.small):
            continue
        for model in setup.models():
            truth_path = given.zoo / model / "truth.json"
            record = given.output / given.method / f"{model}.json"
            if given.only not in model or record.exists() or not truth_path.exists():
                continue
            if not json.loads(truth_path.read_text("utf-8"))["passes"]:
                continue
            command = [sys.executable, __file__, "--method", given.method, "--one", model]
            command += ["--zoo", str(given.zoo), "-o", str(given.output)]
            subprocess.run(command, check=False)
            if record.exists():
                told = json.loads(record.read_text("utf-8"))
                told = told.get("error") or f"{told['verdict']} {told['targets'][:5]}"
                print(f"{given.method}  {model}: {told}", flush=True)


if __name__ == "__main__":
    main()
