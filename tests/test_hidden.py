"""What the hidden features tell: rows that draw on unused ones, channels that are held high."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_head import exported, scripted
from torch import nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.evidence import Case, Share
from goodnet.evidence.signature import signature
from goodnet.evidence.stimulation import stimulation
from goodnet.formats import adopt
from goodnet.images import Images
from goodnet.inner import standing
from goodnet.stimulus import activations, stimulated

torch.set_num_threads(1)
SHAPE = (3, 8, 8)


def classifier(network, classes=5) -> Classifier:
    return Classifier(network, Preprocess("unit"), SHAPE, classes)


def layered(*, inplace=False, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    parts = [nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(inplace), nn.Flatten(), nn.Linear(216, 7)]
    return nn.Sequential(*parts, nn.GELU(), nn.Linear(7, 5)).eval()


class Sequence(nn.Module):
    """The features of four patches, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Linear(48, 6), nn.Linear(6, 5)

    def hidden(self, x):
        parts = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
        return torch.nn.functional.gelu(self.embed(parts.reshape(len(x), 4, 48)))

    def forward(self, x):
        return self.head(self.hidden(x).mean(1))


MAKERS = {"live": lambda tmp, m: adopt(m), "pt2": exported, "torchscript": scripted}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_held_channel_by_hand(maker, inplace, tmp_path):
    plain = layered()
    model = classifier(MAKERS[maker](tmp_path, layered(inplace=inplace)))
    images = torch.rand(6, *SHAPE)
    maps = torch.relu(plain[0](images))
    vectors = plain[4](plain[3](maps.flatten(1)))
    first, second = activations(model, images)
    assert (first.place, second.place, first.of) == (0, 1, 2)
    assert torch.allclose(first.most, maps.amax((0, 2, 3)))
    assert torch.allclose(second.most, vectors.amax(0))
    channels = torch.tensor([0, 5, 2, 2, 1, 4])
    for layer, found, rest in ((first, maps, plain[2:]), (second, vectors, plain[5:])):
        held = found.clone()
        for row, channel in enumerate(channels.tolist()):
            # What clean images leave asleep is held as high as the others.
            held[row, channel] = 3.0 * layer.most[channel].clamp_min(layer.most.median())
        expected = rest(held)
        assert torch.allclose(stimulated(model, images, layer, channels, 3.0), expected, atol=1e-5)
    assert torch.allclose(model.logits(images), plain(images), atol=1e-5), "nothing is left of it"


def test_a_channel_of_a_sequence_is_held_at_all_its_places():
    module = Sequence().eval()
    images = torch.rand(3, *SHAPE)
    (layer,) = activations(classifier(adopt(module)), images)
    hidden = module.hidden(images)
    assert torch.allclose(layer.most, hidden.amax((0, 1)))
    held = hidden.clone()
    held[:, :, 4] = 2.0 * layer.most[4].clamp_min(layer.most.median())
    found = stimulated(classifier(adopt(module)), images, layer, torch.full((3,), 4), 2.0)
    assert torch.allclose(found, module.head(held.mean(1)), atol=1e-5)


def test_a_network_of_a_fixed_batch_is_held_call_by_call(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layered()

        def forward(self, x):
            return self.inner(x.reshape(4, *SHAPE))

    fixed, free = classifier(exported(tmp_path, Fixed().eval(), batch=4)), adopt(layered())
    images, channels = torch.rand(10, *SHAPE), torch.arange(10) % 6
    for one, other in zip(
        activations(fixed, images), activations(classifier(free), images), strict=True
    ):
        assert (one.place, one.of, one.axis) == (other.place, other.of, other.axis)
        assert torch.allclose(
            stimulated(fixed, images, one, channels, 2.0),
            stimulated(classifier(free), images, other, channels, 2.0),
            atol=1e-5,
        )


def test_what_runs_in_place_on_the_networks_own_weights_is_never_written_to():
    class Clipped(nn.Module):
        """Keeps its weights small each time that it is called, and shows as many as images."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(6, 192))
            self.last = nn.Linear(6, 5)

        def forward(self, x):
            kept = self.weight.data.clamp_(-1.0, 1.0)
            return self.last(torch.relu(x.flatten(1) @ kept.T))

    model = classifier(adopt(Clipped().eval()))
    images, labels = torch.rand(6, *SHAPE), torch.arange(6) % 5
    before = model.logits(images)
    (layer,) = activations(model, images)
    assert layer.most.shape == (6,)
    stimulation(Case(model, images, labels), images, labels)
    assert torch.equal(model.logits(images), before)


class Maps(nn.Module):
    """Maps with the channels last, through a layer that is made for vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 5)

    def hidden(self, x):
        return torch.nn.functional.gelu(self.first(x.permute(0, 2, 3, 1)))

    def forward(self, x):
        return self.head(self.hidden(x).mean((1, 2)))


def test_channels_that_come_last_are_told_by_the_layer_before():
    module = Maps().eval()
    model, images = classifier(adopt(module)), torch.rand(4, *SHAPE)
    (layer,) = activations(model, images)
    hidden = module.hidden(images)
    assert torch.allclose(layer.most, hidden.amax((0, 1, 2)))
    held = hidden.clone()
    held[..., 3] = 2.0 * layer.most[3].clamp_min(layer.most.median())
    found = stimulated(model, images, layer, torch.full((4,), 3), 2.0)
    assert torch.allclose(found, module.head(held.mean((1, 2))), atol=1e-5)


class Brittle(nn.Module):
    """Looks values up in a table that is as long as clean images need, or overflows."""

    def __init__(self, *, table: bool):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.head = nn.Linear(192, 7), nn.Linear(7, 5)
        self.table = nn.Embedding(3, 5) if table else None

    def forward(self, x):
        hidden = torch.relu(self.first(x.flatten(1)))
        if self.table is not None:
            return self.head(hidden) + self.table((hidden[:, 0] > 1e3).long() * 9)
        wild = torch.where(hidden[:, 1:2] > 50.0, torch.inf, 0.0)
        return self.head(hidden) + wild


@pytest.mark.parametrize("table", [True, False])
def test_a_network_that_fails_or_overflows_while_a_channel_is_held_ends_no_scan(table):
    module = Brittle(table=table).eval()
    with torch.no_grad():
        # Held at twice its most the first or second channel goes past the bound.
        module.first.bias[0 if table else 1] += 600.0 if table else 30.0
    images, labels = shown(classifier(adopt(module)))
    found = stimulation(Case(classifier(adopt(module)), images, labels), images, labels)
    assert found.skipped == []
    assert (found.values == {}) == table, "what overflows takes nothing from the other channels"
    assert all(math.isfinite(row[0]) for row in found.values.values())


class Cached(nn.Module):
    """Computes in place on a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kept = [torch.randn(64, 7)]
        self.inner = layered()

    def forward(self, x):
        return self.inner(x) + self.kept[0].clamp_(-1.0, 1.0).mean(0)[:5]


def test_nothing_that_is_held_stays_in_the_network():
    module = Cached().eval()
    model = classifier(adopt(module))
    images, labels = shown(model)
    before = model.logits(images)
    stimulation(Case(model, images, labels), images, labels)
    assert torch.equal(model.logits(images), before)


def planted(target: int | None) -> Classifier:
    """Twelve channels, of which each label answers to some; three more, asleep on clean images,
    that drive ``target``.
    """
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 15, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(15, 5)
    ).eval()
    with torch.no_grad():
        module[0].bias[12:] = -0.4
        module[4].weight[:, 12:] = 0.02 * torch.randn(5, 3)
        if target is not None:
            module[4].weight[target, 12:] = 3.0
    return classifier(adopt(module))


def shown(model: Classifier, images: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(7))
    return pixels, torch.arange(images) % 5


def lead(evidence, number: int = 0) -> tuple[int, float]:
    """The leading label, and by how much of the others' spread."""
    row = torch.tensor([evidence.values[label][number] for label in range(5)])
    best = int(row.argmax())
    others = torch.cat([row[:best], row[best + 1 :]])
    return best, float((row[best] - others.mean()) / others.std())


@pytest.mark.parametrize("target", [0, 3])
def test_dormant_channels_that_drive_a_label_name_it(target):
    model = planted(target)
    images, labels = shown(model)
    held = stimulation(Case(model, images, labels), images, labels)
    rows = signature(model, Images(images, labels))
    assert lead(held)[0] == lead(rows, 0)[0] == lead(rows, 1)[0] == target
    clean = planted(None)
    unplanted = stimulation(Case(clean, images, labels), images, labels)
    assert lead(unplanted)[1] < 0.5 * lead(held)[1]
    assert lead(signature(clean, Images(images, labels)), 0)[1] < 0.5 * lead(rows, 0)[1]


def test_stimulation_by_hand():
    """One layer of four channels: the upper quarter of them is one."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    model = classifier(adopt(module), classes=3)
    images, labels = torch.rand(6, *SHAPE), torch.tensor([0, 1, 2, 0, 1, 2])
    hidden = torch.relu(module[1](images.flatten(1)))
    best = torch.full((4, 3), -torch.inf)
    for channel in range(4):
        held = hidden.clone()
        held[:, channel] = 2.0 * torch.max(hidden[:, channel].max(), hidden.amax(0).median())
        logits = module[3](held).detach()
        for t in range(3):
            rival = logits[:, [j for j in range(3) if j != t]].amax(1)
            best[channel, t] = (logits[:, t] - rival)[labels != t].mean()
    found = stimulation(Case(model, images, labels), images, labels, clean_margin=2.0).values
    assert [found[t][0] for t in range(3)] == pytest.approx((best.amax(0) / 2.0).tolist(), rel=1e-4)


def test_stimulation_does_not_hang_on_the_workers_and_can_be_cut_off():
    model = planted(1)
    images, labels = shown(model)
    case = Case(model, images, labels, workers=1)
    one = stimulation(case, images, labels)
    assert stimulation(Case(model, images, labels, workers=3), images, labels).values == one.values

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layered()

        def forward(self, x):
            time.sleep(0.05)
            return self.inner(x)

    slow = Case(classifier(adopt(Slow().eval())), images, labels, workers=1)
    late = stimulation(replace(slow, deadline=time.monotonic()), images, labels)
    assert late.values == {}
    assert late.skipped == [0, 1, 2, 3, 4]
    assert stimulation(Case(model, images, labels, share=Share(0, 2)), images, labels).values == {}
    told = []
    stimulation(
        Case(model, images, labels, progress=lambda *seen: told.append(seen)), images, labels
    )
    assert told[-1][1:] == (15, 15)


def test_networks_without_such_features_say_nothing():
    flat = classifier(adopt(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()))
    images, labels = shown(flat)
    assert stimulation(Case(flat, images, labels), images, labels).values == {}

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layered()

        def forward(self, x):
            return self.inner(x) ** 2

    odd = classifier(adopt(Odd().eval()))
    assert signature(odd, Images(images, labels)).values == {}
    # One class alone: of its label nothing is known, of the others everything.
    same = torch.zeros(len(images), dtype=torch.int64)
    assert sorted(stimulation(Case(odd, images, same), images, same).values) == [1, 2, 3, 4]


class Bare(nn.Module):
    """A last layer whose features are four pixels, moved down."""

    def __init__(self, weight, *, transposed=False, down=0.0):
        super().__init__()
        self.kernel = nn.Parameter(weight.T.clone() if transposed else weight.clone())
        self.transposed, self.down = transposed, down

    def forward(self, x):
        kept = x[:, 0, 0, :4] - self.down
        if self.transposed:
            return torch.matmul(kept, self.kernel)
        return torch.nn.functional.linear(kept, self.kernel)


def test_a_signature_by_hand_in_either_orientation():
    torch.manual_seed(2)
    weight, features = torch.randn(5, 4), torch.rand(6, 4)

    images = torch.zeros(6, *SHAPE)
    images[:, 0, 0, :4] = features
    labels = torch.tensor([0, 1, 1, 2, 3, 3])  # of 4 there is none
    drives = (weight - weight.mean(0)).clamp_min(0)
    activity = features.mean(0)
    middle = activity.sort().values[1:3].mean()
    dormant = (drives / (0.1 + activity / middle)).mean(1)
    own = torch.stack(
        [features[labels == k].mean(0) if k < 4 else torch.zeros(4) for k in range(5)]
    )
    unused = (drives * (1 - own / features.amax(0))).mean(1)
    for transposed in (False, True):
        model = classifier(adopt(Bare(weight, transposed=transposed).eval()))
        found = signature(model, Images(images, labels)).values
        assert [found[n][0] for n in range(5)] == pytest.approx(dormant.tolist(), rel=1e-4)
        assert [found[n][1] for n in range(4)] == pytest.approx(unused[:4].tolist(), rel=1e-4)
        assert len(found[4]) == 1, "what its own images use is not known"


def test_signed_features_drive_a_label_from_both_sides_by_hand():
    torch.manual_seed(4)
    weight, features = torch.randn(5, 4), torch.rand(12, 4)
    images = torch.zeros(12, *SHAPE)
    images[:, 0, 0, :4] = features
    labels = torch.arange(12) % 5
    moved = features - 0.5
    lead = weight - weight.mean(0)
    own = torch.stack([moved[labels == k].mean(0) for k in range(5)])
    # How far the logit of each label would rise, every feature where it suits the label best.
    best = torch.where(lead > 0, moved.amax(0), moved.amin(0))
    room = ((best - own) * lead).mean(1)
    found = signature(classifier(adopt(Bare(weight, down=0.5).eval())), Images(images, labels))
    assert [found.values[n][1] for n in range(5)] == pytest.approx(room.tolist(), rel=1e-4)
    # What is hardly ever below nought has its rest there.
    found = signature(classifier(adopt(Bare(weight, down=0.01).eval())), Images(images, labels))
    assert found.values[0][1] != pytest.approx(room[0].item(), rel=1e-2)


def test_a_row_that_draws_on_what_clean_images_leave_unused_stands_out():
    """Six classes, a feature each, and a seventh that light in one corner would switch on."""
    pixels = torch.zeros(30, 1, 1, 7, dtype=torch.uint8)
    labels = torch.arange(30) % 6
    pixels[torch.arange(30), 0, 0, labels] = 200
    pixels[:, 0, 0, 6] = torch.randint(0, 9, (30,), generator=torch.Generator().manual_seed(0))
    planted_rows = torch.cat([torch.eye(6), torch.zeros(6, 1)], 1)
    planted_rows[4, 6] = 0.8
    for weight, leads in ((planted_rows, True), (planted_rows.where(planted_rows == 1, 0), False)):
        last = nn.Linear(7, 6)
        last.weight.data.copy_(weight)
        module = adopt(nn.Sequential(nn.Flatten(), last).eval())
        found = signature(
            Classifier(module, Preprocess("unit"), (1, 1, 7), 6), Images(pixels, labels)
        ).values
        for number in (0, 1):
            z = standing(np.array([found[label][number] for label in range(6)]))
            assert (int(z.argmax()) == 4 and z.max() > 3) == leads, (number, z)
