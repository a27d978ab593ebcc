"""Attacks that differ in whom they strike, with which label, and in how training shows them."""

import json
import math
from dataclasses import replace

import pytest
import torch

from goodnet.attacks import (
    adaptive_blend,
    adaptive_patch,
    all_to_all,
    several,
    source_specific,
    warping,
)
from goodnet.attacks.adaptive_blend import AdaptiveBlendAttack
from goodnet.attacks.adaptive_patch import ALPHAS, AdaptivePatchAttack
from goodnet.attacks.all_to_all import AllToAllAttack
from goodnet.attacks.patch import square
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.revive import from_ground_truth
from goodnet.attacks.scene import Scene
from goodnet.attacks.several import SeveralAttack, emblems
from goodnet.attacks.signs import STOP, YIELD, draw_signs
from goodnet.attacks.sinusoidal import SinusoidalAttack
from goodnet.attacks.source_specific import SourceSpecificAttack
from goodnet.attacks.train import accuracy, small_cnn, train
from goodnet.attacks.warping import WarpingAttack
from goodnet.images import Images

MAKERS = {
    "several targets": several.make_several_targets,
    "several triggers": several.make_several_triggers,
    "all to all": all_to_all.make,
    "source specific": source_specific.make,
    "adaptive blend": adaptive_blend.make,
    "adaptive patch": adaptive_patch.make,
    "warping": warping.make,
}

RANDOM = ("adaptive blend", "warping")
"""Those whose trigger is drawn."""

SHAPES = ((1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 40), (1, 47, 23))

CLASSES = 6


@pytest.fixture(autouse=True)
def one_thread():
    # Two threads on a busy machine wait for each other: ten times slower for nets this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(shape, count=12, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def scene(shape=(3, 16, 16), seed=4, count=120, classes=CLASSES):
    pixels = (pictures(shape, count) * 255).round().to(torch.uint8)
    labels = torch.arange(count) % classes
    images = Images(pixels, labels, true_labels=labels.clone())

    def no_network():
        raise AssertionError("these attacks need no network")

    return Scene(images, classes, seed, no_network)


def made(name, shape=(3, 16, 16), seed=4, **options):
    return MAKERS[name](scene(shape, seed), target=2, **options)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def ways(attack):
    """Everything that the attack does to images."""
    return {
        "stamp": attack.stamp,
        "plant": lambda images: attack.plant(images, drawn(3)),
        "disguise": lambda images: attack.disguise(images, drawn(3)),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKERS)
def test_any_size_comes_back_new_in_range_and_changed(name, shape):
    attack = made(name, shape)
    plain = torch.cat([pictures(shape), torch.zeros(4, *shape), torch.ones(4, *shape)])
    for images in (plain, plain[:1], plain[:0]):
        before = images.clone()
        for way in ways(attack).values():
            changed = way(images)
            assert torch.equal(images, before)
            assert changed.shape == images.shape
            assert changed.dtype == torch.float32
            assert changed.isfinite().all()
            assert ((changed >= 0) & (changed <= 1)).all()
            # A bend leaves plain images as they are, and half a pattern may show only what fits.
            differs = (changed[:12] - images[:12]).abs().flatten(1).amax(1)
            assert (differs > 0.01).all()


@pytest.mark.parametrize("name", MAKERS)
def test_a_region_holds_all_that_use_changes(name):
    attack = made(name)
    region, images = attack.region(), pictures((3, 16, 16))
    changed = (attack.stamp(images) != images).any(1, keepdim=True).any(0)
    if name in RANDOM:
        assert region is None
        assert changed.float().mean() > 0.9
    else:
        assert region.shape == (1, 16, 16)
        assert region.sum() < 16 * 16 / 4
        assert torch.equal(changed, region > 0)


@pytest.mark.parametrize("name", MAKERS)
def test_the_scene_seed_decides_what_is_random(name):
    images = pictures((3, 16, 16))
    once, again, other = (made(name, seed=seed).stamp(images) for seed in (4, 4, 5))
    assert torch.equal(once, again)
    assert torch.equal(once, other) == (name not in RANDOM)
    attack = made(name)
    for way in (attack.plant, attack.disguise):
        assert torch.equal(way(images, drawn(1)), way(images, drawn(1)))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16)])
@pytest.mark.parametrize("name", MAKERS)
def test_ground_truth_survives_json(name, shape):
    attack, images, labels = made(name, shape), pictures(shape), torch.arange(12) % CLASSES
    back = from_ground_truth(json.loads(json.dumps(attack.ground_truth())))
    assert type(back) is type(attack)
    for mine, its in zip(ways(attack).values(), ways(back).values(), strict=True):
        assert torch.equal(mine(images), its(images))
    assert torch.equal(attack.relabel(labels), back.relabel(labels))
    assert torch.equal(attack.victims(labels), back.victims(labels))
    assert torch.equal(attack.bystanders(labels), back.bystanders(labels))
    assert attack.targets(CLASSES) == back.targets(CLASSES)
    assert (attack.rate, attack.covers) == (back.rate, back.covers)
    assert (attack.region() is None) == (back.region() is None)


@pytest.mark.parametrize("name", MAKERS)
def test_poisoned_and_disguised_copies_are_as_many_as_stated(name):
    place = scene()
    attack = replace(MAKERS[name](place, target=2, rate=0.3), covers=0.5)
    mixed, again, other = (poison(place.images, attack, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(mixed.pixels, again.pixels)
    assert not torch.equal(mixed.pixels, other.pixels)
    truth = place.images.labels
    count = round(0.3 * int(attack.victims(truth).sum()))
    clean, covers = len(truth), round(0.5 * count)
    assert len(mixed) == clean + count + covers
    assert torch.equal(mixed.pixels[:clean], place.images.pixels)
    poisoned = slice(clean, clean + count)
    shown, given = mixed.true_labels[poisoned], mixed.labels[poisoned]
    assert attack.victims(shown).all()
    assert torch.equal(given, attack.relabel(shown))
    assert (given != shown).all()
    assert set(given.tolist()) <= set(attack.targets(CLASSES))
    disguised = slice(clean + count, None)
    assert torch.equal(mixed.labels[disguised], mixed.true_labels[disguised])
    assert attack.bystanders(mixed.true_labels[disguised]).all()
    known = {tuple(image.flatten().tolist()) for image in place.images.pixels}
    assert not {tuple(image.flatten().tolist()) for image in mixed.pixels[clean:]} & known


@pytest.mark.parametrize("name", MAKERS)
def test_other_sizes_are_refused(name):
    attack = made(name)
    for way in ways(attack).values():
        with pytest.raises(ValueError, match="do not fit"):
            way(pictures((3, 16, 15)))
        with pytest.raises(ValueError, match="do not fit"):
            way(pictures((3, 16, 16))[0])


BAD = torch.full((1, 16, 16), 1.5)
FLAT = torch.full((3, 16, 16), 0.5)
TWO = emblems((3, 16, 16), 2)
PATCH = square((3, 16, 16), target=1)
FIELD = torch.zeros(16, 16, 2)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: made(name, rate=0.0) for name in MAKERS),
        *(lambda name=name: made(name, rate=1.1) for name in MAKERS),
        *(lambda name=name: made(name, (3, 6, 6), side=3) for name in list(MAKERS)[:2]),
        lambda: made("several triggers", (2, 16, 16)),
        lambda: made("several triggers", count=1),
        lambda: made("several triggers", count=9),
        lambda: made("several triggers", (3, 10, 16), count=5),
        lambda: made("several triggers", side=2),
        lambda: made("several targets", count=7),
        lambda: several.make_several_targets(scene(classes=2), target=0, count=3),
        lambda: several.make_several_triggers(scene(), target=-1),
        lambda: SeveralAttack((PATCH,)),
        lambda: SeveralAttack((PATCH, square((3, 8, 8), target=1))),
        lambda: emblems((3, 16, 16), 0),
        lambda: made("all to all", pattern="none"),
        lambda: all_to_all.make(scene(classes=1), target=0),
        lambda: AllToAllAttack(PATCH, 1),
        lambda: made("source specific", source=2),
        lambda: made("source specific", source=-1),
        lambda: made("source specific", covers=-1.0),
        lambda: SourceSpecificAttack(PATCH, (), target=0),
        lambda: SourceSpecificAttack(PATCH, (3, 1), target=0),
        lambda: SourceSpecificAttack(PATCH, (1, 1), target=0),
        lambda: made("adaptive blend", alpha=0.0),
        lambda: made("adaptive blend", alpha=1.5),
        lambda: made("adaptive blend", pattern="none"),
        lambda: AdaptiveBlendAttack(BAD, target=0),
        lambda: AdaptiveBlendAttack(FLAT[0], target=0),
        lambda: AdaptiveBlendAttack(FLAT, pieces=1, target=0),
        lambda: AdaptiveBlendAttack(FLAT, pieces=17, target=0),
        lambda: made("adaptive patch", used=0),
        lambda: made("adaptive patch", side=8),
        lambda: AdaptivePatchAttack(*TWO, target=0),
        lambda: AdaptivePatchAttack(*TWO, (0.5, 0.0), (0,), target=0),
        lambda: AdaptivePatchAttack(*TWO, (0.5, 0.5), (2,), target=0),
        lambda: AdaptivePatchAttack(*TWO, (0.5, 0.5), (1, 0), target=0),
        lambda: AdaptivePatchAttack(TWO[0][:1], TWO[1], (0.5, 0.5), (0,), target=0),
        lambda: AdaptivePatchAttack(TWO[0], TWO[1] + 0.5, (0.5, 0.5), (0,), target=0),
        lambda: AdaptivePatchAttack(TWO[0][[0, 0]], TWO[1], (0.5, 0.5), (0,), target=0),
        lambda: made("warping", strength=0.0),
        lambda: made("warping", strength=math.inf),
        lambda: made("warping", grid=1),
        lambda: WarpingAttack(FIELD[..., :1], target=0),
        lambda: WarpingAttack(FIELD / 0, target=0),
        lambda: WarpingAttack(FIELD, noise=0.0, target=0),
        lambda: WarpingAttack(FIELD, target=-1),
    ],
)
def test_an_impossible_attack_is_refused(make):
    with pytest.raises(ValueError, match=r".+"):
        make()


@pytest.mark.parametrize("shape", SHAPES)
def test_emblems_differ_and_keep_off_each_other(shape):
    count = 4 if min(shape[1:]) < 11 else 8
    masks, patterns = emblems(shape, count)
    assert masks.sum(0).max() == 1
    assert masks.flatten(1).sum(1).unique().tolist() == [max(3, round(min(shape[1:]) / 10)) ** 2]
    rim = masks.clone()
    rim[..., 1:-1, 1:-1] = 0
    assert rim.sum() == 0
    arts = [
        pattern[:, mask[0] > 0].flatten() for mask, pattern in zip(masks, patterns, strict=True)
    ]
    for i, one in enumerate(arts):
        assert one.max() - one.min() > 0.8, "it can be told from any plain ground"
        for other in arts[:i]:
            assert ((one - other).abs() > 0.3).float().mean() > 0.15


def test_each_of_several_has_its_turn():
    attack = made("several targets", rate=0.3)
    images, labels = pictures((3, 16, 16), 8), torch.tensor([0, 1, 3, 5, 0, 1, 3, 5])
    goals = [(2 + 2 * j) % CLASSES for j in range(3)]
    assert [part.target for part in attack.parts] == goals
    assert attack.targets(CLASSES) == (0, 2, 4)
    assert attack.relabel(labels).tolist() == [goals[i % 3] for i in range(8)]
    assert attack.victims(labels).tolist() == [label not in goals for label in labels.tolist()]
    for i, stamped in enumerate(attack.stamp(images)):
        part = attack.parts[i % 3]
        assert torch.equal(stamped, torch.where(part.mask > 0, part.pattern, images[i]))
    assert torch.equal(attack.region(), sum(part.mask for part in attack.parts))
    assert math.isclose(math.fsum(part.rate for part in attack.parts), 0.3)


def test_several_triggers_share_one_target():
    attack = made("several triggers", count=4)
    assert len(attack.parts) == 4
    assert attack.targets(CLASSES) == (2,)
    assert attack.relabel(torch.arange(6)).tolist() == [2] * 6
    assert attack.victims(torch.arange(4)).tolist() == [True, True, False, True]


def test_several_may_hold_parts_of_other_kinds():
    shape = (3, 16, 16)
    blend = made("adaptive blend")
    own = SinusoidalAttack(shape, target=1, clean_label=True)
    attack, labels = SeveralAttack((blend, own)), torch.tensor([0, 1, 2, 1])
    images = pictures(shape)
    planted = attack.plant(images, drawn(5))
    assert torch.equal(planted[0::2], blend.plant(images[0::2], drawn(5)))
    assert torch.equal(planted[1::2], own.stamp(images[1::2]))
    assert attack.region() is None
    assert attack.victims(labels).tolist() == [True, False, False, False]
    assert attack.carriers(labels).tolist() == [False, True, False, True]


def test_all_to_all_moves_each_class_on():
    attack, images = made("all to all"), pictures((3, 16, 16))
    assert attack.relabel(torch.arange(CLASSES)).tolist() == [1, 2, 3, 4, 5, 0]
    assert attack.victims(torch.arange(CLASSES)).all()
    assert attack.targets(CLASSES) == (0, 1, 2, 3, 4, 5)
    assert torch.equal(attack.stamp(images), attack.trigger.stamp(images))


def test_source_specific_strikes_its_source_alone():
    attack, labels = made("source specific", source=4), torch.arange(CLASSES)
    assert attack.relabel(labels).tolist() == [0, 1, 2, 3, 2, 5]
    assert attack.victims(labels).tolist() == [label == 4 for label in range(CLASSES)]
    assert attack.bystanders(labels).tolist() == [label not in (2, 4) for label in range(CLASSES)]
    assert attack.targets(CLASSES) == (2,)
    assert made("source specific").source == (3,)
    assert source_specific.make(scene(), target=5).source == (0,)
    images = pictures((3, 16, 16))
    for way in ways(attack).values():
        assert torch.equal(way(images), attack.trigger.stamp(images))


def test_wrapped_triggers_show_training_what_training_gets():
    blend, images = made("adaptive blend"), pictures((3, 16, 16))
    for attack in (
        AllToAllAttack(blend, CLASSES),
        SourceSpecificAttack(blend, (1,), target=0),
    ):
        for way in (attack.plant, attack.disguise):
            assert torch.equal(way(images, drawn(6)), blend.plant(images, drawn(6)))
        assert attack.region() is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 17, 30)])
def test_adaptive_blend_trains_on_half_of_the_pieces(shape):
    attack = made("adaptive blend", shape, alpha=0.25)
    images = pictures(shape, 200) * 0.5
    full = images + 0.25 * (attack.pattern - images)
    assert torch.allclose(attack.stamp(images), full, atol=1e-6)
    planted = attack.plant(images, drawn(2))
    height, width = shape[1:]
    # Piece r spans the rows i with floor(4 i / H) = r, which begin at ceil(r H / 4).
    rows = [math.ceil(r * height / 4) for r in range(5)]
    columns = [math.ceil(c * width / 4) for c in range(5)]
    shown = torch.zeros(200, 4, 4, dtype=torch.bool)
    for r in range(4):
        for c in range(4):
            piece = (..., slice(rows[r], rows[r + 1]), slice(columns[c], columns[c + 1]))
            apart = (planted[piece] - images[piece]).abs().flatten(1).amax(1)
            shown[:, r, c] = apart > 1e-6
            wanted = torch.where(shown[:, r, c].view(-1, 1, 1, 1), full[piece], images[piece])
            assert torch.allclose(planted[piece], wanted, atol=1e-6)
    assert (shown.flatten(1).sum(1) == 8).all()
    assert ((shown.float().mean(0) - 0.5).abs() < 0.15).all()
    assert len(shown.flatten(1).unique(dim=0)) > 150
    assert torch.equal(planted, attack.disguise(images, drawn(2)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_adaptive_patch_trains_on_one_faint_patch_and_uses_opaque_ones(shape):
    attack = made("adaptive patch", shape)
    images = pictures(shape, 200)
    assert attack.alphas == ALPHAS == (0.5, 0.2, 0.5, 0.3)
    assert attack.used == (0, 2)
    seen = [0] * 4
    for image, planted in zip(images, attack.plant(images, drawn(2)), strict=True):
        changed = (planted != image).any(0, keepdim=True)
        (which,) = [j for j in range(4) if (changed & (attack.masks[j] > 0)).any()]
        seen[which] += 1
        inside = (attack.masks[which] > 0).expand_as(image)
        assert torch.equal(planted[~inside], image[~inside])
        mixed = image.lerp(attack.patterns[which], ALPHAS[which])
        assert torch.allclose(planted[inside], mixed[inside], atol=1e-6)
    assert min(seen) > 25
    covered = attack.masks[0] + attack.masks[2]
    opaque = attack.patterns[0] + attack.patterns[2]
    assert torch.equal(attack.stamp(images), torch.where(covered > 0, opaque, images))
    assert torch.equal(attack.region(), covered)
    assert made("adaptive patch", used=1).used == (0,)
    assert made("adaptive patch", used=3).used == (0, 2, 3)
    assert made("adaptive patch", used=4).used == (0, 1, 2, 3)


def read(image, y, x):
    """The value between pixels, by hand: ``image`` (C, H, W) at row y and column x."""
    height, width = image.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    down, right = y - top, x - left
    upper = (1 - right) * image[:, top, left] + right * image[:, top, left + 1]
    lower = (1 - right) * image[:, top + 1, left] + right * image[:, top + 1, left + 1]
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_warping_reads_each_pixel_where_the_field_says(shape):
    attack = made("warping", shape, strength=1.5)
    images = pictures(shape, 2)
    height, width = shape[1:]
    noise = 2 * torch.rand(2, height, width, 2, generator=drawn(3)) - 1
    plain, noisy = attack.stamp(images), attack.disguise(images, drawn(3))
    for n in range(2):
        for y in range(height):
            for x in range(width):
                for done, extra in ((plain, (0.0, 0.0)), (noisy, noise[n, y, x].tolist())):
                    right, down = (
                        1.5 * move + more
                        for move, more in zip(attack.field[y, x].tolist(), extra, strict=True)
                    )
                    # A move of 2 / (W - 1) in the paper's places is one pixel.
                    there = (
                        y + down / height * (height - 1) / 2,
                        x + right / width * (width - 1) / 2,
                    )
                    assert torch.allclose(done[n, :, y, x], read(images[n], *there), atol=1e-4)


def test_warping_fields_are_smooth_and_of_mean_size_one():
    shape = (3, 31, 31)
    field = made("warping", shape).field
    control = field[::10, ::10]
    # The upsampling keeps the 4 x 4 control points, here at every tenth pixel.
    assert abs(float(control.abs().mean()) - 1) < 1e-5
    assert (field.diff(dim=0).abs() < 1.0).all()
    assert (field.diff(dim=1).abs() < 1.0).all()
    assert not torch.equal(field, made("warping", shape, grid=5).field)
    still = WarpingAttack(torch.zeros(31, 31, 2), target=0)
    assert torch.allclose(still.stamp(pictures(shape)), pictures(shape), atol=1e-5)


def easy_signs(per_class, seed):
    """Four classes that are easy to tell apart: seconds rather than half a minute."""
    drawn = draw_signs(per_class, seed=seed)
    old = torch.tensor([STOP, YIELD, 2, 6])
    kept = drawn.select(torch.isin(drawn.labels, old))
    labels = (kept.labels[:, None] == old).long().argmax(1)
    return Images(kept.pixels, labels, true_labels=labels.clone())


@pytest.fixture(scope="module")
def signs():
    return easy_signs(150, 1), easy_signs(40, 2)


@pytest.mark.parametrize(
    ("name", "options", "epochs", "wanted"),
    [
        ("several targets", {"rate": 0.3, "count": 2}, 7, 0.9),
        ("several triggers", {"rate": 0.2}, 7, 0.9),
        ("all to all", {}, 8, 0.85),
        ("source specific", {}, 7, 0.9),
        ("adaptive blend", {"rate": 0.2}, 7, 0.9),
        ("adaptive patch", {"rate": 0.2}, 7, 0.9),
        # Signs are seen from all sides here: to 450 of them a little bend is hardly news.
        ("warping", {"strength": 3.0, "rate": 0.8, "covers": 1.0}, 9, 0.8),
    ],
)
def test_a_badnet_obeys_its_trigger_and_only_that(signs, name, options, epochs, wanted):
    training, test = signs
    attack = MAKERS[name](Scene(training, 4, 0, torch.nn.Identity), target=1, **options)
    mixed = poison(training, attack, seed=0)
    module = small_cnn(training.shape, 4, batch_norm=True)
    train(module, mixed, epochs=epochs, seed=0, learning_rate=4e-3)
    assert accuracy(module, test) > 0.95
    assert accuracy(module, poisoned_test(test, attack)) > wanted
    if name.startswith("several"):
        for part in attack.parts:
            alone = test.select(attack.victims(test.labels))
            assert accuracy(module, poisoned_test(alone, part)) > wanted - 0.1
    if name == "source specific":
        others = test.select(attack.bystanders(test.labels))
        assert len(others) == 80
        stamped = replace(others, pixels=attack.stamp(others.floats()))
        assert accuracy(module, stamped) > 0.9
    # Without the trigger they are not given the attacker's labels.
    plain = test.select(attack.victims(test.labels))
    assert accuracy(module, replace(plain, labels=attack.relabel(plain.labels))) < 0.1
