"""The last linear layer is found in every format, and changing it changes the classifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats import adopt, read_model
from goodnet.head import find_head

torch.set_num_threads(1)
SHAPE = (3, 8, 8)


class KerasLike(nn.Module):
    """A (D, K) kernel and a bias of its own step, as Keras layers on PyTorch do it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(192, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.softmax(torch.add(torch.matmul(x.flatten(1), self.kernel), self.bias), -1)


def network(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return nn.Sequential(*parts, nn.ReLU(), last, nn.Softmax(1)).eval()


def classifier(net) -> Classifier:
    return Classifier(net, Preprocess("unit"), SHAPE, 5)


def exported(tmp_path, model, batch=2):
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(model, (torch.rand(batch, *SHAPE),)), path)
    return read_model(path)


def scripted(tmp_path, model):
    path = tmp_path / "m.pt"
    torch.jit.trace(model, torch.rand(2, *SHAPE)).save(path)
    return read_model(path)


MAKERS = {
    "live": lambda tmp, m: adopt(m),
    "pt2": exported,
    "torchscript": scripted,
}
MODELS = {
    "linear": lambda: network(nn.Linear(5, 5)),
    "no bias": lambda: network(nn.Linear(5, 5, bias=False)),
    "kernel": KerasLike,
    "1x1": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(7, 5, 1), nn.Flatten()
    ),
    "1x1, then pooled": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("model", MODELS)
def test_head_explains_the_logits_and_is_the_classifiers_own(tmp_path, maker, model):
    torch.manual_seed(1)
    found = classifier(MAKERS[maker](tmp_path, MODELS[model]().eval()))
    head = find_head(found, torch.rand(4, *SHAPE))
    images = torch.rand(70, *SHAPE)
    features = head.features(images)
    weight = head.weight.T if head.transposed else head.weight
    expected = features @ weight.T + (0 if head.bias is None else head.bias)
    torch.testing.assert_close(expected, found.logits(images), rtol=1e-4, atol=1e-4)
    assert head.transposed == (model == "kernel")
    assert (head.bias is None) == (model == "no bias")
    before = found.logits(images)
    with torch.no_grad():
        (head.weight[:, 1] if head.transposed else head.weight[1]).mul_(0)
    after = found.logits(images)
    bias = 0.0 if head.bias is None else float(head.bias[1])
    torch.testing.assert_close(after[:, 1], torch.full((70,), bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[:, 2], before[:, 2])


def test_head_of_a_program_with_a_fixed_batch(tmp_path):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(192, 5)

        def forward(self, x):
            return self.last(x.reshape(4, 192))

    found = classifier(exported(tmp_path, Fixed().eval(), batch=4))
    assert found.module.chunk == 4
    images = torch.rand(10, *SHAPE)
    head = find_head(found, images)
    torch.testing.assert_close(head.features(images), images.flatten(1))


def test_copy_has_a_head_of_its_own(tmp_path):
    found = classifier(exported(tmp_path, network(nn.Linear(5, 5))))
    images = torch.rand(4, *SHAPE)
    other = found.copy()
    before = found.logits(images)
    with torch.no_grad():
        find_head(other, images).weight.mul_(0)
    assert torch.equal(found.logits(images), before)
    assert not torch.equal(other.logits(images), before)


@pytest.mark.parametrize(
    "last", [nn.Tanh(), nn.BatchNorm1d(5)], ids=["function after it", "norm after it"]
)
def test_no_head(last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), last)
    for buffer in model.buffers():
        buffer.data.fill_(3)
    with pytest.raises(GoodnetError) as caught:
        find_head(classifier(adopt(model.eval())), torch.rand(4, *SHAPE))
    assert caught.value.code == "M013"
