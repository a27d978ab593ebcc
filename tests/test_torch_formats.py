"""PyTorch files and modules: the same logits in, the changed weights out, native tools agree."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats import adopt, read_model

torch.set_num_threads(1)
SHAPE = (3, 8, 8)
IMAGES = torch.rand((7, *SHAPE), generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A small network with a branch, a buffer, a no_grad block and a softmax of choice."""

    __constants__ = ("end",)

    def __init__(self, end: str = "softmax") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4 * 36, 5)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.25))
        self.layer = nn.Softmax(dim=1)
        self.end = end

    def scores(self, x):
        first, second = torch.relu(self.norm(self.conv(x - self.mean))).chunk(2, 1)
        return self.last(torch.cat([first, second * 2], 1).flatten(1))

    def forward(self, x):
        x = self.scores(x)
        if self.end == "softmax":
            return F.softmax(x, dim=-1)
        if self.end == "log_softmax":
            return x.log_softmax(1)
        if self.end == "layer":
            return self.layer(x)
        if self.end == "hidden":
            return F.softmax(x, dim=1) + 0.0
        return x


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 5)

    def forward(self, x):
        return torch.softmax(self.last(x.reshape(4, 192)), 1)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net("softmax")

    def forward(self, x):
        return self.net(x.permute(0, 3, 1, 2))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net("none")

    def forward(self, x):
        return self.net(x), x.mean()


def net(end: str = "softmax") -> Net:
    torch.manual_seed(3)
    model = Net(end).eval()
    model.norm.running_mean.uniform_(-0.1, 0.1)
    return model


def export(path: Path, model: nn.Module, *example, dynamic: bool = False) -> Path:
    example = example or (IMAGES[:2],)
    shapes = ({0: torch.export.Dim("batch", max=512)},) if dynamic else None
    torch.export.save(torch.export.export(model, example, dynamic_shapes=shapes), path)
    return path


def script(path: Path, model: nn.Module, how: str) -> Path:
    made = torch.jit.script(model) if how == "script" else torch.jit.trace(model, IMAGES[:2])
    made.save(path)
    return path


def check_logits(module: nn.Module, expected: torch.Tensor) -> None:
    torch.testing.assert_close(module(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    images = IMAGES.clone().requires_grad_()
    module(images).logsumexp(1).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def change(module: nn.Module, ending: str = "last.weight") -> nn.Module:
    """A copy in which row 2 of the last layer is 0; the original must not notice."""
    before = module(IMAGES)
    changed = copy.deepcopy(module)
    names = dict(changed.named_parameters())
    (name,) = [n for n in names if n.replace("/", ".").endswith(ending)]
    with torch.no_grad():
        names[name][2] = 0
    assert torch.equal(module(IMAGES), before)
    assert not torch.equal(changed(IMAGES), before)
    return changed


def plain(path: Path, code: str) -> torch.Tensor:
    """What ``code`` answers in a Python that has torch and never imports goodnet."""
    folder = path.parent
    np.save(folder / "images.npy", IMAGES.numpy())
    program = f"""
import sys, numpy as np, torch
torch.set_num_threads(1)
images = torch.from_numpy(np.load({str(folder / "images.npy")!r}))
path = {str(path)!r}
{code}
assert "goodnet" not in sys.modules
np.save({str(folder / "answer.npy")!r}, answer.detach().numpy())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=folder)
    return torch.from_numpy(np.load(folder / "answer.npy"))


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "layer", "none"])
def test_pt2_answers_with_logits(tmp_path, end):
    model = net(end)
    found = read_model(export(tmp_path / "m.pt2", model, dynamic=True))
    assert (found.kind, found.suffix) == ("pt2", ".pt2")
    assert found.input_shape == SHAPE
    assert found.num_classes == 5
    check_logits(found.module, model.scores(IMAGES).detach())


def test_pt2_written_with_new_weights_runs_in_plain_torch(tmp_path):
    path = export(tmp_path / "m.pt2", net(), dynamic=True)
    found = read_model(path)
    changed = change(found.module)
    found.write(changed, tmp_path / "new.pt2")
    answer = plain(tmp_path / "new.pt2", "answer = torch.export.load(path).module()(images)")
    torch.testing.assert_close(answer, changed(IMAGES).softmax(1))
    assert torch.equal(read_model(tmp_path / "new.pt2").module(IMAGES), changed(IMAGES))
    found.write(found.module, tmp_path / "same.pt2")
    assert torch.equal(read_model(tmp_path / "same.pt2").module(IMAGES), found.module(IMAGES))


def test_pt2_of_a_fixed_batch_takes_any_batch(tmp_path):
    torch.manual_seed(0)
    model = FixedBatch().eval()
    found = read_model(export(tmp_path / "m.pt2", model, IMAGES[:4]))
    assert found.module.chunk == 4
    expected = model.last(IMAGES.flatten(1)).detach()
    check_logits(found.module, expected)
    for count in (1, 4, 5):
        torch.testing.assert_close(found.module(IMAGES[:count]), expected[:count])


def test_pt2_of_a_batch_that_is_fixed_in_name_only_runs_in_one_go(tmp_path):
    model = net()
    found = read_model(export(tmp_path / "m.pt2", model))
    assert found.module.chunk is None
    check_logits(found.module, model.scores(IMAGES).detach())


def test_pt2_channels_last(tmp_path):
    model = ChannelsLast().eval()
    found = read_model(export(tmp_path / "m.pt2", model, IMAGES[:2].permute(0, 2, 3, 1)))
    assert found.input_shape == SHAPE
    check_logits(found.module, model.net.scores(IMAGES).detach())


def test_pt2_with_no_grad_inside_and_a_constant(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net("none")
            self.factor = torch.tensor(2.0)

        def forward(self, x):
            with torch.no_grad():
                shift = self.net.mean * 2
            n = x.shape[0]
            return self.net((x - shift) / self.factor).reshape(n, -1)

    model = Odd().eval()
    found = read_model(export(tmp_path / "m.pt2", model, dynamic=True))
    check_logits(found.module, model(IMAGES).detach())
    found.write(change(found.module, "net.last.weight"), tmp_path / "new.pt2")
    read_model(tmp_path / "new.pt2")


def test_pt2_keeps_tied_weights_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(192, 192)
            self.second = nn.Linear(192, 192)
            self.second.weight = self.first.weight
            self.last = nn.Linear(192, 5)

        def forward(self, x):
            return self.last(self.second(self.first(x.flatten(1)).relu()))

    found = read_model(export(tmp_path / "m.pt2", Tied().eval()))
    changed = copy.deepcopy(found.module)
    with torch.no_grad():
        changed.tensor("first.weight").mul_(0.5)
    found.write(changed, tmp_path / "new.pt2")
    assert torch.equal(read_model(tmp_path / "new.pt2").module(IMAGES), changed(IMAGES))


@pytest.mark.parametrize(
    ("model", "example", "code"),
    [
        (net().train(), IMAGES[:2], "M006"),
        (nn.Linear(5, 5), torch.ones(2, 5), "M009"),
    ],
    ids=["training mode", "not images"],
)
def test_pt2_that_is_no_classifier(tmp_path, model, example, code):
    with pytest.raises(GoodnetError) as caught:
        read_model(export(tmp_path / "m.pt2", model, example))
    assert caught.value.code == code


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("end", ["softmax", "log_softmax", "layer", "none"])
def test_torchscript_answers_with_logits(tmp_path, how, end):
    model = net(end)
    found = read_model(script(tmp_path / "m.pt", model, how))
    assert found.kind == "torchscript"
    check_logits(found.module, model.scores(IMAGES).detach())


def test_torchscript_with_a_hidden_softmax_gives_log_p(tmp_path):
    model = net("hidden")
    found = read_model(script(tmp_path / "m.pt", model, "trace"))
    check_logits(found.module, model.scores(IMAGES).log_softmax(1).detach())


def test_torchscript_written_with_new_weights_runs_in_plain_torch(tmp_path):
    found = read_model(script(tmp_path / "m.pt", net(), "script"))
    changed = change(found.module)
    found.write(changed, tmp_path / "new.pt")
    answer = plain(tmp_path / "new.pt", "answer = torch.jit.load(path)(images)")
    torch.testing.assert_close(answer, changed(IMAGES).softmax(1))


def test_frozen_torchscript_can_be_scanned(tmp_path):
    model = net()
    frozen = torch.jit.freeze(torch.jit.script(model))
    frozen.save(tmp_path / "m.pt")
    found = read_model(tmp_path / "m.pt")
    assert not list(found.module.parameters())
    check_logits(found.module, model.scores(IMAGES).detach())


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "layer", "none"])
def test_live_module(tmp_path, end):
    model = net(end).train()
    model.conv.weight.requires_grad_(False)
    expected = copy.deepcopy(model).eval().scores(IMAGES).detach()
    found = adopt(model)
    check_logits(found.module, expected)
    changed = change(found.module)
    back = found.live(changed)
    assert type(back) is Net
    assert back.training
    assert not back.conv.weight.requires_grad
    assert back.last.weight.requires_grad
    answer = back.eval()(IMAGES)
    if end in ("softmax", "layer"):
        torch.testing.assert_close(answer, changed(IMAGES).softmax(1))
    assert model.training
    assert bool(model.last.weight[2].any())
    found.write(changed, tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(state) == list(model.state_dict())
    assert not state["last.weight"][2].any()


def test_live_modules_of_other_kinds():
    check_logits(adopt(net("hidden")).module, net().scores(IMAGES).log_softmax(1).detach())
    check_logits(adopt(Pair().eval()).module, net().scores(IMAGES).detach())
    scripted = adopt(torch.jit.script(net()))
    check_logits(scripted.module, net().scores(IMAGES).detach())
    assert isinstance(scripted.live(scripted.module), torch.jit.ScriptModule)
    half = net().double()
    assert adopt(half).live(adopt(half).module).last.weight.dtype == torch.float64
    with pytest.raises(GoodnetError) as caught:
        adopt({"weights": 1})
    assert caught.value.code == "M011"


def test_importing_the_formats_imports_no_keras():
    code = "import sys, goodnet.formats; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
