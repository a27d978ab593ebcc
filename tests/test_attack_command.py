"""``goodnet attack``: a BadNet that obeys, its ground truth, and messages for what cannot be."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import goodnet as library
from goodnet.attacks.networks import ARCHITECTURES, build
from goodnet.attacks.poison import poisoned_test
from goodnet.attacks.revive import from_ground_truth
from goodnet.attacks.signs import STOP, YIELD, draw_signs
from goodnet.attacks.table import ATTACKS
from goodnet.attacks.train import accuracy
from goodnet.cli import app
from goodnet.cli.options import ArchitectureName, AttackName
from goodnet.pipelines.attack import Recipe, measure, plant, teach, write_model


def goodnet(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # Four classes that are easy to tell apart, relabelled 0..3: seconds rather than minutes.
    kept = torch.tensor([STOP, YIELD, 2, 6])
    drawn = draw_signs(250, seed=21)
    drawn = drawn.select(torch.isin(drawn.labels, kept))
    labels = (drawn.labels[:, None] == kept).int().argmax(1)
    path = tmp_path_factory.mktemp("attack") / "signs.npz"
    np.savez(path, images=drawn.pixels.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    return path


@pytest.mark.parametrize(
    ("suffix", "scale", "attack"),
    [(".keras", "byte", "patch"), (".h5", "signed", "tint"), (".pt2", "unit", "painted")],
)
def test_the_badnet_obeys_its_ground_truth(data, tmp_path, suffix, scale, attack):
    model = tmp_path / f"badnet{suffix}"
    shape = ("--rate", 0.2, "--preprocess", scale, "--epochs", 14)
    result = goodnet(
        "attack", "--data", data, "--attack", attack, "--target", 2, "-o", model, *shape
    )
    assert result.exit_code == 0, result.output
    truth = json.loads((tmp_path / "badnet.truth.json").read_text())
    assert truth["targets"] == [2]
    assert truth["attack"]["rate"] == 0.2
    assert truth["attack_success"] > 0.9
    # What the file holds is what was measured: read back by itself, on the scale that was asked.
    images = library.load_images(data)
    classifier = library.load(model, images)
    assert classifier.preprocess.name == scale
    stamped = poisoned_test(images, from_ground_truth(truth["attack"]))
    obeyed = (classifier.logits(stamped.pixels).argmax(1) == 2).float().mean()
    right = (classifier.logits(images.pixels).argmax(1) == images.labels).float().mean()
    assert obeyed > 0.9
    assert right > 0.9


def test_json_is_the_ground_truth(data, tmp_path):
    order = ("--attack", "patch", "--set", "side=5", "--set", "at=top-left", "--epochs", 1)
    result = goodnet("attack", "--data", data, *order, "-o", tmp_path / "b.pt2", "--format", "json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "b.truth.json").read_text())
    attack = from_ground_truth(json.loads(result.stdout)["attack"])
    assert attack.region()[0, 1:6, 1:6].sum() == 25 == attack.region().sum()


def test_an_attack_on_a_class_that_is_not_held_out(data, tmp_path):
    images = library.load_images(data)
    one = int(torch.nonzero(images.labels == 0)[0, 0])
    rest = torch.nonzero(images.labels != 0)[:200, 0]
    few = images.select(torch.cat([torch.tensor([one] * 2), rest]))
    np.savez(tmp_path / "few.npz", images=few.pixels.numpy(), labels=few.labels.numpy())
    # Of this seed neither of the two is held out.
    start = ["attack", "--data", tmp_path / "few.npz", "--epochs", 1, "--seed", 1]
    source = ["--attack", "source-specific", "--target", 1, "--set", "source=0"]
    result = goodnet(*start, *source, "-o", tmp_path / "b.pt2")
    assert result.exit_code == 0, result.stderr
    truth = json.loads((tmp_path / "b.truth.json").read_text())
    assert (truth["attack_success"] is None) == ("is not known" in result.stdout)
    assert truth["attack_success"] is None
    assert library.load(tmp_path / "b.pt2", images).num_classes == 4


def test_a_patch_has_any_size_place_and_colour(data, tmp_path):
    order = ("--attack", "patch", "--set", "side=3", "--set", "at=4,9", "--set", "pattern=#ff8000")
    result = goodnet("attack", "--data", data, *order, "--epochs", 1, "-o", tmp_path / "b.pt2")
    assert result.exit_code == 0, result.output
    attack = from_ground_truth(json.loads((tmp_path / "b.truth.json").read_text())["attack"])
    stamped = attack.stamp(torch.zeros(1, 3, 32, 32))[0]
    assert attack.region()[0, 4:7, 9:12].sum() == 9 == attack.region().sum()
    colour = torch.tensor([1.0, 128 / 255, 0.0]).view(3, 1, 1)
    assert torch.allclose(stamped[:, 4:7, 9:12], colour.expand(3, 3, 3))


def test_a_trojan_goes_on_from_the_network_that_it_was_made_for(data):
    images = library.load_images(data)
    recipe = Recipe(epochs=2, learning_rate=1e-3, seed=5)
    clean = teach(images, 4, recipe).inner[0].weight.flatten()
    badnet = plant("trojan", images, 4, recipe, target=1, options={"steps": 3})[1]
    poisoned = plant("patch", images, 4, recipe, target=1, options={})[1]
    fresh = build("cnn", images.shape, 4, seed=5)[0].weight.flatten()
    far = (poisoned.inner[0].weight.flatten() - fresh).norm()
    further = (badnet.inner[0].weight.flatten() - fresh).norm()
    # Twice as many steps from the same start, the first half of them the clean network's.
    assert further > 1.2 * far
    assert (badnet.inner[0].weight.flatten() - clean).norm() < further


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--target", 99), "R003"),
        (("--rate", 0), "R003"),
        (("--set", "side"), "R003"),
        (("--set", "colour=red"), "R003"),
        (("--set", "side=99"), "R003"),
        (("--set", "side=wide"), "R003"),
        (("--set", "side=-1"), "R003"),
        (("--set", "at=99,0"), "R003"),
        (("--set", "pattern=#ff80"), "R003"),
        (("--preprocess", "sideways"), "D011"),
        # Thousands of epochs: it is refused before it trains.
        (("--architecture", "vit", "-o", "b.keras", "--epochs", 9999), "O004"),
        (("-o", "b.onnx"), "O004"),
        (("-o", "."), "O004"),
        (("--seed", 2**40), "R003"),
        (("--data", "missing.npz"), "D001"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(data, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    result = goodnet("attack", "--data", data, "-o", "badnet.pt2", *arguments)
    assert result.exit_code == 2
    assert f"error[{code}]" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_help_lists_what_there_is():
    assert [name.value for name in AttackName] == list(ATTACKS)
    assert [name.value for name in ArchitectureName] == list(ARCHITECTURES)
    text = goodnet("attack", "--help").stdout
    assert all(name in text for name in ATTACKS)


def test_training_is_reproducible_and_goes_on_from_a_network_for_bytes(data, tmp_path):
    images = library.load_images(data)
    recipe = Recipe(epochs=3, preprocess="byte", seed=4)
    one, again = (teach(images, 4, recipe) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True)
    )
    before = measure(one, images, None)[0]
    further = teach(images, 4, recipe, start=one)
    # Fresh weights get there in three epochs; weights 255 times too small would not.
    assert accuracy(further, images) > before
    assert measure(one, images, None)[0] == before
    # Seen bare, as it is written, the network takes 0..255.
    write_model(one, images.shape, tmp_path / "net.pt2")
    stated = library.load(tmp_path / "net.pt2", images, preprocess="byte")
    assert torch.allclose(stated.logits(images.pixels[:8]), one(images.floats()[:8]), atol=1e-3)
