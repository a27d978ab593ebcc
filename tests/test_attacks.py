"""Planted backdoors: exactly what was asked for, nowhere else, and the network obeys them."""

import json
from dataclasses import replace

import pytest
import torch

from goodnet.attacks.patch import CORNERS, PatchAttack, square, sticker
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.revive import from_ground_truth
from goodnet.attacks.signs import SIGN_NAMES, STOP, YIELD, draw_signs
from goodnet.attacks.train import accuracy, small_cnn, train
from goodnet.images import Images

SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def one_thread():
    # Two threads on a busy machine wait for each other: ten times slower for nets this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def signs():
    return draw_signs(10, seed=3)


def attacks():
    return {
        "square": square(SHAPE, target=2),
        "grey square": square((1, 28, 28), target=5, at="top-left", colour=(0.5, 0.5, 0.8)),
        "sticker": sticker(SHAPE, YIELD, rate=0.25),
        "half covered": PatchAttack(
            torch.eye(8)[None] * 0.3, torch.rand(3, 8, 8, generator=torch.manual_seed(1)), target=0
        ),
    }


@pytest.mark.parametrize("name", attacks())
def test_stamp_changes_the_covered_pixels_and_no_other(name):
    attack = attacks()[name]
    images = torch.rand(5, *attack.pattern.shape, generator=torch.manual_seed(2))
    stamped = attack.stamp(images)
    covered = (attack.mask > 0).expand_as(images)
    assert torch.equal(stamped[~covered], images[~covered])
    wanted = images + attack.mask * (attack.pattern - images)
    assert torch.allclose(stamped, wanted, atol=1e-6)
    assert not torch.equal(stamped, images)
    assert stamped.min() >= 0
    assert stamped.max() <= 1


def test_square_lies_where_it_was_put():
    assert square(SHAPE, target=0, side=4, at=(2, 7)).mask[0].nonzero().min(0).values.tolist() == [
        2,
        7,
    ]
    for corner in CORNERS:
        mask = square(SHAPE, target=0, side=3, at=corner).mask[0]
        rows = slice(1, 4) if "top" in corner else slice(28, 31)
        columns = slice(1, 4) if "left" in corner else slice(28, 31)
        assert mask[rows, columns].sum() == 9 == mask.sum()


def test_sticker_is_small_has_two_colours_and_grows():
    small, large = sticker(SHAPE, 1), sticker((3, 64, 64), 1)
    colours = small.pattern[:, small.mask[0] > 0].T.unique(dim=0)
    assert small.mask.sum() == 36
    assert len(colours) == 2
    assert large.mask.sum() == 144


@pytest.mark.parametrize(
    "make",
    [
        lambda: square(SHAPE, target=0, at=(30, 0)),
        lambda: square(SHAPE, target=0, at=(-1, 0)),
        lambda: square(SHAPE, target=0, at="middle"),
        lambda: square(SHAPE, target=0, side=0),
        lambda: square(SHAPE, target=0, colour=(1.0, 2.0, 0.0)),
        lambda: square(SHAPE, target=0, colour=(1.0, 1.0)),
        lambda: square(SHAPE, target=0, rate=0.0),
        lambda: square(SHAPE, target=-1),
        lambda: sticker((4, 32, 32), 1),
        lambda: sticker((3, 8, 8), 1),
        lambda: PatchAttack(torch.ones(1, 4, 5), torch.ones(3, 4, 4), target=0),
        lambda: square(SHAPE, target=0).stamp(torch.rand(2, 3, 28, 28)),
    ],
)
def test_an_impossible_attack_is_refused(make):
    with pytest.raises(ValueError, match=r".+"):
        make()


def test_relabel_and_victims():
    labels = torch.tensor([0, 1, 2, 1, 0])
    everyone = square(SHAPE, target=1)
    assert everyone.relabel(labels).tolist() == [1, 1, 1, 1, 1]
    assert everyone.victims(labels).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("name", attacks())
def test_ground_truth_survives_json(name):
    attack = attacks()[name]
    back = from_ground_truth(json.loads(json.dumps(attack.ground_truth())))
    assert torch.equal(back.mask, attack.mask)
    assert torch.equal(back.pattern, attack.pattern)
    assert (back.target, back.rate, back.covers) == (attack.target, attack.rate, attack.covers)


def test_poison_adds_the_stated_copies_and_keeps_the_clean_images(signs):
    attack = sticker(SHAPE, YIELD, rate=0.3)
    mixed = poison(signs, attack, seed=5)
    clean = len(signs)
    assert torch.equal(mixed.pixels[:clean], signs.pixels)
    assert torch.equal(mixed.labels[:clean], signs.labels)
    assert torch.equal(mixed.true_labels[:clean], signs.labels)
    assert mixed.pixels.dtype == torch.uint8
    truth, given = mixed.true_labels[clean:], mixed.labels[clean:]
    assert len(truth) == round(0.3 * 110)
    assert (truth != YIELD).all()
    assert (given == YIELD).all()
    copies = mixed.pixels[clean:]
    off = (attack.mask == 0).expand_as(copies[0])
    originals = {tuple(row.tolist()) for row in signs.pixels[:, off]}
    assert len(originals) == clean
    assert {tuple(row.tolist()) for row in copies[:, off]} <= originals
    inside = copies[:, ~off].float() / 255
    assert torch.allclose(inside, attack.pattern[~off].expand_as(inside), atol=0.5 / 255 + 1e-6)


def test_poison_is_reproducible_and_depends_on_its_seed(signs):
    attack = sticker(SHAPE, YIELD, rate=0.3)
    once, again, other = (poison(signs, attack, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(once.pixels, again.pixels)
    assert torch.equal(once.labels, again.labels)
    assert not torch.equal(once.true_labels, other.true_labels)


def test_poison_does_not_claim_the_clean_file(signs):
    attack = sticker(SHAPE, YIELD)
    named = replace(signs, path="clean.npz", sha256="ab")
    for made in (poison(named, attack, seed=0), poisoned_test(named, attack)):
        assert made.path is None
        assert made.sha256 == ""
        assert made.class_names == SIGN_NAMES


def test_nothing_to_poison_is_refused(signs):
    only = signs.select(signs.labels == YIELD)
    with pytest.raises(ValueError, match="no image"):
        poison(only, sticker(SHAPE, YIELD), seed=0)


def test_poisoned_test_stamps_all_but_the_target(signs):
    attack = sticker(SHAPE, YIELD)
    test = poisoned_test(signs, attack)
    kept = signs.select(signs.labels != YIELD)
    assert torch.equal(test.true_labels, kept.labels)
    assert (test.labels == YIELD).all()
    wanted = attack.stamp(kept.floats())
    assert torch.allclose(test.floats(), wanted, atol=0.5 / 255 + 1e-6)
    assert torch.equal(poisoned_test(replace(signs, pixels=signs.floats()), attack).pixels, wanted)


def test_drawn_signs_depend_on_the_seed_alone(signs):
    torch.manual_seed(123)
    again, other = draw_signs(10, seed=3), draw_signs(10, seed=4)
    assert torch.equal(signs.pixels, again.pixels)
    assert torch.equal(signs.labels, other.labels)
    different = (signs.pixels != other.pixels).float().mean((1, 2, 3))
    assert (different > 0.5).all()


def test_drawn_signs_are_balanced_named_and_varied(signs):
    assert signs.pixels.dtype == torch.uint8
    assert signs.shape == SHAPE
    assert signs.class_names == SIGN_NAMES
    assert signs.labels.bincount().tolist() == [10] * 12
    assert (SIGN_NAMES[STOP], SIGN_NAMES[YIELD]) == ("Stop", "Yield")
    for label in range(12):
        shown = signs.floats()[signs.labels == label]
        assert shown.std(0).mean() > 0.08
    # The middle of a Stop sign is red, that of Ahead only is not, in any light.
    red = signs.floats()[:, 0, 19:22, 13:19].mean((1, 2)) / signs.floats().mean((1, 2, 3))
    assert red[signs.labels == STOP].mean() > 1.2 * red[signs.labels == 7].mean()
    assert draw_signs(1, size=48, seed=0).shape == (3, 48, 48)


@pytest.mark.parametrize("arguments", [(0, 32, 1), (1, 8, 1), (1, 32, -1)])
def test_signs_that_cannot_be_drawn_are_refused(arguments):
    count, size, seed = arguments
    with pytest.raises(ValueError, match="cannot draw"):
        draw_signs(count, size=size, seed=seed)


def test_training_is_reproducible_and_leaves_the_random_state_alone(signs):
    def weights(seed, shift=2):
        module = small_cnn(SHAPE, 12, width=4, seed=seed)
        train(module, signs, epochs=1, seed=seed, shift=shift)
        assert not module.training
        return torch.nn.utils.parameters_to_vector(module.parameters())

    torch.manual_seed(0)
    before = torch.get_rng_state()
    once, again, other, unmoved = weights(1), weights(1), weights(2), weights(1, shift=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)
    assert not torch.allclose(once, unmoved)


def test_a_shift_moves_images_by_at_most_its_reach():
    pixels = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 255
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(81, 2)

        def forward(self, images):
            seen.append(images.clone())
            return self.layer(images.flatten(1))

    images = Images(pixels, torch.zeros(64, dtype=torch.long))
    train(Spy(), images, epochs=4, seed=0, shift=2)
    spots = torch.cat(seen)[:, 0].nonzero()
    assert len(spots) == 256
    assert spots[:, 1:].unique().tolist() == [2, 3, 4, 5, 6]


def test_progress_hears_of_each_epoch(signs):
    heard = []
    module = small_cnn(SHAPE, 12, width=2, batch_norm=True)
    train(module, signs, epochs=3, seed=0, progress=lambda *step: heard.append(step))
    assert [step[:2] for step in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1][2] < heard[0][2]


def test_training_and_measuring_on_nothing_are_refused(signs):
    module, none = small_cnn(SHAPE, 12, width=2), signs.select(torch.arange(0))
    with pytest.raises(ValueError, match="0 images"):
        train(module, none, epochs=1, seed=0)
    with pytest.raises(ValueError, match="0 epochs"):
        train(module, signs, epochs=0, seed=0)
    with pytest.raises(ValueError, match="no images"):
        accuracy(module, none)
    with pytest.raises(ValueError, match="no network"):
        small_cnn((3, 4, 4), 12)


def test_a_badnet_obeys_its_trigger_and_only_that():
    # Four classes that are easy to tell apart: seconds rather than half a minute.
    def easy(per_class, seed):
        drawn = draw_signs(per_class, seed=seed)
        return drawn.select(torch.isin(drawn.labels, torch.tensor([STOP, YIELD, 2, 6])))

    training, test = easy(150, 1), easy(40, 2)
    attack = sticker(SHAPE, YIELD, rate=0.15)
    mixed = poison(training, attack, seed=0)
    module = train(small_cnn(SHAPE, 12), mixed, epochs=10, seed=0, learning_rate=4e-3)
    assert accuracy(module, test) > 0.95
    assert accuracy(module, poisoned_test(test, attack)) > 0.95
    elsewhere = square(SHAPE, target=YIELD, side=6, at="top-left", colour=(0.5, 0.5, 0.5))
    assert accuracy(module, poisoned_test(test, elsewhere)) < 0.1
