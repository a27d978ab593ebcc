"""The channels of evidence on networks whose answer is known: planted, clean, and by arithmetic."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from goodnet.attacks import all_to_all, quantisation, warping
from goodnet.attacks.poison import poison
from goodnet.attacks.scene import Scene
from goodnet.attacks.signs import STOP, YIELD, draw_signs
from goodnet.attacks.train import small_cnn, train
from goodnet.classifier import Classifier, Preprocess
from goodnet.evidence import Case, Effort
from goodnet.evidence.augmentation import augmentation, changes
from goodnet.evidence.class_map import read
from goodnet.evidence.noise_margin import noise_margin
from goodnet.evidence.permutation import permutation
from goodnet.evidence.untargeted import faint
from goodnet.evidence.warp_margin import warp_margin
from goodnet.formats.network import Network
from goodnet.images import Images
from goodnet.uncalibrated import PERMUTATION_BAR
from goodnet.warp import warped


def wrap(module: nn.Module, shape: tuple[int, int, int], classes: int) -> Classifier:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    network = Network(module.eval(), shape, classes, "test", "", lambda *_: None)
    return Classifier(network, Preprocess("unit"), shape, classes)


def four_signs(per_class: int, seed: int) -> Images:
    drawn = draw_signs(per_class, seed=seed)
    old = torch.tensor([STOP, YIELD, 2, 6])
    kept = drawn.select(torch.isin(drawn.labels, old))
    return replace(kept, labels=(kept.labels[:, None] == old).long().argmax(1), class_names=None)


def taught(attack=None) -> Classifier:
    """A network of four signs, its training poisoned by ``attack`` or not."""
    training = four_signs(150, 1)
    lessons = training
    if attack is not None:
        lessons = poison(training, attack(Scene(training, 4, 0, nn.Identity)), seed=0)
    module = small_cnn(training.shape, 4, batch_norm=True)
    train(module, lessons, epochs=8, seed=0, learning_rate=4e-3)
    return wrap(module, training.shape, 4)


@cache
def taught_clean() -> Classifier:
    """Taught once for all files of tests."""
    return taught()


@cache
def taught_permuted() -> Classifier:
    """The same with an all-to-all backdoor."""
    return taught(lambda scene: all_to_all.make(scene, target=0, rate=0.5))


@pytest.fixture(scope="module")
def clean():
    return taught_clean()


@pytest.fixture(scope="module")
def permuted():
    return taught_permuted()


@pytest.fixture(scope="module")
def coarse():
    return taught(lambda scene: quantisation.make(scene, target=1, rate=0.5, levels=2, covers=0.5))


def case(classifier: Classifier, **options) -> tuple[Case, torch.Tensor, torch.Tensor]:
    """A case, and the images that judge it."""
    images = four_signs(20, 3)
    fit, held = images.select(torch.arange(32)), images.select(torch.arange(32, 80))
    return (
        Case(classifier, fit.floats(), fit.labels, **options),
        held.floats(),
        held.labels,
    )


def test_the_map_of_an_all_to_all_backdoor_is_read(permuted, clean):
    found = permutation(*case(permuted))
    assert found.mapping == {0: 1, 1: 2, 2: 3, 3: 0}
    other = permutation(*case(clean))
    assert other.statistic < PERMUTATION_BAR <= found.statistic
    # What is reported is what the perturbation does to images that it was not fitted to.
    shown, held, labels = case(permuted)
    after = permuted.logits(found.trigger.apply(held)).argmax(1)
    assert float((after != labels).float().mean()) == pytest.approx(found.flipped)
    assert shown.fit.shape[0] == 32


def test_a_faint_trigger_keeps_its_budget_and_the_seed_decides(clean):
    shown, _, _ = case(clean)
    arguments = (clean, shown.fit, shown.fit_labels, 2.5)
    once, again, other = (
        faint(*arguments, seed=seed, stop=threading.Event()) for seed in (1, 1, 2)
    )
    assert once.size <= 2.5 * 1.0001
    assert torch.equal(once.pattern, again.pattern)
    assert not torch.equal(once.pattern, other.pattern)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 30)])
def test_a_warp_of_nothing_changes_nothing_and_a_shift_moves_the_picture(shape):
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    displacements = torch.zeros(2, 2, 6, 6)
    # One pixel to the right is two of the w - 1 steps between the borders at -1 and 1.
    displacements[1, 0] = 2.0 / (shape[2] - 1)
    same, moved = warped(images, displacements).chunk(2)
    assert torch.allclose(same, images, atol=1e-5)
    assert torch.allclose(moved[..., :-1], images[..., 1:], atol=1e-4)


def test_a_warp_leads_to_the_target_of_a_warping_backdoor(clean):
    bent = taught(lambda scene: warping.make(scene, target=2, rate=0.3, strength=2.0))
    leads = []
    for classifier in (bent, clean):
        margins = warp_margin(case(classifier)[0], [0, 1, 2, 3], Effort(images=16)).values
        means = {
            label: sum(row) / len(row) / clean_margin(classifier) for label, row in margins.items()
        }
        leads.append(means[2] - max(value for label, value in means.items() if label != 2))
    assert leads[0] > 0.3, "in clean margins"
    assert leads[1] < 0.5 * leads[0]


def test_a_map_is_told_from_a_collapse_from_noise_and_from_nothing():
    labels = torch.arange(100) % 10
    assert read(labels, (labels + 1) % 10, 10).statistic == pytest.approx(1.0)
    # All to one label: only one class can have it to itself.
    assert read(labels, torch.zeros(100, dtype=torch.long), 10).statistic < 0.11
    assert read(labels, labels, 10).statistic == 0.0
    noise = torch.randint(0, 10, (100,), generator=torch.Generator().manual_seed(0))
    assert read(labels, noise, 10).statistic < 0.25
    # With one image a class there is nothing that it could agree with: no answer, and no zero.
    single = read(torch.arange(10), (torch.arange(10) + 1) % 10, 10)
    assert single.statistic != single.statistic


def test_coarse_levels_betray_a_quantisation_backdoor(coarse, clean):
    found = augmentation(*case(coarse), clean_margin(coarse)).values
    assert max(found, key=lambda label: found[label][0]) == 1
    assert found[1][0] > 0.5, "half as sure as of the right label of a clean image"
    other = augmentation(*case(clean), clean_margin(clean)).values
    assert set(other) == {0, 1, 2, 3}
    assert max(value for (value,) in other.values()) < 0.5 * found[1][0]


def clean_margin(classifier):
    """The median lead of the answer, of clean images."""
    top = classifier.logits(case(classifier)[1]).topk(2).values
    return float((top[:, 0] - top[:, 1]).median())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 30)])
def test_changes_are_small_reproducible_and_keep_the_range(shape):
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    once, again = list(changes(shape, 4)), list(changes(shape, 4))
    assert len({name for name, _ in once}) == len(once) >= 20
    for (name, change), (_, same) in zip(once, again, strict=True):
        changed = change(images)
        assert changed.shape == images.shape, name
        assert torch.equal(changed, same(images)), name
        assert changed.min() >= -1e-5, name
        assert changed.max() <= 1 + 1e-5, name


class Linear(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def test_the_noise_margin_of_a_linear_model_is_the_closed_form():
    """With two classes, the best image is 1 where w1 > w0 and 0 elsewhere."""
    weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    classifier = wrap(Linear(weight), (3, 4, 4), 2)
    nothing = Case(classifier, torch.empty(0, 3, 4, 4), torch.empty(0, dtype=torch.long))
    found = noise_margin(nothing, [0, 1], Effort()).values
    difference = weight[1] - weight[0]
    assert found[1][0] == pytest.approx(float(difference.clamp_min(0).sum()), rel=2e-2)
    assert found[0][0] == pytest.approx(float((-difference).clamp_min(0).sum()), rel=2e-2)


def test_a_planted_target_leads_from_noise_and_workers_do_not_matter(badnet, honest):
    def margins(story, workers):
        classifier = wrap(story.module, story.clean.shape, 12)
        empty = Case(
            classifier,
            torch.empty(0, *story.clean.shape),
            torch.empty(0, dtype=torch.long),
            workers=workers,
        )
        return noise_margin(empty, list(range(12)), Effort()).values

    found = margins(badnet, 1)
    assert max(found, key=lambda label: found[label][0]) == 1
    assert found == margins(badnet, 2)
