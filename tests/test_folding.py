"""Folded batch norms: fewer operations, the same answers and gradients, and the file as it was."""

from __future__ import annotations

import keras
import pytest
import torch
from keras import layers as L  # noqa: N812 - its usual name
from keras_models import functional, head, shake, torch_images
from keras_models import images as keras_images
from torch import nn

from goodnet.formats import torch_export, torch_module
from goodnet.formats.folding import folded
from goodnet.formats.keras_files import load_keras
from goodnet.formats.keras_network import KerasNetwork
from goodnet.formats.torch_export import ExportModule
from goodnet.images import Images
from goodnet.pipelines.load import load, quicker, save
from goodnet.pipelines.reversing import reverse_triggers


def norms(module: nn.Module) -> int:
    if isinstance(module, KerasNetwork):
        return sum(isinstance(module.layers[s.key], nn.BatchNorm2d) for s in module.steps)
    if isinstance(module, ExportModule):
        return sum("batch_norm" in step.target for step in module.program.steps)
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def check(module: nn.Module, images: torch.Tensor, before: int, after: int) -> nn.Module:
    """Counts the norms, and compares answers and gradients."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    short = folded(module)
    assert (norms(module), norms(short)) == (before, after)
    results = []
    for network in (module, short):
        given = images.clone().requires_grad_(True)
        logits = network(given)
        (gradient,) = torch.autograd.grad(logits.square().sum(), given)
        results.append((logits.detach(), gradient))
    for expected, found in zip(*results, strict=True):
        size = float(expected.abs().max())
        assert size > 1e-3, "the comparison would mean nothing"
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * size)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in short.parameters())
    return short


class Net(nn.Module):
    """Norms that can be folded, and one that cannot: its convolution is looked at elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6))
        self.third, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False)
        self.alone = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.alone(torch.relu(self.first(x)))
        x = torch.relu(self.second(x))
        y = self.third(x)
        return self.last((self.norm(y) + y).mean((2, 3)))


def trained(module: nn.Module) -> nn.Module:
    """With statistics and scales that are not those of the start."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            shape = part.running_mean.shape
            part.running_mean.copy_(torch.randn(shape, generator=generator))
            part.running_var.copy_(torch.rand(shape, generator=generator) + 0.2)
            if part.affine:
                part.weight.data.copy_(torch.randn(shape, generator=generator))
                part.bias.data.copy_(torch.randn(shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net())


PIXELS = torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_program(net, tmp_path, dynamic):
    shapes = ({0: torch.export.Dim("n", min=2)},) if dynamic else None
    program = torch.export.export(net, (PIXELS[:2],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    network = torch_export.load(tmp_path / "net.pt2")
    check(network.module, PIXELS, 4, 2)


def test_a_live_module(net):
    network = torch_module.load_live(net)
    check(network.module, PIXELS, 4, 2)


def test_a_live_module_that_cannot_be_traced_stays_as_it_is():
    class Branch(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if float(x.sum()) > 0 else -x)

    module = torch_module.load_live(trained(Branch())).module
    assert folded(module) is module


def keras_net(x):
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.DepthwiseConv2D(3, padding="same")(x)
    x = L.BatchNormalization(scale=False, epsilon=1e-2)(x)
    y = L.Conv2D(6, 1)(x)
    x = L.Add()([L.BatchNormalization()(y), y])
    twice = L.Conv2D(6, 1)
    x = L.Add()([L.BatchNormalization()(twice(x)), L.ReLU()(twice(L.ReLU()(x)))])
    return head(L.BatchNormalization()(L.ReLU()(x)))


def test_a_keras_model(tmp_path):
    model: keras.Model = functional(keras_net)
    shake(model)
    model.save(tmp_path / "net.keras")
    network = load_keras(tmp_path / "net.keras")
    # One after a convolution that is looked at elsewhere, one after a convolution that is used
    # twice, and one after no convolution stay.
    check(network.module, torch_images(model, keras_images(model)), 5, 3)


def test_nothing_to_fold_nothing_changed():
    plain = torch_module.load_live(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())).module
    assert folded(plain) is plain


def test_what_answers_otherwise_is_not_used(net, monkeypatch):
    classifier = load(net, Images((PIXELS * 255).byte(), torch.arange(5) % 4), preprocess="unit")
    assert quicker(classifier, PIXELS).module is not classifier.module

    def wrong(module):
        short = folded(module)
        next(iter(short.parameters())).data.mul_(3.0)
        return short

    monkeypatch.setattr("goodnet.formats.folding.folded", wrong)
    assert quicker(classifier, PIXELS) is classifier


def test_a_scan_of_a_network_with_norms_leaves_its_file_as_it_was(net, tmp_path):
    """Triggers are sought in the folded network; what is saved is the one that was read."""
    images = Images((PIXELS * 255).byte(), torch.arange(5) % 4)
    program = torch.export.export(net, (PIXELS[:2],))
    torch.export.save(program, tmp_path / "net.pt2")
    classifier = load(tmp_path / "net.pt2", images, preprocess="unit")
    before = classifier.logits(PIXELS)
    masks, _ = reverse_triggers(classifier, images, [2], 0, 1, lambda *_: None)
    assert masks[2].target == 2
    save(classifier, tmp_path / "again.pt2")
    again = load(tmp_path / "again.pt2", images, preprocess="unit")
    assert torch.equal(again.logits(PIXELS), before)
    assert norms(again.module) == 4
