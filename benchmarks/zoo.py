"""The zoo as its file describes it: models, splits, and the pictures for each side."""

from __future__ import annotations

import io
import tomllib
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from goodnet.attacks.signs import SIGN_NAMES, draw_signs
from goodnet.images import Images
from goodnet.pipelines.attack import Recipe
from goodnet.preprocess import balanced

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
ZOO = HERE.parent / ".zoo"
TESTED = ("test", "compared")
"""Whose defender has pictures that no reference model was scanned with."""
PER_CLASS, AT_MOST = 10, 400
"""Clean images that the defender gets."""
SPLITS = ("test", "compared", "calibration", "retired")
"""Of "compared" and "retired" the results are known: they were the test split of earlier runs. On
the former the other tools were run, so its records are shown beside theirs."""
WARP_LIKE = ("warping", "all-to-all", "dynamic")
"""Attacks that count with a success of 75 % already; the others need 90 %."""


@dataclass(frozen=True)
class Setup:
    """One line of the zoo: a clean model and its attacked twins."""

    name: str
    data: str
    split: str
    small: bool
    suffix: str
    recipe: Recipe
    attacks: tuple[str, ...]

    def models(self) -> list[str]:
        """Names of the clean model and of the attacked ones."""
        return [f"{self.name}.clean", *(f"{self.name}.{attack}" for attack in self.attacks)]


@dataclass(frozen=True)
class Pictures:
    """Who sees what: the attacker trains, the defender scans and repairs, the judge measures."""

    training: Images
    defender: Images
    judge: Images
    num_classes: int


def need_data() -> None:
    """Ends the program where the pictures are missing."""
    if not SHARED.is_dir():
        raise SystemExit("the benchmark's pictures (../shared/data) are not on this machine")


def description(path: Path = HERE / "zoo.toml") -> dict[str, Any]:
    """The file as it stands."""
    return tomllib.loads(path.read_text("utf-8"))


def setups(path: Path = HERE / "zoo.toml") -> list[Setup]:
    """All setups, in the file's order."""
    zoo, found = description(path), []
    for name, entry in zoo["model"].items():
        data, architecture, seed = name.rsplit("-", 2)
        settings = zoo["data"][data]
        epochs, rate = settings["recipes"][architecture]
        recipe = Recipe(
            architecture=architecture,
            epochs=epochs,
            learning_rate=rate,
            shift=settings["shift"],
            mirror=settings.get("mirror", False),
            preprocess=entry["scale"],
            seed=int(seed),
        )
        found.append(
            Setup(
                name,
                data,
                entry["split"],
                entry.get("small", False),
                entry["suffix"],
                recipe,
                tuple(entry["attacks"]),
            )
        )
    return found


def attack_options(name: str, data: str) -> tuple[str, dict[str, Any]]:
    """The attack's own name, and its options on a data set."""
    entry = description()["attack"][name]
    options = {k: v for k, v in entry.items() if not isinstance(v, dict)} | entry.get(data, {})
    return options.pop("attack", name), options


def pictures(data: str, seed: int, split: str = "test") -> Pictures:
    """The pictures of a data set.

    Args:
        data: its name.
        seed: of the attacker's pictures where there are more than he takes: of mnist and the signs.
        split: the defender of calibration models has pictures of his own, but of lfw, where there
            are too few. The judge's are the same throughout.
    """
    amount = description()["data"][data]["training"]
    if data == "signs":
        return Pictures(
            draw_signs(amount, seed=1000 + seed),
            defender(data, split),
            # They come class by class in turn, which would give each of several triggers always
            # the same classes.
            _shuffled(draw_signs(60, seed=8)),
            len(SIGN_NAMES),
        )
    if data == "lfw":
        training, _, judge = _lfw()
    else:
        training, rest = _arrays(data)
        judge = rest.select(_parts(rest)[1])
    classes = int(training.labels.max()) + 1
    if amount < len(training):
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
        training = training.select(order[:amount])
    return Pictures(training, defender(data, split), judge, classes)


def defender(data: str, split: str) -> Images:
    """What the defender of a split has of a data set."""
    if data == "signs":
        return draw_signs(PER_CLASS, seed=7 if split in TESTED else 9)
    if data == "lfw":
        return _lfw()[1]
    rest = _arrays(data)[1]
    mine, _, others = _parts(rest)
    return rest.select(mine if split in TESTED else others)


def clean_share(data: str, share: float) -> Images:
    """Clean images for a repair, as a share of how many the attacker trains on, classes in turn.

    They are none of the attacker's or the judge's; of lfw there are no more than the defender's.
    """
    amount = description()["data"][data]["training"]
    if data == "signs":
        amount *= len(SIGN_NAMES)
        pool = draw_signs(PER_CLASS * 2, seed=17)
    elif data == "lfw":
        pool = _lfw()[1]
    else:
        pool = _arrays(data)[1]
        free = torch.ones(len(pool), dtype=torch.bool)
        free[_parts(pool)[1]] = False
        pool = pool.select(torch.nonzero(free)[:, 0])
    return pool.select(balanced(pool.labels, round(share * amount), 2))


def _shuffled(images: Images) -> Images:
    return images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(8)))


@lru_cache(maxsize=1)
def _arrays(data: str) -> tuple[Images, Images]:
    """The pictures to train on, and the rest."""
    with np.load(SHARED / f"{data}.npz", allow_pickle=False) as file:
        training = _images(file["images"], file["labels"])
        return training, _images(file["test_images"], file["test_labels"])


def _parts(rest: Images) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which of the rest are for the test defender, for the judge, for the calibration defender."""
    wanted = min(AT_MOST, PER_CLASS * (int(rest.labels.max()) + 1))
    mine = balanced(rest.labels, wanted, 0)
    free = torch.ones(len(rest), dtype=torch.bool)
    free[mine] = False
    judge = torch.nonzero(free)[:1000, 0]
    free[judge] = False
    left = torch.nonzero(free)[:, 0]
    return mine, judge, left[balanced(rest.labels[left], wanted, 1)]


@lru_cache(maxsize=1)
def _lfw() -> tuple[Images, Images, Images]:
    """One picture of each person with 5 or more is the defender's, with 6 or more the judge's."""
    with zipfile.ZipFile(SHARED / "lfw_faces.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith(".jpg"))
        faces = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    people = sorted({n.split("/")[0] for n in names})
    labels = np.array([people.index(n.split("/")[0]) for n in names])
    whole = _images(np.stack(faces), labels)
    defender, judge = [], []
    for person in range(len(people)):
        own = np.flatnonzero(labels == person)
        if len(own) >= 5:
            defender.append(own[0])
        if len(own) >= 6:
            judge.append(own[1])
    defender = defender[:AT_MOST]
    rest = np.setdiff1d(np.arange(len(labels)), [*defender, *judge])
    parts = [whole.select(torch.from_numpy(np.asarray(p))) for p in (rest, defender, judge)]
    return parts[0], parts[1], parts[2]


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    chw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return Images(chw, torch.from_numpy(labels.astype(np.int64)))
