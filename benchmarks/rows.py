"""What the last layer's rows say of a target, without a single gradient: a trial, not yet evidence.

    .venv/bin/python benchmarks/rows.py [--split retired] [--only TEXT]
    .venv/bin/python benchmarks/rows.py --model BADNET --data CLEAN --target 0

With W the weights of the last layer, less the mean of all rows, and F the features of the
defender's clean images that enter it, of each label k::

    mean     mean_d W_kd                                  (Fields et al. 2021, Trojan signatures)
    dormant  mean_d max(0, W_kd) / (.1 + a_d / median a)   with a_d = mean |F_d|
    unused   mean_d max(0, W_kd) (1 - u_kd / max F_d)      with u_k the mean F of k's own images

What a trigger switches on is little used by clean images, and drives the target alone. A line for
each model: each number's largest label with its z against the others, and the targets' ranks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import zoo
from numpy.typing import NDArray

import goodnet
from goodnet.classifier import Classifier
from goodnet.head import find_head
from goodnet.images import Images
from goodnet.statistics import MAD_TO_SIGMA

Floats = NDArray[np.float64]


def row_numbers(classifier: Classifier, images: Images) -> dict[str, Floats]:
    """The numbers of every label, ``(K,)`` each.

    Args:
        classifier: with a last linear layer.
        images: clean ones, with labels.
    """
    pixels, labels = images.floats(), images.labels.numpy()
    head = find_head(classifier, pixels[:8])
    weight = head.weight.detach().double().numpy()
    weight = weight.T if head.transposed else weight
    features = head.features(pixels).double().numpy()
    beyond = weight - weight.mean(0)
    drives = np.maximum(beyond, 0.0)
    activity = np.abs(features).mean(0)
    nothing = np.zeros(features.shape[1])
    used = np.array(
        [
            features[labels == label].mean(0) if (labels == label).any() else nothing
            for label in range(len(weight))
        ]
    )
    most = features.max(0) + 1e-9
    return {
        "mean": beyond.mean(1),
        "dormant": (drives / (0.1 + activity / (np.median(activity) + 1e-9))).mean(1),
        "unused": (drives * (1.0 - used / most)).mean(1),
    }


def z_of(values: Floats) -> Floats:
    """Of each value its distance from the median of the others, ``(K,)``, in their spread: the MAD,
    which ten values hardly tell, with a part of the standard deviation as a floor.
    """
    found = np.zeros(len(values))
    for place, value in enumerate(values):
        others = np.delete(values, place)
        middle = np.median(others)
        spread = MAD_TO_SIGMA * np.median(np.abs(others - middle))
        found[place] = (value - middle) / np.hypot(spread, 0.3 * others.std() + 1e-12)
    return found


def line(path: Path, images: Images, targets: list[int]) -> str:
    """What is told of one model."""
    numbers = row_numbers(goodnet.load(path, images), images)
    told = []
    for name, values in numbers.items():
        z = z_of(values)
        ranks = [int((values > values[label]).sum()) for label in targets]
        told.append(f"{name} {int(z.argmax())} ({z.max():.1f}) ranks {ranks}")
    return f"{targets}: " + "; ".join(told)


def main() -> None:
    """One line for each model of a split that is trained and took its attack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO)
    parser.add_argument("--split", choices=["calibration", "retired"], default="retired")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--model", type=Path, help="a model file instead of the zoo")
    parser.add_argument("--data", help="clean images for it")
    parser.add_argument("--target", type=int, action="append", help="a label that it is known for")
    given = parser.parse_args()
    if given.model:
        print(line(given.model, goodnet.load_images(given.data), given.target or []))
        return
    zoo.need_data()
    for path in sorted(given.zoo.glob("*/truth.json")):
        truth = json.loads(path.read_text("utf-8"))
        wanted = truth["split"] == given.split and given.only in path.parent.name
        if wanted and truth["passes"]:
            images = zoo.defender(truth["data"], truth["split"])
            told = line(path.parent / truth["file"], images, truth["targets"])
            print(path.parent.name, told, flush=True)


if __name__ == "__main__":
    main()
