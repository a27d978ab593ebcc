"""What is measured of scans on one machine; each function runs in a process of its own."""

from __future__ import annotations

import copy
import math
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel import rates
from speed_records import FACES, NET, TARGET, Stages, interval
from torch import nn

import goodnet
from goodnet import inversion
from goodnet.classifier import Classifier
from goodnet.images import Images
from goodnet.pipelines.begin import split_images


def load_only() -> dict[str, Any]:
    """Reads the network and the pictures, and does nothing with them."""
    clean = goodnet.load_images(FACES)
    classifier = goodnet.load(NET, clean)
    return {"labels": classifier.num_classes}


def scan_file(
    model: str, data: str, workers: int | None, seed: int, budget: float | None
) -> dict[str, Any]:
    """A default scan by file, as a user makes it; seconds begin with reading the file."""
    started, stages = time.perf_counter(), Stages()
    clean = goodnet.load_images(data)
    classifier = goodnet.load(model, clean)
    read = time.perf_counter()
    report = goodnet.scan(
        classifier, clean, workers=workers, seed=seed, progress=stages, budget=budget
    )
    ended = time.perf_counter()
    return {
        "labels": classifier.num_classes,
        "verdict": report.verdict,
        "targets": report.targets,
        "p_value": report.p_value,
        "seconds": round(ended - started, 2),
        "seconds_reading": round(read - started, 2),
        "stages": stages.close(),
        "workers": workers,
    }


def default_scan(workers: int | None, seed: int, budget: float | None) -> dict[str, Any]:
    """A default scan of the real BadNet with 1,283 labels; without a budget but for trials."""
    found = scan_file(str(NET), str(FACES), workers, seed, budget)
    right = found["verdict"] == "backdoored" and found["targets"] == [TARGET]
    return found | {"right": right}


def published(sample: int, epochs: int, threads: int, seed: int) -> dict[str, Any]:
    """Neural Cleanse as published, one label at a time, on labels drawn at random.

    Each is searched alone, as the original does: up to ``epochs`` rounds of 31 mini-batches of 32
    images, Adam, the dynamic weight of the mask's size, early stops. The network's softmax is off
    and the loss takes logits, which is the same loss for less work: in the original's favour.

    Args:
        sample: labels that are searched.
        epochs: 1,000 in the original.
        threads: inside each operation; nothing else runs at the same time.
        seed: of the draw and of the search.
    """
    clean = goodnet.load_images(FACES)
    classifier = goodnet.load(NET, clean)
    right = classifier.logits(clean.pixels).argmax(1) == clean.labels
    split = split_images(clean, right, seed=seed, fit_all=True)
    schedule = replace(inversion.PAPER, epochs=epochs)
    drawn = np.random.default_rng(seed).permutation(classifier.num_classes)[:sample].tolist()
    torch.set_num_threads(threads)
    rows = []
    for label in drawn:
        started = time.perf_counter()
        (found,) = inversion.invert(
            classifier,
            split.fit,
            split.fit_labels,
            [label],
            schedule,
            seed=seed + label,
            stop=threading.Event(),
        )
        seconds = time.perf_counter() - started
        rows.append({"label": label, "seconds": round(seconds, 3), "steps": found.steps})
    each = [row["seconds"] for row in rows]
    low, high = interval(each)
    labels = classifier.num_classes
    return {
        "labels": labels,
        "sample": rows,
        "settings": dict(vars(schedule)),
        "threads": threads,
        "images": len(split.fit),
        "seconds_all": round(statistics.mean(each) * labels),
        "seconds_all_low": round(low * labels),
        "seconds_all_high": None if math.isinf(high) else round(high * labels),
    }


def kernel(seconds: float, chunks: list[int]) -> dict[str, Any]:
    """Images with gradient per second on one core, against a bare loop at its best batch size.

    Both in float32; where the processor has it, the search in bfloat16 as well, as scans make it.
    """
    from goodnet.device import CHUNK
    from goodnet.pipelines.placing import in_half, probes

    clean = goodnet.load_images(FACES)
    classifier = goodnet.load(NET, clean)
    found = rates(classifier, clean, chunks, seconds)
    bare = max(found, key=lambda row: row["bare"])
    # The chunk that goodnet's channels use is fixed; that of the bare loop may be any.
    ours = min(found, key=lambda row: abs(row["chunk"] - CHUNK))
    half = in_half(classifier, probes(clean))
    rough = rates(half, clean, [ours["chunk"]], seconds)[0]["ascend"] if half.half else None
    return {
        "ascend_half": None if rough is None else round(rough, 1),
        "chunks": found,
        "bare_best": round(bare["bare"], 1),
        "bare_chunk": bare["chunk"],
        "ascend": round(ours["ascend"], 1),
        "ascend_chunk": ours["chunk"],
        "ratio": round(ours["ascend"] / bare["bare"], 3),
    }


def card(device: str, seconds: float, seed: int) -> dict[str, Any]:
    """Default scans of the real BadNet on a graphics card and on the processor beside it."""
    import precision

    clean = goodnet.load_images(FACES)
    classifier = goodnet.load(NET, clean)
    took: dict[str, list[float]] = {}
    answers = []
    for name in (device, device, "cpu"):
        report = goodnet.scan(classifier, clean, seed=seed, device=name)
        took.setdefault(name, []).append(report.seconds)
        answers.append((report.verdict, report.targets))
    return {
        "card": torch.cuda.get_device_name(torch.device(device)),
        "labels": classifier.num_classes,
        "seconds": took[device],
        "seconds_processor": took["cpu"][0],
        "right": all(answer == ("backdoored", [TARGET]) for answer in answers),
        "rates": precision.table(classifier, clean, device, compiled=True, seconds=seconds),
    }


def workers(labels: int, repeats: int, seed: int) -> dict[str, Any]:
    """The same scan of some labels in full with one worker and with two, in turn."""
    clean = goodnet.load_images(FACES)
    classifier = goodnet.load(NET, clean)
    took: dict[int, list[float]] = {1: [], 2: []}
    answers = []
    for _ in range(repeats):
        for count, seconds in took.items():
            started = time.perf_counter()
            report = goodnet.scan(classifier, clean, labels=range(labels), workers=count, seed=seed)
            seconds.append(round(time.perf_counter() - started, 2))
            answers.append(report.model_dump(exclude={"seconds"}))
    ratios = [one / two for one, two in zip(took[1], took[2], strict=True)]
    return {
        "labels": labels,
        "seconds_1": took[1],
        "seconds_2": took[2],
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "same_answer": all(answer == answers[0] for answer in answers),
    }


SHORTER = 0.6
"""The length of a new row, as a share of a real one's: most images keep their own label."""


def widened(classifier: Classifier, clean: Images, labels: int, noise: float, seed: int):
    """The classifier with another number of labels, and the images that it has labels for.

    The trunk is the real one. Of fewer labels than there are, those with images come first; of
    more, the new rows of the last layer are real ones, drawn at random, plus noise.

    Args:
        classifier: of a Keras file whose last layer is linear.
        clean: its images.
        labels: K.
        noise: its standard deviation, as a share of that of the real rows' weights.
        seed: of the draw and the noise.
    """
    module = copy.deepcopy(classifier.module)
    name, last = list(module.layers.named_children())[-1]
    weight, bias = last.weight.detach(), last.bias.detach()
    shown = clean.labels.unique().tolist()
    # The target stays label 0, so that there is something to find.
    order = [TARGET, *(n for n in shown if n != TARGET)]
    order += [n for n in range(len(weight)) if n not in set(order)]
    kept = torch.tensor(order[:labels])
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randint(len(weight), (max(0, labels - len(weight)),), generator=generator)
    spread = noise * float(weight.std())
    fresh = weight[extra] + spread * torch.randn(len(extra), weight.shape[1], generator=generator)
    # Rows as long as the real ones or longer would win on everybody's images, so many are they.
    fresh = SHORTER * fresh / math.sqrt(1.0 + noise**2)
    head = nn.Linear(weight.shape[1], labels)
    with torch.no_grad():
        head.weight.copy_(torch.cat([weight[kept], fresh]))
        head.bias.copy_(torch.cat([bias[kept], bias[extra]]))
    module.layers[name] = head.requires_grad_(False)
    place = {int(old): new for new, old in enumerate(kept.tolist())}
    mine = torch.tensor([i for i, n in enumerate(clean.labels.tolist()) if n in place])
    some = clean.select(mine)
    moved = torch.tensor([place[n] for n in some.labels.tolist()])
    network = replace(classifier.network, module=module, num_classes=labels)
    wide = replace(classifier, network=network, num_classes=labels)
    return wide, Images(some.pixels, moved)


def growth(labels: int, noise: float, seed: int, budget: float | None) -> dict[str, Any]:
    """A default scan of the real trunk with so many labels."""
    clean = goodnet.load_images(FACES)
    wide, some = widened(goodnet.load(NET, clean), clean, labels, noise, seed)
    stages = Stages()
    started = time.perf_counter()
    report = goodnet.scan(wide, some, seed=seed, progress=stages, budget=budget)
    seconds = time.perf_counter() - started
    took = stages.close()
    ranking = sum(value for stage, value in took.items() if stage.startswith("ranking"))
    return {
        "labels": labels,
        "noise": noise,
        "images": len(some),
        "clean_accuracy": report.clean_accuracy.value,
        "verdict": report.verdict,
        "targets": report.targets,
        "seconds": round(seconds, 2),
        "seconds_ranking": round(ranking, 2),
        "stages": took,
    }


def signs(
    place: Path, data: str, file: str, split: str, seed: int, budget: float | None
) -> dict[str, Any]:
    """A default scan of a network of the zoo, by its file."""
    import zoo

    clean = zoo.defender(data, split)
    started, stages = time.perf_counter(), Stages()
    classifier = goodnet.load(place / file, clean)
    report = goodnet.scan(classifier, clean, seed=seed, progress=stages, budget=budget)
    return {
        "labels": classifier.num_classes,
        "images": len(clean),
        "verdict": report.verdict,
        "targets": report.targets,
        "seconds": round(time.perf_counter() - started, 2),
        "stages": stages.close(),
    }
