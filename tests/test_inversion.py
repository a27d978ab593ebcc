"""The two optimisers, held against plain arithmetic and against planted triggers."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.formats.network import Network
from goodnet.inversion import QUICK, InversionSettings, invert
from goodnet.parallel import Stopped
from goodnet.perturbation import ascend, row_margins
from goodnet.pipelines.load import load
from goodnet.trigger import overlap


def wrap(module: nn.Module, shape: tuple[int, int, int], classes: int) -> Classifier:
    network = Network(module.eval(), shape, classes, "test", "", lambda *_: None)
    return Classifier(network, Preprocess("unit"), shape, classes)


class Linear(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def test_universal_perturbation_of_a_linear_model_is_the_closed_form():
    """With two classes the margin is linear in the perturbation: the optimum is along w1 - w0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 4 * 4, generator=generator)
    images = torch.full((5, 3, 4, 4), 0.5)
    budget = 0.4  # no pixel can leave [0, 1]
    found = ascend(
        wrap(Linear(weight), (3, 4, 4), 2),
        images,
        torch.zeros(5, dtype=torch.long),
        [1],
        budget,
        60,
        stop=threading.Event(),
    )
    direction = weight[1] - weight[0]
    best = float((images[0].flatten() @ direction) + budget * direction.norm())
    assert float(found.deltas[0].norm()) <= budget * 1.0001
    assert float(found.margins[0]) == pytest.approx(best, rel=1e-3)


def test_images_of_the_target_itself_do_not_count():
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    classifier = wrap(Linear(weight), (3, 2, 2), 3)
    images = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = ascend(classifier, images, labels, [2], 1e-6, 1, stop=threading.Event())
    others = classifier(images[:4])
    expected = row_margins(others, torch.full((4,), 2)).mean()
    assert float(found.margins[0]) == pytest.approx(float(expected), abs=1e-4)


def test_first_inversion_step_is_that_of_a_float64_reference():
    """Cross-entropy towards the target plus cost times L1, one Adam step, in NumPy."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 12)).astype(np.float32)
    images = torch.tensor(rng.uniform(size=(4, 3, 2, 2)).astype(np.float32))
    settings = InversionSettings(
        epochs=1, steps_per_epoch=1, batch=4, initial_cost=0.1, warm_start=True
    )
    (found,) = invert(
        wrap(Linear(torch.tensor(weight)), (3, 2, 2), 3),
        images,
        torch.zeros(4, dtype=torch.long),
        [2],
        settings,
        seed=7,
        stop=threading.Event(),
    )
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(1, 1, 2, 2, generator=generator).double().numpy()[0]
    b = torch.randn(1, 3, 2, 2, generator=generator).double().numpy()[0]

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        m, p = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        z = ((1 - m) * images.double().numpy() + m * p).reshape(4, -1) @ weight.T.astype(float)
        entropy = np.log(np.exp(z).sum(1)) - z[:, 2]
        return float(entropy.mean() + 0.1 * m.sum())

    def gradient(which: int) -> np.ndarray:
        value = [a, b][which]
        out = np.zeros_like(value)
        for place in np.ndindex(*value.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy(), b.copy()]
                moved[which][place] += sign * 1e-6
                ends.append(loss(*moved))
            out[place] = (ends[0] - ends[1]) / 2e-6
        return out

    # Adam's first step moves every value by the learning rate against the gradient's sign.
    after = 1 / (1 + np.exp(-(a - 0.1 * np.sign(gradient(0)))))
    pattern = 1 / (1 + np.exp(-(b - 0.1 * np.sign(gradient(1)))))
    assert np.allclose(found.trigger.mask.numpy(), after, atol=1e-4)
    assert np.allclose(found.trigger.pattern.numpy(), pattern, atol=1e-4)
    assert not found.succeeded or math.isfinite(found.trigger.size)


def test_the_planted_sticker_is_recovered(badnet):
    classifier = load(badnet.module, badnet.clean)
    images = badnet.clean.floats()[:32]
    found = invert(
        classifier, images, badnet.clean.labels[:32], [1, 4], QUICK, seed=0, stop=threading.Event()
    )
    planted, other = found
    assert planted.succeeded
    assert planted.trigger.size < other.trigger.size
    inside = (planted.trigger.mask * badnet.attack.mask).sum() / planted.trigger.mask.sum()
    share = float(badnet.attack.mask.mean())
    assert float(inside) > 10 * share, "the mask does not lie on the sticker"
    assert overlap(planted.trigger.mask, badnet.attack.mask) > 0.1


def test_a_label_that_cannot_be_reached_is_marked_as_failed():
    """The cost schedule of a label that no trigger reaches must not end in a size."""

    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            level = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([level + 5, level * 0, level * 0 - 50], 1)

    classifier = wrap(Never(), (3, 4, 4), 3)
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = invert(
        classifier,
        images,
        torch.zeros(8, dtype=torch.long) + 1,
        [0, 2],
        QUICK,
        seed=0,
        stop=threading.Event(),
    )
    assert found[0].succeeded
    assert not found[1].succeeded


def test_a_stop_is_obeyed(badnet):
    stop = threading.Event()
    stop.set()
    classifier = load(badnet.module, badnet.clean)
    with pytest.raises(Stopped):
        invert(
            classifier,
            badnet.clean.floats()[:4],
            badnet.clean.labels[:4],
            [0],
            QUICK,
            seed=0,
            stop=stop,
        )
