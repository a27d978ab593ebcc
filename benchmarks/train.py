"""Trains the zoo: one directory a model, restartable, one process a core.

    .venv/bin/python benchmarks/train.py [--split test] [--small] [--clean] [--only TEXT]

A directory holds the model, its weights (``weights.safetensors``) and, written last,
``truth.json``; one that has its ``truth.json`` is not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import traceback
import zlib
from pathlib import Path

from same_weights import AVX2, COMPATIBLE

# Before PyTorch and NumPy, which read them once.
os.environ.update(AVX2)
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import safetensors.torch
import torch
import zoo
from trained import load_network

from goodnet.attacks.scene import Scene
from goodnet.attacks.table import make_attack
from goodnet.formats.files import atomic
from goodnet.pipelines.attack import badnet, ground_truth, measure, teach, write_model

INTEL = range(500, 600)
"""The seeds of networks whose records are of weights by an Intel processor."""


def train_setup(setup: zoo.Setup, folder: Path, clean: bool = False) -> list[str]:
    """Trains what is missing of one setup, or of its clean model; one line for each model."""
    torch.set_num_threads(1)
    lines = []
    for model in setup.models()[: 1 if clean else None]:
        place = folder / model
        if (place / "truth.json").exists():
            continue
        try:
            lines.append(f"{model}: {train_model(setup, model, folder)}")
        except Exception:
            lines.append(f"{model}: failed\n{traceback.format_exc()}")
        print(lines[-1], flush=True)
    return lines


def train_model(setup: zoo.Setup, model: str, folder: Path) -> str:
    """Trains one model and writes its directory."""
    started, cpu = time.monotonic(), time.process_time()
    shown = zoo.pictures(setup.data, setup.recipe.seed)
    twin_place, name = folder / f"{setup.name}.clean", model.rsplit(".", 1)[1]
    attack, twin, options = None, None, {}
    if name == "clean":
        network = teach(shown.training, shown.num_classes, setup.recipe)
    else:
        twin = load_network(setup, twin_place, shown)
        kind, options = zoo.attack_options(name, setup.data)
        scene = Scene(shown.training, shown.num_classes, setup.recipe.seed, lambda: twin)
        # Drawn from the name: every label can be a target, and the file need not list them.
        target = zlib.crc32(model.encode()) % shown.num_classes
        attack = make_attack(kind, scene, target=target, options=options)
        start = twin if attack.afterwards else None
        network = badnet(shown.training, attack, shown.num_classes, setup.recipe, start=start)
    clean, success = measure(network, shown.judge, attack)
    truth = ground_truth(attack, setup.recipe, shown.num_classes)
    truth |= {
        "model": model,
        "file": f"model{setup.suffix}",
        "data": setup.data,
        "split": setup.split,
        "attack_name": name if attack else None,
        "options": options if attack else {},
        "clean_accuracy": clean,
        "attack_success": success,
    }
    if attack:
        twin_truth = json.loads((twin_place / "truth.json").read_text("utf-8"))
        truth["twin_accuracy"] = twin_truth["clean_accuracy"]
        bar = 0.75 if name in zoo.WARP_LIKE else 0.9
        truth["passes"] = success > bar and clean >= twin_truth["clean_accuracy"] - 0.03
    else:
        # Far enough from guessing that its scan means something.
        truth["passes"] = clean > 0.3
    truth["seconds"] = time.monotonic() - started
    truth["cpu_seconds"] = time.process_time() - cpu
    place = folder / model
    place.mkdir(parents=True, exist_ok=True)
    write_model(network, shown.training.shape, place / f"model{setup.suffix}")
    with atomic(place / "weights.safetensors") as path:
        safetensors.torch.save_file(network.inner.state_dict(), path)
    with atomic(place / "truth.json") as path:
        path.write_text(json.dumps(truth, indent=1), "utf-8")
    passed = "" if truth["passes"] else "  below its bar"
    return f"accuracy {clean:.3f}, attack {success:.3f}, {truth['seconds']:.0f} s{passed}"


def refuse_changed(setup: zoo.Setup, folder: Path) -> None:
    """Ends the training where a model that is there was made by other settings than the zoo's."""
    for model in setup.models():
        path = folder / model / "truth.json"
        if not path.exists():
            continue
        truth, name = json.loads(path.read_text("utf-8")), model.rsplit(".", 1)[1]
        same = truth["recipe"] == dict(vars(setup.recipe)) and truth["split"] == setup.split
        if name != "clean":
            same &= truth.get("options", {}) == zoo.attack_options(name, setup.data)[1]
        if not same:
            raise SystemExit(f"{path.parent} was made by other settings; remove it to train anew")


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=zoo.ZOO)
    parser.add_argument("--split", choices=list(zoo.SPLITS))
    parser.add_argument("--small", action="store_true", help="the subset of make bench-small")
    parser.add_argument("--clean", action="store_true", help="only the clean models")
    parser.add_argument("--only", default="", help="setups whose name contains this")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    zoo.need_data()
    chosen = [
        setup
        for setup in zoo.setups()
        if given.only in setup.name
        and (setup.split == given.split if given.split else setup.split != "retired")
        and (setup.small or not given.small)
    ]
    for setup in chosen:
        refuse_changed(setup, given.output)
    intels = [setup for setup in chosen if setup.recipe.seed in INTEL]
    others = [setup for setup in chosen if setup not in intels]
    train_all(others, given.output, given.clean, given.workers)
    # It is read by the processes that are begun from here on.
    os.environ.update(COMPATIBLE)
    train_all(intels, given.output, given.clean, given.workers)


def train_all(chosen: list[zoo.Setup], folder: Path, clean: bool, workers: int) -> None:
    """Trains setups in processes of their own."""
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        waiting = [pool.apply_async(train_setup, (setup, folder, clean)) for setup in chosen]
        for result in waiting:
            result.get()


if __name__ == "__main__":
    main()
