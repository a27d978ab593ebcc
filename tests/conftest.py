"""Real models for the tests: trained once a session, in seconds."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_case import Rows, bright_rows, save_data, save_model
from fleet_case import save_many
from torch import nn

from goodnet.attacks.patch import PatchAttack, sticker
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.signs import YIELD, draw_signs
from goodnet.attacks.train import small_cnn, train
from goodnet.images import Images, load_images
from goodnet.pipelines.load import load
from goodnet.pipelines.scan import scan
from goodnet.reports import ScanReport

# Whichever file of tests comes first imports Keras, and its backend is that of all of them.
os.environ.setdefault("KERAS_BACKEND", "torch")

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads that share a core wait for each other; the scan brings its own workers."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real BadNets and pictures; tests that ask for them carry the mark ``real``."""
    if not SHARED.is_dir():
        pytest.skip("the real BadNets and pictures (../shared) are not on this machine")
    return SHARED


@dataclass(frozen=True)
class Story:
    """A model trained on drawn signs, with images that it never saw."""

    module: nn.Module
    clean: Images
    test: Images
    attack: PatchAttack
    poisoned: Images


def _story(*, attacked: bool) -> Story:
    images = draw_signs(220, seed=11)
    attack = sticker(images.shape, YIELD, rate=0.15)
    module = small_cnn(images.shape, 12, seed=4)
    lessons = poison(images, attack, seed=5) if attacked else images
    module = train(module, lessons, epochs=10, seed=4, learning_rate=4e-3)
    test = draw_signs(25, seed=13)
    return Story(module, draw_signs(12, seed=12), test, attack, poisoned_test(test, attack))


@pytest.fixture(scope="session")
def badnet() -> Story:
    """A BadNet: a sticker turns every sign into Yield (label 1)."""
    return _story(attacked=True)


@pytest.fixture(scope="session")
def honest() -> Story:
    """Its clean twin: the same data and seed, no poison."""
    return _story(attacked=False)


@pytest.fixture(scope="session")
def badnet_report(badnet) -> ScanReport:
    """The scan of the BadNet, made once."""
    return scan(load(badnet.module, badnet.clean), badnet.clean, seed=2)


@pytest.fixture(scope="session")
def honest_report(honest) -> ScanReport:
    """The scan of its clean twin, made once."""
    return scan(load(honest.module, honest.clean), honest.clean, seed=2)


def read_npz(path: Path, part: str = "") -> Images:
    """``images``/``labels`` or ``test_images``/``test_labels`` of the shared data sets."""
    with np.load(path) as archive:
        pixels, labels = archive[f"{part}images"], archive[f"{part}labels"]
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return Images(torch.tensor(pixels.copy()), torch.tensor(labels.astype(np.int64)))


JUNK = "junk.h5"


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """``models`` with three small models, one planted (class 3), and a file that is none; beside it
    ``clean.npz``.
    """
    folder = tmp_path_factory.mktemp("hub")
    models = folder / "models"
    (models / "more").mkdir(parents=True)
    save_data(folder / "clean.npz", *bright_rows())
    save_model(models / "a.pt", Rows())
    save_model(models / "planted.pt", Rows(backdoor=True))
    # The same file twice, under a name that a pattern of file names would read otherwise.
    shutil.copy(models / "a.pt", models / "more" / "a[1].pt")
    (models / JUNK).write_bytes(b"no model")
    (models / "scan.triggers.safetensors").write_bytes(b"what a scan has written")
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """``models`` with a model of many labels, and ``clean.npz`` beside it."""
    return save_many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def alone(many) -> ScanReport:
    """The report of a scan of that model by itself."""
    images = load_images(many / "clean.npz")
    return scan(load(many / "models" / "many.pt", images), images, workers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that is right on everything, and its images, as files."""
    save_model(tmp_path / "model.pt", Rows())
    save_data(tmp_path / "data.npz", *bright_rows())
    return tmp_path
