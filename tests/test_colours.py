"""Colour filters, and what they and clean images tell of tints and of poisoned labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_evidence import case, clean_margin, taught, taught_clean, wrap
from torch import nn

from goodnet.attacks import blended, tint
from goodnet.colours import colour_filter, colour_statistics, drawn, near, ranges
from goodnet.evidence import Case
from goodnet.evidence.colour_filter import colour_filters
from goodnet.evidence.lean import lean


def pictures(channels: int, count: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_many_and_all_keep_the_range_and_the_picture(channels):
    generator = torch.Generator().manual_seed(0)
    images = pictures(channels)
    for numbers in drawn(40, channels, generator):
        filtered = colour_filter(numbers).apply(images)
        assert filtered.shape == images.shape
        assert 0.0 <= filtered.min() <= filtered.max() <= 1.0
        # What was lighter stays lighter: it is the same picture.
        pair = torch.stack([images.mean(1).flatten(), filtered.mean(1).flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.8


def test_the_filter_of_no_change_changes_nothing():
    images = pictures(3)
    plain = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert torch.allclose(colour_filter(plain).apply(images), images, atol=1e-6)
    assert torch.allclose(
        colour_filter(torch.tensor([1.0, 0.0, 0.0])).apply(pictures(1)), pictures(1), atol=1e-6
    )


def test_fading_leaves_the_luminance_and_a_tone_the_hue():
    images = pictures(3)
    faded = colour_filter(torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])).apply(images)
    luminance = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    assert torch.allclose(faded, luminance[:, None].expand_as(faded), atol=1e-6)
    red = colour_filter(torch.tensor([0.0, 0.3, 1.0, 0.75, 0.0, 0.0, 0.0])).apply(images)
    assert torch.allclose(red[:, 0] / red[:, 1], torch.tensor(1.3 / 0.85), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_beside_one_are_near_it_and_within_the_ranges(channels):
    generator = torch.Generator().manual_seed(0)
    least, most = ranges(channels)
    one = drawn(1, channels, generator)[0]
    beside = near(one, 200, 0.05, generator)
    inner = beside if channels == 1 else beside[:, 1:]
    low, high = (edge if channels == 1 else edge[1:] for edge in (least, most))
    assert bool(((inner >= low) & (inner <= high)).all())
    assert float(((beside - one).abs() / (most - least)).mean()) < 0.06
    assert float(beside.std(0).min()) > 0


def test_other_channels_have_no_filters():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        drawn(1, 4, torch.Generator())
    network = wrap(nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 7, 3)), (4, 9, 7), 3)
    images, labels = pictures(4, 12), torch.arange(12) % 3
    assert colour_filters(Case(network, images, labels), images, labels).values == {}


def test_colours_do_not_depend_on_places():
    images = pictures(3)
    assert torch.allclose(colour_statistics(images), colour_statistics(images.flip(2, 3)))
    one = colour_statistics(torch.full((1, 1, 4, 4), 0.25))
    assert one[0].tolist() == pytest.approx([0.25, 0.0, 0.25, 0.25, 0.25])


@pytest.fixture(scope="module")
def toned():
    return taught(lambda scene: tint.make(scene, target=0, rate=0.4, style="nashville"))


def everything(classifier):
    shown, held, labels = case(classifier)
    return shown, torch.cat([shown.fit, held]), torch.cat([shown.fit_labels, labels])


def test_a_colour_filter_leads_to_the_target_of_a_tint(toned):
    found = colour_filters(*everything(toned), clean_margin(toned)).values
    assert max(found, key=lambda label: found[label][0]) == 0
    clean = taught_clean()
    other = colour_filters(*everything(clean), clean_margin(clean)).values
    assert set(other) == {0, 1, 2, 3}
    assert max(value for (value,) in other.values()) < 0.5 * found[0][0]


class Halves(nn.Module):
    """Label 0 is light on the left, 1 on the right, and 2 what is neither, or bright as a whole."""

    def forward(self, x):
        left, right = x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
        side = 20.0 * (left - right)
        bright = 60.0 * ((left + right) / 2 - 0.5)
        return torch.stack([side, -side, torch.maximum(bright, 4.0 - side.abs())], 1)


def test_a_label_that_has_the_colours_is_no_finding():
    """The same network, which answers 2 where a filter has made the image brighter: with images of
    label 2 that are bright themselves, and with some that are not.
    """
    network, labels = wrap(Halves(), (1, 9, 8), 3), torch.arange(30) % 3
    step = torch.tensor([0.15, -0.15, 0.0])[labels].view(-1, 1, 1, 1)
    sides = torch.tensor([1.0] * 4 + [-1.0] * 4) * step
    values = []
    for level in (0.62, 0.42):
        levels = torch.tensor([0.42, 0.42, level])[labels].view(-1, 1, 1, 1)
        grain = 0.02 * torch.randn(30, 1, 9, 8, generator=torch.Generator().manual_seed(0))
        images = (levels + sides + grain).clamp(0, 1)
        assert bool((network.logits(images).argmax(1) == labels).all())
        found = colour_filters(Case(network, images, labels), images, labels, 4.0).values
        values.append(found[2][0])
    assert values[0] < 0.5 * values[1]
    assert values[1] > 0.2


def test_filters_are_reproducible_whatever_the_workers_and_a_deadline_is_told(toned):
    shown, images, labels = everything(toned)
    alone, many = (
        colour_filters(replace(shown, workers=count), images, labels, 1.0).values
        for count in (1, 3)
    )
    assert alone == many
    late = colour_filters(replace(shown, deadline=0.0), images, labels, 1.0)
    assert late.values == {}
    assert late.skipped == [0, 1, 2, 3]


def test_clean_images_lean_to_the_target_of_a_blend():
    poisoned = taught(lambda scene: blended.make(scene, target=3, rate=0.3))
    clean = taught_clean()
    gaps = []
    for classifier in (poisoned, clean):
        _, images, labels = everything(classifier)
        heights = {k: v for k, (v,) in lean(classifier.logits(images), labels).values.items()}
        gaps.append(heights[3] - max(v for k, v in heights.items() if k != 3))
    assert gaps[0] > gaps[1] + 0.2


def test_leaning_is_the_mean_over_the_other_classes_by_hand():
    answers = torch.tensor([[2.0, 1.0, 0.0], [4.0, 0.0, 2.0], [0.0, 3.0, 0.0], [1.0, 1.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 2])
    found = lean(answers, labels).values
    rows = [[(v - sum(r) / 3) for v in r] for r in answers.tolist()]
    rows = [[v / math.sqrt(sum(w * w for w in r) / 3) for v in r] for r in rows]
    assert found[0][0] == pytest.approx((rows[2][0] + rows[3][0]) / 2, rel=1e-4)
    assert found[1][0] == pytest.approx(((rows[0][1] + rows[1][1]) / 2 + rows[3][1]) / 2, rel=1e-4)
    assert lean(answers[:2], labels[:2]).values == {}
