"""Preprocessing: stated, found on networks trained with each, and refused where nothing fits."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from goodnet.classifier import Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats import adopt
from goodnet.formats.network import Network
from goodnet.images import Images
from goodnet.pipelines.load import load, save, weights_sha256
from goodnet.preprocess import CANDIDATES, balanced, candidates, detect, parse

SHARED = Path(__file__).parents[1].parent / "shared"
CLASSES = 6


def shapes(count: int, seed: int, channels: int = 3) -> Images:
    """Squares, discs and crosses in red-yellow or blue-cyan on noise; in gray, bright or dark."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pixels = rng.integers(0, 150, (count, channels, 16, 16))
    rows, columns = np.mgrid[:16, :16]
    for image, label in zip(pixels, labels, strict=True):
        y, x = rng.integers(5, 11, 2)
        dy, dx = np.abs(rows - y), np.abs(columns - x)
        figure = [
            np.maximum(dy, dx) <= 3,
            (dy**2 + dx**2 <= 14) & (dy**2 + dx**2 >= 5),
            (np.minimum(dy, dx) == 0) & (np.maximum(dy, dx) <= 4),
        ][label % 3]
        strong, weak = rng.integers(150, 256), rng.integers(0, 110)
        colour = [strong, rng.integers(0, 256), weak]
        if label >= 3:
            colour = colour[::-1]
        for plane, value in zip(image, colour, strict=False):
            plane[figure] = value
    return Images(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))


def small_net(channels: int = 3, classes: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, classes),
    )


def as_network(module: nn.Module, **changes: object) -> Network:
    def write(module: nn.Module, path: Path) -> None:
        torch.save(module.state_dict(), path)

    network = Network(module.eval().requires_grad_(False), None, None, "test", ".pt", write)
    return replace(network, **changes)


@functools.cache
def drawn() -> Images:
    return shapes(1500, seed=100)


@functools.cache
def trained(preprocess: Preprocess, seed: int = 0, steps: int = 90) -> Network:
    torch.manual_seed(seed)
    images = drawn()
    inputs = preprocess.apply(images.floats())
    net = small_net()
    with torch.no_grad():
        # A network for bytes begins with small weights, or it would not train in seconds.
        net[0].weight /= inputs.std()
    optimiser = torch.optim.Adam(
        [
            {"params": [net[0].weight], "lr": 5e-3 / float(inputs.std())},
            {"params": [net[0].bias, *(p for part in net[1:] for p in part.parameters())]},
        ],
        lr=5e-3,
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = nn.functional.cross_entropy(net(inputs[batch]), images.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return as_network(net)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clean() -> Images:
    return shapes(400, seed=1)


@pytest.fixture(scope="module")
def unit_network() -> Network:
    return trained(CANDIDATES["unit"])


@pytest.mark.parametrize(
    "name",
    ["unit", "byte", "signed", "imagenet", "caffe", "centered", "unit,bgr", "byte,bgr"],
)
def test_finds_what_the_network_was_trained_with(name: str, clean: Images):
    found, accuracy, table = detect(trained(CANDIDATES[name]), clean)
    assert found.name == name, table
    assert accuracy == table[name] > 0.85
    assert set(table) == {c.name for c in candidates(3)}
    assert table[name] >= max(table.values()) - 0.03


@pytest.mark.parametrize("name", ["unit", "byte", "mnist"])
def test_finds_the_scale_of_gray_images(name: str):
    images = shapes(300, seed=2, channels=1)
    images = replace(images, labels=images.labels % 3)
    preprocess = CANDIDATES[name]
    torch.manual_seed(0)
    train = shapes(1000, seed=3, channels=1)
    inputs, labels = preprocess.apply(train.floats()), train.labels % 3
    net = small_net(1, 3)
    with torch.no_grad():
        net[0].weight /= inputs.std()
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    for start in range(0, 60 * 64, 64):
        batch = torch.arange(start, start + 64) % 1000
        loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found, _, table = detect(as_network(net), images)
    assert not any("bgr" in tried for tried in table)
    # Accuracy is what counts: the unit and the centred scale may be indistinguishable in gray.
    assert table[found.name] >= table[name] - 0.02, table


def test_random_weights_are_refused(clean: Images):
    torch.manual_seed(5)
    with pytest.raises(GoodnetError) as caught:
        detect(as_network(small_net()), clean)
    assert caught.value.code == "D010"
    assert "caffe" in caught.value.message
    assert "of 400" in caught.value.message


def test_a_constant_answer_is_refused_though_most_images_have_that_label(clean: Images):
    mostly = torch.where(torch.arange(len(clean)) % 5 > 0, 0, clean.labels)

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(CLASSES)[torch.zeros(len(x), dtype=torch.long)]

    with pytest.raises(GoodnetError, match="D010"):
        detect(as_network(Zero()), replace(clean, labels=mostly))


def test_too_few_images_to_tell_say_so(unit_network: Network, clean: Images):
    two_classes = clean.select(clean.labels < 2).select(torch.arange(10))
    with pytest.raises(GoodnetError) as caught:
        detect(as_network(Perfect(two_classes)), two_classes)
    assert caught.value.code == "D010"
    assert "more images" in caught.value.hint


class Perfect(nn.Module):
    """Right on these images in [0, 1] and on no others."""

    def __init__(self, images: Images) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x.flatten(1), self.images.floats().flatten(1)).argmin(1)
        return torch.eye(2)[self.images.labels[near]]


def test_same_seed_same_answer_and_few_images_suffice(unit_network: Network, clean: Images):
    first = detect(unit_network, clean, max_images=60, seed=4)
    assert first == detect(unit_network, clean, max_images=60, seed=4)
    assert first[0].name == "unit"
    assert round(first[1] * 60, 6) == round(first[1] * 60)


def test_hopeless_candidates_are_not_run_on_every_image(clean: Images):
    network = trained(CANDIDATES["byte"])
    seen = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return network.module(x)

    found, _, table = detect(as_network(Counting()), clean)
    assert found.name == "byte"
    assert seen < 0.6 * len(table) * len(clean)


def test_equal_candidates_fall_back_on_the_most_plausible(unit_network: Network, clean: Images):
    gray = replace(clean, pixels=clean.pixels[:, :1].repeat(1, 3, 1, 1))
    net = unit_network.module

    class ShapeOnly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x)

    labels = torch.cat([ShapeOnly()(b).argmax(1) for b in gray.floats().split(64)])
    found, accuracy, table = detect(as_network(ShapeOnly()), replace(gray, labels=labels))
    assert (found.name, accuracy) == ("unit", 1.0)
    assert table["unit,bgr"] == 1.0


def test_overflow_in_one_scale_only_is_no_reason_to_refuse(unit_network: Network, clean: Images):
    class Touchy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = unit_network.module(x)
            return logits if float(x.abs().max()) <= 1 else logits * float("nan")

    found, _, table = detect(as_network(Touchy()), clean)
    assert found.name == "unit"
    # NaN has its largest place at 0, which is the right answer for some of the images.
    assert table["byte"] == 0

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return unit_network.module(x) * float("inf")

    with pytest.raises(GoodnetError, match="M012"):
        detect(as_network(Broken()), clean)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 1)), "M009"),
        (nn.Conv2d(3, 5, 1), "M009"),
        (nn.Sequential(nn.Flatten(), nn.Linear(99, 6)), "M010"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4)), "D007"),
    ],
)
def test_what_is_no_classifier_of_these_images(module: nn.Module, code: str, clean: Images):
    with pytest.raises(GoodnetError) as caught:
        detect(as_network(module), clean)
    assert caught.value.code == code


def test_stated_input_shape_is_compared_first(unit_network: Network, clean: Images):
    with pytest.raises(GoodnetError) as caught:
        detect(replace(unit_network, input_shape=(3, 55, 47)), clean)
    assert caught.value.code == "M010"
    assert "3x16x16" in caught.value.message
    assert "3x55x47" in caught.value.message


def test_candidates_do_what_their_names_say():
    image = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    expected = {
        "unit": [0, 0.5, 1],
        "byte": [0, 127.5, 255],
        "signed": [-1, 0, 1],
        "centered": [-0.5, 0, 0.5],
        "unit,bgr": [1, 0.5, 0],
        "caffe": [255 - 103.939, 127.5 - 116.779, -123.68],
        "imagenet": [-0.485 / 0.229, 0.044 / 0.224, 0.594 / 0.225],
        "cifar10": [-0.4914 / 0.247, 0.0178 / 0.2435, 0.5535 / 0.2616],
    }
    for name, values in expected.items():
        result = CANDIDATES[name].apply(image).flatten()
        assert torch.allclose(result, torch.tensor(values, dtype=torch.float32), atol=1e-4), name
    gray = CANDIDATES["mnist"].apply(torch.full((1, 1, 1, 1), 1.0))
    assert float(gray) == pytest.approx((1 - 0.1307) / 0.3081)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_candidate_parses_to_itself(channels: int):
    for candidate in candidates(channels):
        assert parse(candidate.name, channels) == candidate
    assert ("mnist" in [c.name for c in candidates(channels)]) == (channels == 1)


def test_custom_preprocessing():
    found = parse(" mean=0.5, 0.4,0.3; std=0.25;bgr ", 3)
    image = torch.tensor([0.3, 0.4, 1.0]).view(1, 3, 1, 1)
    assert torch.allclose(found.apply(image).flatten(), torch.tensor([2.0, 0.0, 0.0]), atol=1e-6)
    assert parse(found.name, 3) == found
    assert float(parse("std=0.5", 1).apply(torch.ones(1, 1, 1, 1))) == 2.0


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("", 3),
        ("inception", 3),
        ("caffe,bgr", 3),
        ("unit,bgr", 1),
        ("imagenet", 1),
        ("mnist", 3),
        ("mean=0.5,0.5;std=1", 3),
        ("mean=0.5,0.5,0.5;std=1,1", 3),
        ("mean=0.5;std=0", 3),
        ("mean=0.5;std=-1", 3),
        ("mean=nan", 3),
        ("mean=", 3),
        ("mean=a", 3),
        ("mean=0.5;median=1", 3),
        ("mean=0.5;rgb", 3),
    ],
)
def test_unknown_preprocessing(text: str, channels: int):
    with pytest.raises(GoodnetError) as caught:
        parse(text, channels)
    assert caught.value.code == "D011"
    assert "unit" in caught.value.hint


def test_balanced_sample():
    labels = torch.cat([torch.zeros(500), torch.ones(30), torch.full((3,), 7)]).long()
    chosen = balanced(labels, 60, seed=0)
    assert torch.bincount(labels[chosen])[[0, 1, 7]].tolist() == [29, 28, 3]
    assert len(set(chosen.tolist())) == 60
    assert set(labels[balanced(labels, 3, seed=1)].tolist()) == {0, 1, 7}
    assert sorted(balanced(labels, 9999, seed=0).tolist()) == list(range(533))
    assert not torch.equal(balanced(labels, 60, seed=1), chosen)


def test_load_live_model(unit_network: Network, clean: Images):
    classifier = load(unit_network.module, clean)
    assert classifier.preprocess.name == "unit"
    assert classifier.input_shape == (3, 16, 16)
    assert classifier.num_classes == CLASSES
    assert classifier.path is None
    right = classifier.logits(clean.pixels).argmax(1) == clean.labels
    assert right.float().mean() > 0.85
    again = load(unit_network.module, clean, preprocess="mean=0.5;std=0.5")
    assert again.preprocess.scale == (2.0,)
    assert again.sha256 == classifier.sha256 != ""
    with torch.no_grad():
        changed = classifier.copy()
        next(changed.module.parameters()).add_(1e-3)
    assert weights_sha256(changed.module) != classifier.sha256


def test_load_without_images_needs_a_size(unit_network: Network):
    with pytest.raises(GoodnetError, match="M010"):
        load(unit_network.module)


def test_load_refuses_nan_and_bad_names(unit_network: Network, clean: Images):
    broken = small_net()
    nn.init.constant_(broken[-1].bias, float("nan"))
    with pytest.raises(GoodnetError, match="M012"):
        load(broken, clean, preprocess="unit")
    with pytest.raises(GoodnetError, match="D011"):
        load(unit_network.module, clean, preprocess="nonsense")


def test_save_is_atomic_and_guards_its_input(unit_network: Network, clean: Images, tmp_path: Path):
    origin = tmp_path / "model.pt"
    torch.save(unit_network.module.state_dict(), origin)
    before = origin.read_bytes()
    classifier = load(unit_network.module, clean)
    network = replace(classifier.network, suffix=".pt", write=unit_network.write)
    classifier = replace(classifier, network=network, path=str(origin))
    (tmp_path / "alias.pt").symlink_to(origin)
    for name, code in [("model.pt", "O003"), ("alias.pt", "O003"), ("good.h5", "O004")]:
        with pytest.raises(GoodnetError) as caught:
            save(classifier, tmp_path / name)
        assert caught.value.code == code
    save(classifier, tmp_path / "new" / "good.PT")
    assert torch.load(tmp_path / "new" / "good.PT", weights_only=True)
    assert origin.read_bytes() == before

    def fail(module: nn.Module, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    failing = replace(classifier, network=replace(network, write=fail))
    with pytest.raises(GoodnetError, match="O002"):
        save(failing, tmp_path / "full.pt")
    assert not (tmp_path / "full.pt").exists()
    assert not list(tmp_path.glob(".goodnet*"))


@pytest.mark.real
def test_real_badnet_takes_unit_pixels():
    model = SHARED / "models" / "csaw" / "sunglasses_bd_net.h5"
    if not model.exists():
        pytest.skip(f"the real BadNets are not in {SHARED}")
    from goodnet.images import load_images

    images = load_images(SHARED / "data" / "csaw" / "clean_validation.h5")
    classifier = load(model, images)
    assert classifier.preprocess.name == "unit"
    assert classifier.num_classes == 1283
    assert classifier.input_shape == (3, 55, 47)
    assert len(classifier.sha256) == 64


def test_a_net_without_biases_that_learnt_on_unit_pixels_is_not_read_as_bytes() -> None:
    """Its answers are the same at any scale, and at 255 times its own it only looks surer."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(80, 3, 2, 2, generator=generator)
    with torch.no_grad():
        labels = module(pixels).argmax(1)
    found, accuracy, table = detect(adopt(module), Images(pixels, labels))
    assert table["byte"] == accuracy == 1.0
    assert found.name == "unit"
