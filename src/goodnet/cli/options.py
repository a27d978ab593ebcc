"""The options that several verbs share, and what their values mean."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from goodnet.errors import GoodnetError


class Format(StrEnum):
    """How a result is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


class ScanFormat(StrEnum):
    """How a scan is written."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    SARIF = "sarif"


class PlainFormat(StrEnum):
    """How the result of a verb without a page is written."""

    TEXT = "text"
    JSON = "json"


class Method(StrEnum):
    """How a scan looks for backdoors."""

    DEFAULT = "default"
    NEURAL_CLEANSE = "neural-cleanse"


class Remedy(StrEnum):
    """What a repair may try."""

    AUTO = "auto"
    LAST_LAYER = "last-layer"
    LAST_LAYER_FIRM = "last-layer-firm"
    ANCHORED = "anchored"
    ANCHORED_HALF = "anchored-half"
    UNLEARNING = "unlearning"
    FILTER = "filter"
    UNLEARNING_THOROUGH = "unlearning-thorough"
    PRUNING = "pruning"
    ADVERSARIAL = "adversarial"
    FINE_TUNING = "fine-tuning"
    FINE_PRUNING = "fine-pruning"


class AttackName(StrEnum):
    """How a backdoor is planted; the names of goodnet.attacks.table, which takes long to import."""

    PATCH = "patch"
    SEVERAL_TARGETS = "several-targets"
    SEVERAL_TRIGGERS = "several-triggers"
    ALL_TO_ALL = "all-to-all"
    BLENDED = "blended"
    SINUSOIDAL = "sinusoidal"
    TROJAN = "trojan"
    WARPING = "warping"
    DYNAMIC = "dynamic"
    QUANTISATION = "quantisation"
    LOW_FREQUENCY = "low-frequency"
    TINT = "tint"
    SOURCE_SPECIFIC = "source-specific"
    ADAPTIVE_BLEND = "adaptive-blend"
    ADAPTIVE_PATCH = "adaptive-patch"
    PAINTED = "painted"


class ArchitectureName(StrEnum):
    """The networks of goodnet.attacks.networks."""

    CNN = "cnn"
    RESNET = "resnet"
    DEEPID = "deepid"
    SEPARABLE = "separable"
    VIT = "vit"


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Keras (.h5, .keras), torch.export (.pt2), TorchScript, or weights with "
        "--architecture.",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        show_default=False,
        help="Clean images: .h5 (data, label), .npz (images, labels) or a folder of class folders.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FUNCTION",
        show_default=False,
        help="Your code that makes the network, for a file of weights only. It is run.",
    ),
]
Preprocess = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the model takes: unit, byte, signed, imagenet ... (see 'goodnet explain D011'), "
        "or 'mean=a,b,c;std=a,b,c'; auto tries all.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        show_default=False,
        help="Resize the pictures of a folder, where the model does not state its size.",
    ),
]
MethodName = Annotated[
    Method, typer.Option("--method", help="neural-cleanse: the paper's own optimisation and rule.")
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine: same answer.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, show_default=False, help="Threads; one for each core by default."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="cpu, cuda, cuda:1; ',float32' behind it for no bfloat16. auto: a graphics card if "
        "there is one.",
    ),
]


def parse_labels(text: str | None) -> list[int] | None:
    """``"0,3,7"`` as numbers.

    Raises:
        GoodnetError: R003 for anything else.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise GoodnetError(
            "R003", f"--labels {text!r} is no list of numbers", "give them as in --labels 0,3,7"
        ) from error


def parse_time(text: str | None) -> float | None:
    """``"90s"``, ``"5m"``, ``"1.5h"`` or plain seconds, as seconds.

    Raises:
        GoodnetError: R003 for anything else, and for no time at all.
    """
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h") else (text, "s")
    try:
        seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise GoodnetError("R003", f"--budget {text!r} is no time", "give, say, 90s, 5m or 1h")
    return seconds


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"32x48"`` as height and width; one number stands for both.

    Raises:
        GoodnetError: R003 for anything else.
    """
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
        height, width = sides * 2 if len(sides) == 1 else sides
        if min(height, width) < 1:
            raise ValueError
    except ValueError as error:
        raise GoodnetError(
            "R003", f"--image-size {text!r} is no size", "give height x width: --image-size 32x32"
        ) from error
    return height, width
