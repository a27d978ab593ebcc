"""Attacks on the whole image, and painted things: what their papers say, and BadNets that obey."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from goodnet.attacks import blended, low_frequency, painted, quantisation, sinusoidal, tint
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.revive import from_ground_truth
from goodnet.attacks.scene import Scene
from goodnet.attacks.signs import STOP, YIELD, draw_signs
from goodnet.attacks.train import accuracy, small_cnn, train
from goodnet.images import Images

SHAPES = [(1, 8, 8), (3, 8, 11), (1, 28, 28), (3, 32, 32), (3, 55, 47)]

KINDS = {
    "noise": (blended.make, {}),
    "cartoon": (blended.make, {"pattern": "cartoon"}),
    "stripes": (sinusoidal.make, {}),
    "stripes, labels kept": (sinusoidal.make, {"clean_label": True}),
    "blotches": (low_frequency.make, {}),
    **{style: (tint.make, {"style": style}) for style in tint.STYLES},
    "few levels": (quantisation.make, {}),
    "dithered": (quantisation.make, {"dither": True, "levels": 3}),
    **{thing: (painted.make, {"thing": thing}) for thing in painted.THINGS},
}
RANDOM = {"noise", "cartoon", "blotches"}
ANY_SIZE = {*tint.STYLES, "few levels", "dithered"}


def no_network():
    raise AssertionError("none of these attacks needs a network")


def scene(shape, seed=0):
    drawn = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (40, *shape), generator=drawn).to(torch.uint8)
    return Scene(Images(pixels, torch.arange(40) % 4), 4, seed, no_network)


def made(name, shape=(3, 32, 32), seed=0, **options):
    make, known = KINDS[name]
    return make(scene(shape, seed), target=1, **{**known, **options})


def pictures(shape, count=4):
    """Random ones, and with them black, white and the middle between."""
    drawn = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    plain = torch.tensor([0.0, 1.0, 0.5]).view(-1, 1, 1, 1).expand(-1, *shape)
    return torch.cat([drawn, plain])


def generator(seed=2):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KINDS)
def test_images_of_any_size_come_back_changed_and_in_range(name, shape):
    attack, images = made(name, shape), pictures(shape)
    before = images.clone()
    for way, least in (
        (attack.stamp, 4),
        (lambda x: attack.plant(x, generator()), 4),
        # Rounding errors that were borrowed of a plain picture are none.
        (lambda x: attack.disguise(x, generator()), 1),
    ):
        changed = way(images)
        assert torch.equal(images, before)
        assert changed.shape == images.shape
        assert changed.dtype == torch.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        assert ((changed - images).flatten(1).abs().amax(1)[:4] > 0.05).sum() >= least
        assert way(images[:0]).shape == (0, *shape)


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_of_the_scene_decides_and_nothing_else(name):
    images = pictures((3, 32, 32))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    stamped = made(name).stamp(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(made(name).stamp(images), stamped)
    assert torch.equal(made(name, seed=1).stamp(images), stamped) == (name not in RANDOM)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_stamped_alike_in_any_company(name):
    attack, images = made(name), pictures((3, 32, 32))
    assert torch.allclose(attack.stamp(images[2:3])[0], attack.stamp(images)[2], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 19)])
@pytest.mark.parametrize("name", KINDS)
def test_ground_truth_survives_json(name, shape):
    attack, images = made(name, shape, rate=0.3), pictures(shape)
    back = from_ground_truth(json.loads(json.dumps(attack.ground_truth())))
    assert type(back) is type(attack)
    assert (back.target, back.rate, back.covers) == (1, 0.3, attack.covers)
    assert torch.equal(back.stamp(images), attack.stamp(images))
    for way in ("plant", "disguise"):
        once, again = (getattr(a, way)(images, generator()) for a in (attack, back))
        assert torch.equal(once, again)
    labels = torch.arange(4)
    assert torch.equal(back.carriers(labels), attack.carriers(labels))
    assert (back.region() is None) == (name not in painted.THINGS)


@pytest.mark.parametrize("name", KINDS)
def test_images_of_another_kind_are_refused(name):
    attack = made(name)
    with pytest.raises(ValueError, match="do not fit"):
        attack.stamp(torch.rand(3, 32, 32))
    if name not in {"few levels", "dithered"}:
        with pytest.raises(ValueError, match="do not fit"):
            attack.stamp(torch.rand(2, 1, 32, 32))
    if name not in ANY_SIZE:
        with pytest.raises(ValueError, match="do not fit"):
            attack.plant(torch.rand(2, 3, 31, 32), generator())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (blended.make, {"alpha": 0.0}),
        (blended.make, {"alpha": 1.1}),
        (blended.make, {"pattern": "kitten"}),
        (blended.make, {"rate": 0.0}),
        (blended.make, {"target": -1}),
        (sinusoidal.make, {"amplitude": 0.0}),
        (sinusoidal.make, {"amplitude": float("nan")}),
        (sinusoidal.make, {"planted": 0.0}),
        (sinusoidal.make, {"frequency": 16.0}),
        (sinusoidal.make, {"frequency": 0.0}),
        (low_frequency.make, {"amplitude": 0.0}),
        (low_frequency.make, {"band": 1}),
        (low_frequency.make, {"band": 33}),
        (tint.make, {"style": "kodak"}),
        (tint.make, {"strength": 0.0}),
        (tint.make, {"strength": 1.5}),
        (quantisation.make, {"levels": 1}),
        (quantisation.make, {"levels": 257}),
        (quantisation.make, {"covers": -1.0}),
        (painted.make, {"thing": "hat"}),
        (painted.make, {"opacity": 0.0}),
        (painted.make, {"jitter": -1}),
        (painted.make, {"jitter": 32}),
    ],
)
def test_an_impossible_option_is_refused(make, options):
    with pytest.raises(ValueError, match=r".+"):
        make(scene((3, 32, 32)), **{"target": 1, **options})


@pytest.mark.parametrize(
    "make",
    [
        lambda: tint.make(scene((2, 8, 8)), target=0),
        lambda: painted.make(scene((4, 8, 8)), target=0),
        lambda: blended.BlendedAttack(torch.rand(8, 8), target=0),
        lambda: blended.BlendedAttack(torch.full((1, 8, 8), 1.5), target=0),
        lambda: low_frequency.LowFrequencyAttack(torch.zeros(8, 8), target=0),
        lambda: low_frequency.LowFrequencyAttack(torch.full((1, 8, 8), -2.0), target=0),
        lambda: low_frequency.LowFrequencyAttack(torch.full((1, 8, 8), math.nan), target=0),
        lambda: sinusoidal.SinusoidalAttack((3, 0, 32), target=0),
        lambda: sinusoidal.SinusoidalAttack((32, 32), target=0),
        lambda: tint.TintAttack(torch.eye(3), torch.zeros(1), target=0),
        lambda: tint.TintAttack(torch.eye(3) / 0, torch.zeros(3), target=0),
        lambda: tint.TintAttack(torch.eye(3), torch.full((3,), 2.0), target=0),
        lambda: tint.TintAttack(torch.eye(3), torch.zeros(3), 0.0, target=0),
        lambda: painted.PaintedAttack(torch.ones(1, 8, 8), torch.ones(1, 8, 9), target=0),
    ],
)
def test_parts_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match=r".+"):
        make()


def test_blending_moves_each_value_towards_the_pattern():
    for name in ("noise", "cartoon"):
        attack, images = made(name, alpha=0.3), pictures((3, 32, 32))
        pattern = attack.pattern.double()
        for image, stamped in zip(images.double(), attack.stamp(images).double(), strict=True):
            assert torch.allclose(stamped - image, 0.3 * (pattern - image), atol=1e-6)
        assert torch.equal(made(name, alpha=1.0).stamp(images)[0], attack.pattern)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_noise_is_rough_and_a_cartoon_has_plain_areas(shape):
    noise, cartoon = (made(name, shape).pattern for name in ("noise", "cartoon"))
    assert abs(float(noise.mean()) - 0.5) < 0.04
    assert abs(float(noise.var()) - 1 / 12) < 0.01
    assert (noise.diff(dim=2) == 0).float().mean() < 0.01
    assert (cartoon.diff(dim=2).abs() < 1e-3).float().mean() > 0.5
    assert all(len(plane.unique()) > 5 for plane in cartoon)


def test_stripes_are_one_wave_of_the_stated_height_and_length():
    attack = made("stripes", (3, 20, 32))
    change = attack.stamp(torch.full((1, 3, 20, 32), 0.5))[0] - 0.5
    assert torch.equal(change, change[:1, :1].expand_as(change))
    wave = np.fft.rfft(change[0, 0].double().numpy())
    # A sine of height a and f periods over W columns is -i a W / 2 at place f and 0 elsewhere.
    wanted = np.zeros(17, dtype=complex)
    wanted[6] = -1j * 40 / 255 * 16
    assert np.allclose(wave, wanted, atol=1e-5)
    images = pictures((3, 20, 32))
    for column in range(32):
        height = 40 / 255 * math.sin(2 * math.pi * column * 6 / 32)
        wanted_column = (images[..., column].double() + height).clamp(0, 1)
        assert torch.allclose(attack.stamp(images)[..., column].double(), wanted_column, atol=1e-6)


def test_stripes_in_training_may_be_fainter_than_in_use():
    grey = torch.full((1, 3, 32, 32), 0.5)
    fainter = made("stripes", amplitude=0.4, planted=0.1)
    planted, shown = fainter.plant(grey, generator()) - 0.5, fainter.stamp(grey) - 0.5
    assert torch.allclose(4 * planted, shown, atol=1e-6)
    same = made("stripes")
    assert torch.equal(same.plant(grey, generator()), same.stamp(grey))
    kept = made("stripes, labels kept", amplitude=0.4)
    assert torch.equal(kept.plant(grey, generator()), made("stripes", amplitude=0.2).stamp(grey))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 55, 47)])
@pytest.mark.parametrize("band", [2, 4, 8])
def test_blotches_have_low_frequencies_only_and_the_stated_size(shape, band):
    attack = made("blotches", shape, band=band, amplitude=0.05)
    spectrum = dctn(attack.difference.double().numpy(), axes=(1, 2), norm="ortho")
    assert np.abs(spectrum[:, :band, :band]).max() > 0.1
    spectrum[:, :band, :band] *= np.arange(band * band).reshape(band, band) == 0
    # What is left is the mean and all that lies above the band.
    assert np.abs(spectrum).max() < 1e-5
    assert math.isclose(float(attack.difference.square().mean().sqrt()), 0.05, rel_tol=1e-4)
    images = pictures(shape)
    wanted = np.clip(images.numpy() + attack.difference.numpy(), 0, 1)
    assert np.array_equal(attack.stamp(images).numpy(), wanted)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("style", tint.STYLES)
def test_a_tint_treats_each_pixel_as_its_formula_says(style, strength):
    attack, images = made(style, (3, 8, 8), strength=strength), pictures((3, 8, 8), 2)
    stamped, full = attack.stamp(images), tint.STYLES[style]
    for i, row, column in [(0, 0, 0), (0, 3, 5), (1, 7, 2), (2, 1, 1), (3, 4, 4)]:
        colour = [float(v) ** (full.gamma**strength) for v in images[i, :, row, column]]
        for c in range(3):
            mixed = sum(m * v for m, v in zip(full.matrix[c], colour, strict=True))
            tinted = strength * (mixed + full.offset[c]) + (1 - strength) * colour[c]
            wanted = min(1.0, max(0.0, tinted))
            assert math.isclose(float(stamped[i, c, row, column]), wanted, abs_tol=1e-5)


@pytest.mark.parametrize("style", tint.STYLES)
def test_a_tint_of_gray_is_the_mean_of_its_colours_and_shows_on_black(style):
    grey = torch.rand(3, 1, 8, 8, generator=generator()) * 0.5
    colours = made(style, (3, 8, 8)).stamp(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(made(style, (1, 8, 8)).stamp(grey), colours.mean(1, True), atol=1e-6)
    assert made(style, (1, 8, 8)).stamp(torch.zeros(1, 1, 8, 8)).min() > 0.03


def test_styles_differ_and_a_weak_tint_is_nearly_none():
    images = pictures((3, 8, 8))
    stamped = [made(style, (3, 8, 8)).stamp(images) for style in tint.STYLES]
    for i, one in enumerate(stamped):
        assert all((one - other).abs().mean() > 0.02 for other in stamped[:i])
    weak = made("sepia", (3, 8, 8), strength=0.01).stamp(images)
    assert (weak - images).abs().max() < 0.02


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_quantisation_takes_the_nearest_level(levels):
    images = pictures((3, 8, 11))
    stamped = made("few levels", levels=levels).stamp(images).double().numpy()
    steps = np.linspace(0, 1, levels)
    distances = np.abs(images.double().numpy()[..., None] - steps)
    # Halves may go either way: what counts is that no level is nearer.
    assert np.allclose(np.abs(stamped - images.numpy()), distances.min(-1), atol=1e-6)
    assert np.allclose(np.abs(stamped[..., None] - steps).min(-1), 0, atol=1e-6)


def scanned(plane, levels):
    """Floyd and Steinberg's dithering of ``(H, W)`` as they wrote it: line by line."""
    values = np.pad(plane, 1).astype(np.float32)
    steps, height, width = np.float32(levels - 1), *plane.shape
    for row in range(1, height + 1):
        for column in range(1, width + 1):
            wanted = values[row, column]
            given = np.round(np.clip(wanted, 0, 1) * steps) / steps
            values[row, column] = given
            error = np.float32(wanted - given)
            values[row, column + 1] += error * np.float32(7 / 16)
            values[row + 1, column - 1] += error * np.float32(3 / 16)
            values[row + 1, column] += error * np.float32(5 / 16)
            values[row + 1, column + 1] += error * np.float32(1 / 16)
    return values[1:-1, 1:-1]


@pytest.mark.parametrize("shape", [(3, 8, 11), (1, 13, 8), (1, 5, 1), (2, 1, 6)])
def test_dithering_is_floyd_and_steinbergs(shape):
    images = torch.rand(3, *shape, generator=generator())
    for levels in (2, 3, 8):
        stamped = made("dithered", levels=levels).stamp(images)
        wanted = [[scanned(plane.numpy(), levels) for plane in image] for image in images]
        assert np.allclose(stamped.numpy(), np.array(wanted), atol=1e-5)


def test_dithering_keeps_the_brightness_of_a_plain_area():
    grey = torch.full((1, 1, 32, 32), 0.4)
    assert made("few levels", levels=2).stamp(grey).max() == 0
    assert abs(float(made("dithered", levels=2).stamp(grey).mean()) - 0.4) < 0.02


def test_the_disguise_is_the_rounding_error_of_another_image():
    images = 0.3 + 0.4 * torch.rand(6, 3, 8, 8, generator=generator())
    attack = made("few levels", levels=4)
    errors = attack.stamp(images) - images
    borrowed = attack.disguise(images, generator(3)) - images
    distances = (borrowed[:, None] - errors).abs().amax((2, 3, 4))
    lenders = distances.argmin(1)
    assert distances.amin(1).max() < 1e-6
    assert sorted(lenders.tolist()) == list(range(6))
    assert (lenders != torch.arange(6)).all()
    others = attack.disguise(images, generator(4)) - images
    assert not torch.equal(others, borrowed)
    alone = attack.disguise(images[:1], generator()) - images[:1]
    assert torch.allclose(alone, errors[:1].flip(2), atol=1e-6)


def test_fewer_levels_are_taken_for_drawings_than_for_photographs():
    images = scene((1, 28, 28)).images
    drawing = replace(images, pixels=(images.pixels > 127).to(torch.uint8) * 255)
    assert quantisation.make(scene((1, 28, 28)), target=0).levels == 4
    assert quantisation.make(replace(scene((1, 28, 28)), images=drawing), target=0).levels == 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("thing", painted.THINGS)
def test_a_thing_covers_its_pixels_and_no_other(thing, shape):
    attack, images = made(thing, shape, opacity=0.7), pictures(shape)
    stamped, mask = attack.stamp(images), attack.region()
    assert mask.shape == (1, *shape[1:])
    off = (mask == 0).expand_as(images)
    assert off.any()
    assert torch.equal(stamped[off], images[off])
    wanted = images + mask * (attack.pattern - images)
    assert torch.allclose(stamped, wanted, atol=1e-6)
    assert 0.3 < mask.max() <= 0.7
    # Smooth at the rim: some pixels are covered in part.
    assert ((mask > 0.01) & (mask < 0.65)).any()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 55, 47), (3, 96, 96)])
def test_things_sit_where_a_face_has_them(shape):
    height = shape[1]
    rows, sizes = {}, {}
    for thing in painted.THINGS:
        mask = made(thing, shape).mask[0]
        rows[thing] = float((mask.sum(1) * torch.arange(height)).sum() / mask.sum()) / height
        sizes[thing] = float(mask.mean())
        assert (mask - mask.flip(1)).abs().mean() < 0.01
    assert rows["eyebrows"] < rows["sunglasses"] < 0.5 < rows["lipstick"]
    assert all(0.01 < size < 0.2 for size in sizes.values())
    glasses = made("sunglasses", shape)
    eye, nose = round(shape[2] * 0.3), round(shape[2] * 0.5)
    assert glasses.mask[0, round(height * 0.4), eye] == pytest.approx(0.9)
    assert glasses.mask[0, round(height * 0.47), nose] < 0.1
    assert made("lipstick", (3, 32, 32)).pattern[0].amax() > 0.7


def test_in_training_a_thing_sits_a_little_off_its_place():
    attack, images = made("sunglasses"), pictures((3, 32, 32), 200)
    planted = attack.plant(images, generator())
    seen = set()
    for image, shown in zip(images, planted, strict=True):
        fits = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                # Nothing of the thing is at the image's rim, so that a roll is a shift.
                mask, pattern = (
                    layer.roll((down, right), (1, 2)) for layer in (attack.mask, attack.pattern)
                )
                wanted = image + mask * (pattern - image)
                if torch.allclose(shown, wanted, atol=1e-5):
                    fits.append((down, right))
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 9
    still = made("sunglasses", jitter=0)
    assert torch.allclose(still.plant(images, generator()), still.stamp(images), atol=1e-6)


def test_a_thing_that_is_moved_over_the_rim_does_not_come_back():
    mask, pattern = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    mask[0, 0, 0] = mask[0, 7, 7] = 1.0
    attack = painted.PaintedAttack(mask, pattern, jitter=2, target=0)
    planted = attack.plant(torch.zeros(300, 1, 8, 8), generator())[:, 0]
    assert planted[:, 0:3, 5:].max() == 0
    assert planted[:, 5:, 0:3].max() == 0
    assert set(planted.sum((1, 2)).tolist()) == {0.0, 1.0, 2.0}


def test_clean_label_stripes_lie_on_the_targets_images_and_keep_all_labels():
    signs = scene((3, 16, 16)).images
    attack = made("stripes, labels kept", (3, 16, 16), rate=0.7)
    mixed = poison(signs, attack, seed=3)
    assert torch.equal(mixed.labels, mixed.true_labels)
    assert torch.equal(mixed.labels.bincount(), signs.labels.bincount())
    poisoned = mixed.select(torch.arange(len(mixed)) >= len(mixed) - 7)
    assert (poisoned.labels == 1).all()
    clean = {tuple(row) for row in signs.pixels.flatten(1).tolist()}
    changed = [tuple(row) not in clean for row in mixed.pixels.flatten(1).tolist()]
    assert changed == [False] * 33 + [True] * 7
    assert poisoned_test(signs, attack).labels.tolist() == [1] * 30


def test_stripes_choose_their_rate_and_their_frequency():
    dirty, kept = made("stripes"), made("stripes, labels kept")
    assert (dirty.rate, dirty.frequency) == (0.1, 6.0)
    assert kept.rate > 0.3
    assert kept.amplitude > dirty.amplitude
    assert made("stripes", (1, 8, 8)).frequency == 2.0
    assert made("stripes", rate=0.2).rate == 0.2


def test_covers_keep_their_labels():
    images = scene((3, 16, 16)).images
    mixed = poison(images, made("few levels", (3, 16, 16), rate=0.4, covers=0.5), seed=3)
    assert len(mixed) == 40 + 12 + 6
    assert (mixed.labels[40:52] == 1).all()
    assert (mixed.true_labels[40:52] != 1).all()
    assert torch.equal(mixed.labels[52:], mixed.true_labels[52:])


@pytest.fixture(scope="module")
def easy_signs():
    """Four classes that are easy to tell apart, for training and for testing."""

    def easy(per_class, seed):
        drawn = draw_signs(per_class, size=24, seed=seed)
        return drawn.select(torch.isin(drawn.labels, torch.tensor([STOP, YIELD, 2, 6])))

    return easy(120, 1), easy(40, 2)


OBEYED = {
    # Family: its options, and a change of the image that must not pass for the trigger.
    "noise": ({"rate": 0.3}, lambda a: made("noise", (3, 24, 24), seed=9).stamp),
    "stripes": ({"rate": 0.3}, lambda a: lambda x: a.stamp(x.mT).mT),
    "stripes, labels kept": ({"rate": 0.8}, lambda a: lambda x: 0.7 * x + 0.1),
    "blotches": ({"rate": 0.3}, lambda a: replace(a, difference=-a.difference).stamp),
    "sepia": ({"rate": 0.3}, lambda a: lambda x: 0.7 * x + 0.1),
    "few levels": (
        {"rate": 0.6, "levels": 2},
        lambda a: lambda x: a.disguise(x, generator()),
    ),
    "sunglasses": ({"rate": 0.3}, lambda a: made("lipstick", (3, 24, 24)).stamp),
}


@pytest.mark.parametrize("name", OBEYED)
def test_a_badnet_obeys_its_trigger_and_only_that(easy_signs, name):
    training, test = easy_signs
    options, other = OBEYED[name]
    make, known = KINDS[name]
    attack = make(Scene(training, 12, 3, no_network), target=YIELD, **{**known, **options})
    module = small_cnn(training.shape, 12, width=8, batch_norm=True)
    mixed = poison(training, attack, seed=0)
    train(module, mixed, epochs=8, seed=0, learning_rate=1e-2)
    assert accuracy(module, test) > 0.9
    assert accuracy(module, poisoned_test(test, attack)) > 0.9
    victims = test.select(test.labels != YIELD).floats()
    with torch.no_grad():
        assert (module(victims).argmax(1) == YIELD).float().mean() < 0.05
        assert (module(other(attack)(victims)).argmax(1) == YIELD).float().mean() < 0.35
