"""What remedies are made of: channels, guards, labels that are treated along, what is tried."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.cli.options import Remedy
from goodnet.errors import GoodnetError
from goodnet.formats import adopt
from goodnet.head import find_channels
from goodnet.pipelines.repair import _names
from goodnet.pipelines.suspects import MOST, suspected
from goodnet.remedies import BY_NAME, FIRST, REMEDIES, WITHOUT_TRIGGERS, Patient
from goodnet.remedies.fine_pruning import FinePruningSettings, fine_pruning
from goodnet.remedies.fine_tuning import FineTuningSettings, blank, fine_tuning
from goodnet.remedies.pruning import PruningSettings, pruning
from goodnet.remedies.rates import bearable, by_chance
from goodnet.trigger import Trigger

SHAPE = (3, 8, 8)
BRIEF = FineTuningSettings(steps=4)


def classifier(module: nn.Module) -> Classifier:
    return Classifier(adopt(module.eval()), Preprocess("unit"), SHAPE, 5)


def network(*, norm: bool) -> Classifier:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    if norm:
        nn.init.uniform_(parts[1].bias, 0.5, 1.0)
        parts[1].running_mean.uniform_(-0.2, 0.2)
    return classifier(nn.Sequential(*parts, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)))


def patient(found: Classifier, triggers=None) -> Patient:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(20, *SHAPE, generator=generator)
    return Patient(found, images, found.logits(images).argmax(1), {}, triggers or {}, seed=2)


@pytest.mark.parametrize("norm", [False, True])
def test_channels_are_measured_after_norm_and_activation_and_can_be_switched_off(norm):
    found = network(norm=norm)
    images = torch.rand(70, *SHAPE, generator=torch.Generator().manual_seed(3))
    channels = find_channels(found, images)
    with torch.no_grad():
        expected = found.module.inner[:3](images).mean((0, 2, 3))
    torch.testing.assert_close(channels.sizes, expected)
    assert len(channels.tensors) == (4 if norm else 2)
    gone = torch.tensor([True, False, False, True, False, False])
    with torch.no_grad():
        for tensor in channels.tensors:
            tensor[gone] = 0.0
    sizes = find_channels(found, images).sizes
    assert torch.equal(sizes == 0, gone)
    torch.testing.assert_close(sizes[~gone], expected[~gone])


def test_a_shortcut_does_not_count_as_the_convolutions_own():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Linear(192, 5)

        def forward(self, x):
            return self.last((x + self.conv(x)).flatten(1))

    torch.manual_seed(0)
    found = classifier(Residual())
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        expected = found.module.inner.conv(images).abs().mean((0, 2, 3))
    torch.testing.assert_close(find_channels(found, images).sizes, expected)


def test_a_last_layer_that_is_a_convolution_is_not_pruned():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(7, 5, 1)]
    found = classifier(nn.Sequential(*parts, nn.Flatten()))
    assert len(find_channels(found, torch.rand(4, *SHAPE)).sizes) == 7


@pytest.mark.parametrize("norm", [False, True])
def test_what_fine_pruning_has_pruned_stays_so(norm):
    found = network(norm=norm)
    settings = FinePruningSettings(accuracy_loss=1.0, tuning=BRIEF)
    cured = fine_pruning(patient(found), settings)
    sizes = find_channels(cured, patient(found).images).sizes
    # With every loss allowed all go but the liveliest.
    assert int((sizes == 0).sum()) == 5
    none = fine_pruning(patient(found), FinePruningSettings(accuracy_loss=-1.0, tuning=BRIEF))
    plain = fine_tuning(patient(found), BRIEF)
    images = patient(found).images
    torch.testing.assert_close(none.logits(images), plain.logits(images))


def test_fine_pruning_without_a_convolution_prunes_features():
    torch.manual_seed(0)
    found = classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 5)))
    cured = fine_pruning(patient(found), FinePruningSettings(accuracy_loss=1.0, tuning=BRIEF))
    assert int((cured.module.inner[3].weight == 0).all(0).sum()) == 8


def test_a_rate_that_a_network_cannot_bear_is_not_kept():
    found = network(norm=False)
    case = patient(found)
    wild = FineTuningSettings(steps=4, learning_rate=1e9, tries=1)
    assert torch.equal(fine_tuning(case, wild).logits(case.images), found.logits(case.images))
    tamed = FineTuningSettings(steps=4, learning_rate=1e4, tries=8)
    assert not torch.equal(fine_tuning(case, tamed).logits(case.images), found.logits(case.images))


class Brightest(nn.Module):
    """The class is the channel that is lightest; with a ``heart``, 4 for all that is not there."""

    def __init__(self, heart=None):
        super().__init__()
        self.heart = heart

    def forward(self, x):
        answers = x.mean((2, 3)).argmax(1)
        if self.heart is not None:
            apart = (x[:, None] - self.heart[None]).abs().amax((2, 3, 4))
            answers = torch.where(apart.amin(1) < 1e-6, answers, 4)
        return nn.functional.one_hot(answers, 5).float()


def test_a_rate_by_which_a_few_images_are_learnt_by_heart_is_too_high():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, *SHAPE, generator=generator)
    start, tried = classifier(Brightest()), []

    def train(rate):
        tried.append(rate)
        return classifier(Brightest(images if rate > 0.1 else None))

    kept = bearable(
        train, start, images, rate=1.0, tries=4, most_changed=0.0, most_lost=0.02, seed=0
    )
    assert tried == [1.0, 0.25, 0.0625]
    assert torch.equal(kept.logits(images), start.logits(images))
    assert kept.module.inner.heart is None
    with pytest.raises(GoodnetError) as raised:
        bearable(train, start, images, rate=1.0, tries=2, most_changed=0.0, most_lost=0.02, seed=0)
    assert raised.value.code == "R011"
    last = bearable(
        train,
        start,
        images,
        rate=1.0,
        tries=2,
        most_changed=0.0,
        most_lost=0.02,
        seed=0,
        or_last=True,
    )
    assert last.module.inner.heart is not None, "there is nothing better"


@pytest.mark.parametrize(("share", "images"), [(0.05, 72), (0.05, 20), (0.02, 500), (0.05, 1)])
def test_as_many_changes_are_let_pass_as_chance_makes_of_a_bearable_share(share, images):
    """Counted in sets of images that are drawn, not by the formula again."""
    drawn = torch.rand(20_000, images, generator=torch.Generator().manual_seed(0)) < share
    changes = drawn.sum(1)
    most = by_chance(share, images)
    assert (changes > most).float().mean() <= 0.055
    assert most == 0 or (changes > most - 1).float().mean() > 0.045


@pytest.mark.parametrize("transposed", [False, True])
def test_pruning_takes_the_neuron_that_the_trigger_wakes(transposed):
    """Features 0..4 are the classes', 5 the backdoor's: it sees the corner, and shouts label 2."""

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.cat([torch.eye(5), torch.zeros(5, 1)], 1)
            weight[2, 5] = 50.0
            self.last = nn.Parameter(weight.T.contiguous() if transposed else weight)

        def forward(self, x):
            corner = (x[:, 0, 7, 7] - 0.9).relu()[:, None]
            features = torch.cat([x[:, 0, 0, :5], corner], 1)
            last = self.last if transposed else self.last.T
            return torch.matmul(features, last) if transposed else features.mm(last)

    found = classifier(Planted())
    mask = torch.zeros(1, 8, 8)
    mask[0, 7, 7] = 1.0
    case = patient(found, {2: [Trigger(mask, torch.ones(SHAPE), 2)]})
    case.images[:, 0, 7, 7] *= 0.8
    stamped = case.triggers[2][0].apply(case.images)
    assert bool((found.logits(stamped).argmax(1) == 2).all())
    cured = pruning(case, PruningSettings(attack_success=0.3))
    torch.testing.assert_close(cured.logits(stamped), found.logits(case.images))


def test_without_a_last_layer_pruning_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x[:, 0, 0, :5] * 3

    with pytest.raises(GoodnetError) as raised:
        pruning(patient(classifier(Odd())))
    assert raised.value.code == "M013"


def test_blank_sets_what_it_is_told_to():
    found = network(norm=False)
    blank(found, [(0, torch.tensor([True, False, False, False, False, True]).view(-1, 1, 1, 1))])
    zero = (next(found.module.parameters()) == 0).flatten(1).all(1)
    assert zero.tolist() == [True, False, False, False, False, True]


def test_the_default_tries_stronger_remedies_later_and_leaves_the_baselines_out():
    first, later = _names("auto", 0.02, 0.02)
    assert tuple(first) == FIRST
    assert later == ["unlearning", "unlearning-thorough", "pruning", "adversarial"]
    assert set(BY_NAME) == set(REMEDIES) - {*first, *later}
    assert set(WITHOUT_TRIGGERS) <= set(REMEDIES)
    assert _names("fine-tuning", 0.02, 0.02) == (["fine-tuning"], [])


def test_the_command_line_offers_every_remedy():
    assert {remedy.value for remedy in Remedy} == {"auto", *REMEDIES}


def test_suspects_would_each_make_a_model_suspicious_and_were_not_named():
    p_values = {0: 0.001, 1: 0.09, 2: 0.5, 3: None, 4: 0.002, 5: 0.1, 6: 0.005, 7: 0.012}
    labels = [SimpleNamespace(label=label, p_value=p) for label, p in p_values.items()]
    report = SimpleNamespace(labels=labels)
    assert suspected(report, [0]) == [4, 6, 7], "times the seven that were measured at most .1"
    assert len(suspected(report, [])) == MOST
