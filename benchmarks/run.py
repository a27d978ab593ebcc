"""Runs methods over the zoo: one JSON for each model and method, resumable, never overwritten.

    .venv/bin/python benchmarks/run.py --method default [--method art] [--small] [--only TEXT]

Every model is measured in a process of its own that has one core to itself, with goodnet as with
the peers; as many run side by side as there are cores. Peers run in their own environments
(``benchmarks/peers/README.md``). All methods but goodnet's default have a limit of seconds for a
model; the attacked twins of a clean model that was not done in time are not begun.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import zoo
from records import RESULTS, checksum, summarise_zoo, truths

METHODS = ("default", "neural-cleanse", "art", "trojanzoo", "backdoormbti", "evidence")
METHODS += ("inner", "repair", "repaired")
LIMIT = 600.0
"""Seconds that a scan may take on one core, of all methods but goodnet's default."""
LATE = ("would take", "not done after")
"""How the error of a scan begins that ran into the limit."""


def one(
    method: str, model: str, folder: Path, output: Path, limit: float, few_repairs: bool
) -> None:
    """Measures one model, in this process, and writes its record."""
    from measure_evidence import evidence_record
    from measure_goodnet import goodnet_record, repaired_record
    from measure_inner import inner_record
    from measure_peer import PEERS, peer_record
    from measure_repair import repair_comparison

    place = folder / model
    truth = json.loads((place / "truth.json").read_text("utf-8"))
    bound = None if method == "default" else limit
    try:
        if method == "evidence":
            record = evidence_record(truth, place)
        elif method == "inner":
            record = inner_record(truth, place)
        elif method == "repair":
            record = repair_comparison(truth, place)
        elif method == "repaired":
            record = repaired_record(truth, place)
        elif method in PEERS:
            record = peer_record(method, truth, place, bound)
        else:
            attacked = [setup for setup in zoo.setups() if setup.attacks]
            cured = not few_repairs or any(model == f"{s.name}.{s.attacks[0]}" for s in attacked)
            record = goodnet_record(method, truth, place, bound, cured)
    except Exception as error:
        traceback.print_exc()
        record = {"error": f"{type(error).__name__}: {error}"}
    write(output, model, method, record)


def write(output: Path, model: str, method: str, record: dict[str, Any]) -> None:
    """Writes a record, all or nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record = {
        "model": model,
        "method": method,
        **record,
        "weights_sha256": truths(output.parents[1])[model]["weights_sha256"],
        "commit": commit(),
        "machine": f"{processor()}, {cores} of {os.cpu_count()} cores",
        "seed": 0,
        "when": time.strftime("%Y-%m-%d"),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    temporary.rename(output)


def commit() -> str:
    """Which state of the code this is: ``"3157348"``, with a ``+`` where files were changed."""
    asked = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "src", "benchmarks/*.py"])
    git, told = shutil.which("git"), []
    if git is None:
        return ""
    for words in asked:
        done = subprocess.run(
            [git, "-C", str(zoo.HERE), *words], capture_output=True, text=True, check=False
        )
        told.append(done.stdout.strip() if done.returncode == 0 else "")
    return told[0] + ("+" if told[1] else "")


def processor() -> str:
    """What the processor calls itself, and its widest instructions, on which weights hang, too."""
    import torch

    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def jobs(given: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """What has no record yet, the models of a setup together, its clean one first."""
    found = []
    for method in given.method:
        for setup in zoo.setups():
            if setup.split != given.split or (given.small and not setup.small):
                continue
            models = [
                model
                for model in setup.models()
                if given.only in model
                and not record_of(given, method, model).exists()
                and _took(given.zoo / model / "truth.json")
                and (method not in ("repair", "repaired") or _scanned(given.zoo / model))
            ]
            if models:
                found.append((method, models))
    return found


def refuse_stale(given: argparse.Namespace) -> None:
    """Ends the run where a record is of other weights than the model has now.

    What was tested before may have been trained anew; nothing is added to its records, unless asked
    for.
    """
    before = {s.split for s in zoo.setups()} - {"test", "calibration", given.split}
    settled = {n for s in zoo.setups() if s.split in before for n in s.models()}
    for path in sorted(given.output.glob("*/*.json")):
        record = json.loads(path.read_text("utf-8"))
        if "method" not in record or record["model"] in settled:
            # The first ones are of speed, and of no model of the zoo.
            continue
        weights = given.zoo / record["model"] / "weights.safetensors"
        if weights.exists() and record.get("weights_sha256", "") not in ("", checksum(weights)):
            raise SystemExit(f"{path} is of other weights; give another folder with -o")


def _took(truth: Path) -> bool:
    """Whether a model is trained, and its attack took."""
    return truth.exists() and bool(json.loads(truth.read_text("utf-8"))["passes"])


def _scanned(place: Path) -> bool:
    """Whether an attacked model has been scanned, so that its repair can be measured."""
    return (place / "scan.json").exists() and not place.name.endswith(".clean")


def record_of(given: argparse.Namespace, method: str, model: str) -> Path:
    """Where a record lies, or will."""
    return given.output / method / f"{model}.json"


def measure(given: argparse.Namespace, method: str, models: list[str], core: int | None) -> None:
    """Measures the models of one setup, one after the other, on one core."""
    for model in models:
        record = record_of(given, method, model)
        clean = record_of(given, method, f"{model.rsplit('.', 1)[0]}.clean")
        twin = json.loads(clean.read_text("utf-8")) if clean.exists() else {}
        if twin.get("error", "").startswith(LATE):
            write(record, model, method, {"error": twin["error"] + " (by its clean twin)"})
        else:
            command = [sys.executable, __file__, "--method", method, "--one", model]
            command += ["--zoo", str(given.zoo), "-o", str(given.output)]
            command += ["--limit", str(given.limit)]
            command += ["--few-repairs"] if given.few_repairs else []
            stay = None if core is None else lambda: os.sched_setaffinity(0, {core})
            done = subprocess.run(command, check=False, preexec_fn=stay)
            if not record.exists():
                # Killed for want of memory, say: that is a result, and no reason to fall silent.
                reason = f"the process ended with {done.returncode} and no record"
                write(record, model, method, {"error": reason})
        if record.exists():
            told = json.loads(record.read_text("utf-8"))
            found = f"{told.get('verdict', 'measured')} {told.get('targets', [])[:5]}"
            told = told.get("error") or found
            print(f"{method}  {model}: {told}", flush=True)


def main() -> None:
    """Measures what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--split", choices=list(zoo.SPLITS), default="test")
    parser.add_argument("--small", action="store_true", help="the subset of make bench-small")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a scan may take")
    parser.add_argument(
        "--few-repairs", action="store_true", help="repair one attacked model of each setup alone"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    zoo.need_data()
    given.method = given.method or ["default"]
    if given.split == "compared" and "default" in given.method:
        raise SystemExit("the clean ones are references: scans by today's tables would flatter")
    if given.one:
        method = given.method[0]
        place = record_of(given, method, given.one)
        one(method, given.one, given.zoo, place, given.limit, given.few_repairs)
        return
    # What is true of the models is written down before the first of them is measured.
    summarise_zoo(given.zoo, given.output)
    waiting: queue.SimpleQueue[tuple[str, list[str]]] = queue.SimpleQueue()
    refuse_stale(given)
    for job in jobs(given):
        waiting.put(job)

    def lane(core: int | None) -> None:
        while True:
            try:
                method, models = waiting.get_nowait()
            except queue.Empty:
                return
            measure(given, method, models, core)

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    lanes = [threading.Thread(target=lane, args=(core,)) for core in cores]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()


if __name__ == "__main__":
    main()
