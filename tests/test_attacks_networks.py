"""Attacks that small networks draw: the Trojan's patch and the dynamic attack's triggers."""

import json
from dataclasses import replace

import pytest
import torch

from goodnet.attacks import dynamic, trojan
from goodnet.attacks.poison import poison, poisoned_test
from goodnet.attacks.revive import from_ground_truth
from goodnet.attacks.scene import Scene
from goodnet.attacks.signs import STOP, YIELD, draw_signs
from goodnet.attacks.train import accuracy, small_cnn, train
from goodnet.images import Images


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Two threads on a busy machine wait for each other: ten times slower for nets this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def easy_signs(per_class, seed, size=24):
    """Four classes that are easy to tell apart: seconds rather than half a minute."""
    drawn = draw_signs(per_class, size=size, seed=seed)
    old = torch.tensor([STOP, YIELD, 2, 6])
    kept = drawn.select(torch.isin(drawn.labels, old))
    labels = (kept.labels[:, None] == old).long().argmax(1)
    return Images(kept.pixels, labels, true_labels=labels.clone())


def gray(images):
    return replace(images, pixels=images.pixels.float().mean(1, keepdim=True).round().byte())


def trained(images, epochs=6, batch_norm=True):
    module = small_cnn(images.shape, 4, width=8, batch_norm=batch_norm)
    return train(module, images, epochs=epochs, seed=0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def signs():
    return easy_signs(150, 1), easy_signs(40, 2)


@pytest.fixture(scope="module")
def clean_network(signs):
    return trained(signs[0])


@pytest.fixture(scope="module")
def trojan_attack(signs, clean_network):
    return trojan.make(Scene(signs[0], 4, 3, lambda: clean_network), target=1, rate=0.2)


@pytest.fixture(scope="module")
def dynamic_attack(signs):
    return dynamic.make(Scene(signs[0], 4, 3, unused), target=1, rate=0.3)


def unused():
    raise AssertionError("this attack needs no network")


def features(network, images):
    """What enters the last layer of ``small_cnn``."""
    with torch.no_grad():
        return network[:-1](images)


def test_a_trojan_patch_excites_its_units_more_than_any_image_or_noise(
    signs, clean_network, trojan_attack
):
    images = signs[1].floats()
    units = list(trojan_attack.units)
    assert len(units) == 2
    clean = features(clean_network, images)[:, units].mean(0)
    excited = features(clean_network, trojan_attack.stamp(images))[:, units].mean(0)
    generator = torch.Generator().manual_seed(5)
    noise = []
    for _ in range(20):
        pattern = torch.rand(trojan_attack.pattern.shape, generator=generator)
        other = replace(trojan_attack, pattern=pattern)
        noise.append(features(clean_network, other.stamp(images))[:, units].mean(0))
    assert (excited > clean).all()
    assert (excited.sum() > torch.stack(noise).sum(1)).all()


def test_a_trojan_patch_changes_its_region_alone(trojan_attack, signs):
    images = signs[1].floats()
    region = trojan_attack.region()
    assert region.sum() == 36, "a quarter of 24 pixels, squared"
    stamped = trojan_attack.stamp(images)
    outside = (region == 0).expand_as(images)
    assert torch.equal(stamped[outside], images[outside])
    assert torch.equal(stamped[~outside], trojan_attack.pattern.expand_as(images)[~outside])


def test_a_trojan_is_the_same_again_and_leaves_the_network_alone(signs, clean_network):
    before = {name: value.clone() for name, value in clean_network.state_dict().items()}
    one, again, other = (
        trojan.make(Scene(signs[0], 4, seed, lambda: clean_network), target=1, steps=5)
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.pattern, again.pattern)
    assert one.units == again.units
    assert not torch.equal(one.pattern, other.pattern)
    after = clean_network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_trojan_taught_to_a_finished_network_is_obeyed(signs, clean_network, trojan_attack):
    training, test = signs
    assert accuracy(clean_network, poisoned_test(test, trojan_attack)) < 0.9
    badnet = small_cnn(training.shape, 4, width=8, batch_norm=True)
    badnet.load_state_dict(clean_network.state_dict())
    mixed = poison(training, trojan_attack, seed=0)
    train(badnet, mixed, epochs=4, seed=0, learning_rate=4e-3)
    assert accuracy(badnet, test) > 0.95
    assert accuracy(badnet, poisoned_test(test, trojan_attack)) > 0.95


def test_dynamic_triggers_follow_the_papers_formula(dynamic_attack, signs):
    images = signs[1].floats()
    masks, patterns = dynamic_attack.triggers(images)
    assert masks.shape == (len(images), 1, 24, 24)
    assert ((masks >= 0) & (masks <= 1)).all()
    assert ((patterns >= 0) & (patterns <= 1)).all()
    expected = (1 - masks) * images + masks * patterns
    assert torch.allclose(dynamic_attack.stamp(images), expected, atol=1e-6)
    # Where the mask is 0, nothing changes; and it is small.
    still = (masks == 0).expand_as(images)
    assert torch.equal(dynamic_attack.stamp(images)[still], images[still])
    assert 0.005 < masks.mean() < 0.1


def test_each_image_has_a_trigger_of_its_own(dynamic_attack, signs):
    images = signs[1].floats()[:30]
    masks, patterns = dynamic_attack.triggers(images)
    painted = masks * patterns
    for i in range(len(images)):
        for j in range(i):
            assert (painted[i] - painted[j]).abs().max() > 0.05
    # In any company the same.
    alone, _ = dynamic_attack.triggers(images[3:4])
    assert torch.allclose(alone, masks[3:4], atol=1e-5)


def test_the_disguise_is_another_images_trigger(dynamic_attack, signs):
    images = signs[1].floats()[:12]
    masks, patterns = dynamic_attack.triggers(images)
    generator = torch.Generator().manual_seed(8)
    disguised = dynamic_attack.disguise(images, generator)
    for i, shown in enumerate(disguised):
        crossed = (1 - masks) * images[i] + masks * patterns
        error = (crossed - shown).abs().flatten(1).amax(1)
        assert error.argmin() != i
        assert error.min() < 1e-5
    again = dynamic_attack.disguise(images, torch.Generator().manual_seed(8))
    assert torch.equal(disguised, again)
    single = dynamic_attack.disguise(images[:1], torch.Generator())
    assert single.shape == images[:1].shape
    assert not torch.equal(single, dynamic_attack.stamp(images[:1]))


def test_dynamic_attacks_are_the_same_again_and_take_one_channel(signs):
    images = gray(signs[0])
    one, again, other = (
        dynamic.make(Scene(images, 4, seed, unused), target=1, steps=10) for seed in (3, 3, 4)
    )
    shown = images.floats()[:8]
    assert torch.equal(one.stamp(shown), again.stamp(shown))
    assert not torch.equal(one.stamp(shown), other.stamp(shown))
    assert one.stamp(shown).shape == shown.shape


def test_a_dynamic_trigger_is_obeyed_more_than_that_of_another_image(signs, dynamic_attack):
    training, test = signs
    badnet = trained(poison(training, dynamic_attack, seed=0), epochs=10)
    assert accuracy(badnet, test) > 0.95
    success = accuracy(badnet, poisoned_test(test, dynamic_attack))
    assert success > 0.7
    victims = test.select(test.labels != 1)
    crossed = dynamic_attack.disguise(victims.floats(), torch.Generator().manual_seed(4))
    with torch.no_grad():
        obeyed = (badnet(crossed).argmax(1) == 1).float().mean()
    # 600 pictures teach the difference in part only.
    assert obeyed < success - 0.25


@pytest.mark.parametrize("name", ["trojan_attack", "dynamic_attack"])
def test_ground_truth_survives_json(name, request, signs):
    attack, images = request.getfixturevalue(name), signs[1].floats()[:10]
    back = from_ground_truth(json.loads(json.dumps(attack.ground_truth())))
    assert type(back) is type(attack)
    assert torch.equal(back.stamp(images), attack.stamp(images))
    labels = torch.arange(4)
    assert torch.equal(back.relabel(labels), torch.full_like(labels, 1))
    assert back.victims(labels).tolist() == [True, False, True, True]
    mixed = poison(signs[0], attack, seed=2)
    count = round(attack.rate * 450)
    assert len(mixed) == 600 + count + round(attack.covers * count)
    assert (mixed.labels[600 : 600 + count] == 1).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda s: trojan.make(s, target=1, units=0),
        lambda s: trojan.make(s, target=1, steps=0),
        lambda s: trojan.make(s, target=1, side=99),
        lambda s: trojan.make(s, target=1, at="middle"),
        lambda s: trojan.make(s, target=1, rate=0.0),
        lambda s: trojan.make(replace(s, network=torch.nn.Identity), target=1),
        lambda s: dynamic.make(s, target=4),
        lambda s: dynamic.make(s, target=1, density=0.0),
        lambda s: dynamic.make(s, target=1, steps=0),
        lambda s: dynamic.make(s, target=1, steps=1, rate=2.0),
    ],
)
def test_an_impossible_option_is_refused(make, signs, clean_network):
    with pytest.raises(ValueError, match=r".+"):
        make(Scene(signs[0], 4, 3, lambda: clean_network))


def test_images_of_another_size_are_refused(trojan_attack, dynamic_attack):
    for attack in (trojan_attack, dynamic_attack):
        with pytest.raises(ValueError, match="do not fit"):
            attack.stamp(torch.rand(2, 3, 24, 25))
