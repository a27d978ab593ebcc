"""A network of the zoo, from its directory.

Apart from ``train.py``, which keeps its process and all that it starts to AVX2: what is measured is
not to be kept to that.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import zoo

from goodnet.attacks.networks import build
from goodnet.pipelines.attack import Scaled
from goodnet.preprocess import parse


def load_network(setup: zoo.Setup, place: Path, shown: zoo.Pictures) -> Scaled:
    """The trained network of a directory, with its preprocessing."""
    shape = shown.training.shape
    inner = build(setup.recipe.architecture, shape, shown.num_classes)
    inner.load_state_dict(safetensors.torch.load_file(place / "weights.safetensors"))
    return Scaled(parse(setup.recipe.preprocess, shape[0]), inner).eval()
